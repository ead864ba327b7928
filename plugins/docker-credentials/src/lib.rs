//! Removes credentials for registries from the sandbox of a container, when nothing is pulled with them any more.
//!
//! The sandbox is hostile: what was fetched may be links, and processes of a parent may change it. So each file is removed
//! below the descriptor of the sandbox, and no link on the way is followed.

#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, OpenError};
use cofferdam_plugin_api::model::PostFetch;
use cofferdam_plugin_api::prelude::*;

struct Credentials {
    files: Vec<PathBuf>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Files to remove, relative to the sandbox.
    #[serde(default = "files_of_docker")]
    files: Vec<PathBuf>,
}

/// The files in which the docker containerizer looks for credentials.
fn files_of_docker() -> Vec<PathBuf> {
    vec![".docker/config.json".into(), ".dockercfg".into()]
}

#[cofferdam_plugin_api::hook]
impl Hook for Credentials {
    const NAME: &'static str = "docker/credentials";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        for file in &config.files {
            let is_below = file.components().all(|component| matches!(component, Component::Normal(_)));
            if !is_below || file.as_os_str().is_empty() {
                return Err(Error::new(format!(
                    "`{}` in `files` is not a path relative to the sandbox, without `.` and `..`",
                    file.display()
                )));
            }
        }
        Ok(Self { files: config.files })
    }

    fn post_fetch(&self, call: &HookCall<'_, PostFetch>) -> Result<()> {
        let sandbox = call.sandbox()?;
        for file in &self.files {
            match foreign::remove_file(sandbox, file) {
                Ok(true) => info!(container = call.container(), "removed `{}`", file.display()),
                Ok(false) => {}
                Err(error) => return Err(refused(file, error)),
            }
        }
        Ok(())
    }
}

fn refused(file: &Path, error: OpenError) -> Error {
    let error = match error {
        OpenError::Outside => Error::new(
            "a directory on the way is a symbolic link, behind which it would stay; fetch it without links",
        ),
        // Nothing reads credentials from it, so whatever it is was not meant to be there.
        OpenError::NotRegular => Error::new("it is a directory; choose another name for what is fetched"),
        other => other.into(),
    };
    error.context(format!("cannot remove `{}` from the sandbox", file.display()))
}
