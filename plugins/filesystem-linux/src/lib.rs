//! Gives a container its own mounts, and a root file system if it brings one.
//!
//! Nothing is mounted here. What the container is to see is described, and made in its own mount namespace
//! when it exists, so nothing of it is ever visible on the host and nothing can be left behind there. Only
//! the overlay's two directories are made here, in the container's scratch directory.

mod layers;
mod view;

use std::path::PathBuf;

use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;

struct Filesystem {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Where a container with a root file system finds its sandbox.
    sandbox_directory: PathBuf,
    /// Where a container's changes to its root file system are written: with `overlay` to a layer that is removed when
    /// it ends, with `direct` to the directory itself.
    writes: Writes,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, PluginConfig)]
#[serde(rename_all = "lowercase")]
enum Writes {
    Overlay,
    Direct,
}

impl Default for Config {
    fn default() -> Self {
        Self { sandbox_directory: "/mnt/mesos/sandbox".into(), writes: Writes::Overlay }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Filesystem {
    const NAME: &'static str = "filesystem/linux";
    const NESTING: bool = true;
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        if !config.sandbox_directory.is_absolute() || config.sandbox_directory.parent().is_none() {
            return Err(Error::new(format!(
                "`sandbox_directory` is `{}`; it must be an absolute path other than `/`",
                config.sandbox_directory.display()
            )));
        }
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        if container.class == ContainerClass::Debug {
            return match container.rootfs {
                None => Ok(Prepared::new().enter_namespace(Namespace::Mount)),
                Some(_) => Err(Error::new(
                    "a debug container looks into its parent, so it cannot bring a root file system",
                )),
            };
        }
        let prepared = Prepared::new().clone_namespace(Namespace::Mount);
        let Some(rootfs) = &container.rootfs else { return Ok(prepared) };
        let rootfs = layers::checked(rootfs)?;
        let root = match self.config.writes {
            Writes::Direct => Root::Directory { path: rootfs },
            Writes::Overlay => layers::overlay(rootfs, &container.scratch)?,
        };
        let mut prepared = prepared.root(root);
        let inside = &self.config.sandbox_directory;
        let launch = prepared.launch();
        launch.operations = view::of(container, inside);
        launch.working_directory = Some(inside.display().to_string());
        Ok(prepared)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        layers::remove(&container.details()?.scratch)
    }
}

#[cfg(test)]
mod tests;
