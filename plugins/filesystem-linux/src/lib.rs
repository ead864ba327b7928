//! Creates a mount namespace for a container, and its root file system if it requests one.
//!
//! The plugin mounts nothing itself. It returns the operations, which the agent carries out in the container's mount
//! namespace. So the mounts are never visible on the host and do not have to be cleaned up there. The plugin itself
//! creates only the two directories of the overlay, in the container's scratch directory.

mod layers;
mod view;

use std::path::PathBuf;

use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::model::{ContainerClass, ImageRoot};
use cofferdam_plugin_api::prelude::*;

struct Filesystem {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Path of the sandbox in a container with a root file system.
    sandbox_directory: PathBuf,
    /// Where a container's changes to a root file system that is a directory are written: with `overlay` to a layer that
    /// is removed when it ends, with `direct` to the directory itself. Images are never changed.
    writes: Writes,
    /// Maximum size of `/dev/shm` in a container with a root file system.
    shm_size: Size,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, PluginConfig)]
#[serde(rename_all = "lowercase")]
enum Writes {
    Overlay,
    Direct,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sandbox_directory: "/mnt/mesos/sandbox".into(),
            writes: Writes::Overlay,
            shm_size: Size(64 << 20),
        }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Filesystem {
    const NAME: &'static str = "filesystem/linux";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] =
        &["container.image_root", "launch.read_only_root", "launch.sandbox_path", "launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        if !config.sandbox_directory.is_absolute() || config.sandbox_directory.parent().is_none() {
            return Err(Error::new(format!(
                "`sandbox_directory` is `{}`; it must be an absolute path other than `/`",
                config.sandbox_directory.display()
            )));
        }
        if config.shm_size.0 == 0 {
            return Err(Error::new(
                "`shm_size` is 0, which the kernel takes for no limit; expected a size such as \"64 MiB\"",
            ));
        }
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        if container.class == ContainerClass::Debug {
            return match container.rootfs {
                None => Ok(Prepared::new().enter_namespace(Namespace::Mount)),
                Some(_) => Err(Error::invalid(
                    "a debug container shares the mounts of its parent, so it cannot have a root file system",
                )),
            };
        }
        let prepared = Prepared::new().clone_namespace(Namespace::Mount);
        let Some(root) = self.root(container)? else { return Ok(prepared) };
        let inside = &self.config.sandbox_directory;
        let mut prepared = prepared.root(root).sandbox_path(inside.display().to_string());
        prepared.launch().operations = view::operations(container, inside, self.config.shm_size.0);
        Ok(prepared)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        layers::remove(&container.details()?.scratch)
    }
}

impl Filesystem {
    /// The root file system of a container; `None` if it requests none.
    fn root(&self, container: &NewContainer) -> Result<Option<Root>> {
        let root = match (&container.image_root, &container.rootfs) {
            (Some(ImageRoot::Layers { directories }), _) => {
                layers::overlay(directories.clone(), &container.scratch)?
            }
            (Some(ImageRoot::Directory { path }), _) => Root::Directory { path: path.clone() },
            (Some(ImageRoot::ReadOnly { path }), _) => Root::ReadOnly { path: path.clone() },
            (Some(_), _) => {
                return Err(Error::new(
                    "the agent assembles images in a way that this version does not know",
                ));
            }
            (None, None) => return Ok(None),
            (None, Some(rootfs)) => {
                let rootfs = layers::canonical_rootfs(rootfs)?;
                match self.config.writes {
                    Writes::Direct => Root::Directory { path: rootfs },
                    Writes::Overlay => layers::overlay(vec![rootfs], &container.scratch)?,
                }
            }
        };
        Ok(Some(root))
    }
}

#[cfg(test)]
mod tests;
