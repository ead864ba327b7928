//! Resolves the secret environment variables of a container.
//!
//! The values are given to the agent as secrets: it neither shows nor records them.

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::secret::Resolver;

struct Secrets {
    resolver: Resolver,
}

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Directory of secrets that containers can refer to: files, or directories of files.
    secret_dir: Option<PathBuf>,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Secrets {
    const NAME: &'static str = "environment_secret";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launch.secret_environment"];
    const HANDLES: &'static [&'static str] = &["secrets"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { resolver: Resolver::new(config.secret_dir)? })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for (name, secret) in &container.command.secrets {
            if container.command.environment.contains_key(name) {
                return Err(Error::invalid(format!(
                    "the container sets the environment variable `{name}` to a value and to a secret; request one of them"
                )));
            }
            let failed = || format!("the secret for the environment variable `{name}` cannot be used");
            let value = self.resolver.resolve(secret).context(failed())?;
            let value = String::from_utf8(value)
                .ok()
                .filter(|value| !value.contains('\0'))
                .ok_or_else(|| Error::invalid("it is not UTF-8 text without NUL").context(failed()))?;
            prepared = prepared.secret_environment(name, value);
        }
        Ok(prepared)
    }
}
