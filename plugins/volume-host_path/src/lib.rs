//! Mounts files and directories of the host in a container.
//!
//! A path is resolved once. What it leads to is checked, and mounted by its descriptor.

#[cfg(test)]
mod tests;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::model::{ContainerClass, Propagation, VolumeSource};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::volume::{self, Kind};

/// The isolator that mounts relative paths, which are those of the sandbox.
const OF_SANDBOX: &str = "volume/sandbox_path";

struct HostPaths {
    config: Config,
    /// Whether another isolator mounts relative paths.
    leaves_relative: bool,
}

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Directories of the host of which containers can mount what is in them; without this key, of everything. Links are
    /// resolved first.
    allowed_paths: Option<Vec<PathBuf>>,
    /// Directories of the host in which missing directories are created for containers that mount them.
    #[serde(alias = "host_path_volume_force_creation")]
    force_creation: Vec<PathBuf>,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for HostPaths {
    const NAME: &'static str = "volume/host_path";
    const NESTING: bool = true;
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    // Nodes of devices would be created in a volume at `/dev`.
    const AFTER: &'static [&'static str] = &["filesystem/linux", "linux/devices"];
    const FEATURES: &'static [&'static str] = &["container.sandbox_path", "launch.bind_descriptor"];
    const HANDLES: &'static [&'static str] = &["volumes.host_path"];
    type Config = Config;

    fn create(mut config: Config, host: Host) -> Result<Self> {
        for (key, paths) in [
            ("allowed_paths", config.allowed_paths.iter_mut().flatten().collect::<Vec<_>>()),
            ("force_creation", config.force_creation.iter_mut().collect()),
        ] {
            for path in paths {
                let named = || format!("`{key}` has `{}`", path.display());
                if !path.is_absolute() {
                    return Err(Error::new(format!("{}; expected an absolute path", named())));
                }
                let real = fs::canonicalize(&*path).context(named())?;
                *path = real;
            }
        }
        let leaves_relative = host.agent().chain.iter().any(|name| name == OF_SANDBOX);
        Ok(Self { config, leaves_relative })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for requested in &container.volumes {
            let VolumeSource::HostPath { path, propagation } = &requested.source else { continue };
            if path.is_relative() && self.leaves_relative {
                continue;
            }
            if container.class == ContainerClass::Debug {
                return Err(Error::invalid(
                    "a debug container has the mounts of its parent, and cannot have volumes",
                ));
            }
            let source =
                self.open(path).context(format!("the volume `{}` cannot be mounted", path.display()))?;
            let is_directory = fs::metadata(of_descriptor(&source)).is_ok_and(|found| found.is_dir());
            let kind = if is_directory { Kind::Directory } else { Kind::File };
            let target = volume::target(container, &requested.container_path, kind)?;
            let propagation = propagation_of(propagation.as_deref(), requested.read_only)?;
            prepared = prepared.bind_descriptor(source, &target, requested.read_only.then_some("ro"));
            if let Some(propagation) = propagation {
                prepared =
                    prepared.operation(Operation::Propagation { path: target, propagation, recursive: true });
            }
        }
        Ok(prepared)
    }
}

impl HostPaths {
    /// Opens a path of the host, without an effect on what it leads to.
    fn open(&self, path: &Path) -> Result<OwnedFd> {
        let normal = path.components().skip(1).all(|component| matches!(component, Component::Normal(_)));
        if !path.is_absolute() || !normal {
            return Err(Error::invalid("expected an absolute path of the host without `..`"));
        }
        let root = foreign::directory(Path::new("/"))?;
        let relative = path.strip_prefix("/")?;
        let found = match foreign::find(&root, relative, Resolve::InRoot) {
            Err(error) if error.is_missing() => self.create(path)?,
            other => other?,
        };
        if let Some(allowed) = &self.config.allowed_paths {
            let real = fs::read_link(of_descriptor(&found))?;
            if !allowed.iter().any(|allowed| real.starts_with(allowed)) {
                return Err(Error::invalid(format!(
                    "it leads to `{}`, which is in none of the `allowed_paths`",
                    real.display()
                )));
            }
        }
        Ok(found)
    }

    /// Creates a missing directory, if it is in one of `force_creation`.
    fn create(&self, path: &Path) -> Result<OwnedFd> {
        let below =
            self.config.force_creation.iter().find_map(|base| Some((base, path.strip_prefix(base).ok()?)));
        let Some((base, relative)) = below else {
            return Err(Error::invalid(
                "it does not exist on the host, and is in no directory of `force_creation`",
            ));
        };
        if let Some(allowed) = &self.config.allowed_paths
            && !allowed.iter().any(|allowed| path.starts_with(allowed))
        {
            return Err(Error::invalid("it is in none of the `allowed_paths`, and is not created"));
        }
        Ok(foreign::create_directories(foreign::directory(base)?, relative, None)?)
    }
}

/// A path through which a descriptor is followed.
fn of_descriptor(descriptor: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

/// The propagation to set; that of the agent is from the host into the container. What the host mounts later would be
/// writable.
fn propagation_of(requested: Option<&str>, read_only: bool) -> Result<Option<Propagation>> {
    match requested {
        None if read_only => Ok(Some(Propagation::Private)),
        Some("slave") if read_only => Err(Error::invalid(
            "the container requests a read-only volume in which later mounts of the host appear (`HOST_TO_CONTAINER`), \
             which would not be read-only; request one of both",
        )),
        None | Some("slave") => Ok(None),
        Some("private") => Ok(Some(Propagation::Private)),
        Some("shared") => Err(Error::invalid(
            "the container requests a volume whose mounts reach the host (`BIDIRECTIONAL`), which is not supported",
        )),
        Some(other) => Err(Error::invalid(format!(
            "the container requests a volume with the propagation `{other}`; expected `private` or `slave`"
        ))),
    }
}
