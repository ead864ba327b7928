//! Presents secrets to a container as files.
//!
//! A secret is in a file in memory, which is in no directory of the host and is mounted by its descriptor. The kernel frees
//! it with the container's mount namespace. So no value is on a disk, in a request for the launch or in a record.

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use cofferdam_plugin_api::model::{ContainerClass, VolumeSource};
use cofferdam_plugin_api::mount;
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::secret::Resolver;
use cofferdam_plugin_api::volume::{self, Kind};

/// Permission bits of a file: for the container's user only.
const MODE: u32 = 0o400;

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
    const NAME: &'static str = "volume/secret";
    const NESTING: bool = true;
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    // Nodes of devices would be created in a volume at `/dev`.
    const AFTER: &'static [&'static str] = &["filesystem/linux", "linux/devices"];
    const FEATURES: &'static [&'static str] = &["container.sandbox_path", "launch.bind_descriptor"];
    const HANDLES: &'static [&'static str] = &["volumes.secret"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { resolver: Resolver::new(config.secret_dir)? })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for requested in &container.volumes {
            let VolumeSource::Secret { secret } = &requested.source else { continue };
            if container.class == ContainerClass::Debug {
                return Err(Error::invalid(
                    "a debug container has the mounts of its parent, and cannot have volumes",
                ));
            }
            let failed = || format!("the secret for `{}` cannot be used", requested.container_path.display());
            let value = self.resolver.resolve(secret).context(failed())?;
            let target = volume::target(container, &requested.container_path, Kind::File)?;
            let file = mount::file(&value, MODE, (container.uid, container.gid)).context(failed())?;
            prepared = prepared.bind_descriptor(file, target, ["ro"]);
        }
        Ok(prepared)
    }
}
