//! Mounts parts of a container's sandbox, or of its parent's, in the container.
//!
//! Others write to a sandbox. A path in it is found and created through descriptors, without links, and mounted by its
//! descriptor.

#[cfg(test)]
mod tests;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cofferdam_plugin_api::foreign::{self, OpenError, Resolve};
use cofferdam_plugin_api::model::{ContainerClass, VolumeSource};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::volume::{self, Kind};

/// The isolator that mounts absolute paths, which are those of the host.
const OF_HOST: &str = "volume/host_path";

struct SandboxPaths {
    /// Whether another isolator mounts absolute paths.
    leaves_absolute: bool,
    /// Held while directories are found and created: containers that are launched at the same time may have volumes below one
    /// that is missing, which is its parent's from its creation on.
    creation: Mutex<()>,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for SandboxPaths {
    const NAME: &'static str = "volume/sandbox_path";
    const NESTING: bool = true;
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    // Nodes of devices would be created in a volume at `/dev`.
    const AFTER: &'static [&'static str] = &["filesystem/linux", "linux/devices"];
    const FEATURES: &'static [&'static str] = &["container.sandbox_path", "launch.bind_descriptor"];
    // A host path that is relative is the older form of a path in the container's own sandbox.
    const HANDLES: &'static [&'static str] = &["volumes.host_path", "volumes.sandbox_path"];
    type Config = ();

    fn create((): (), host: Host) -> Result<Self> {
        let leaves_absolute = host.agent().chain.iter().any(|name| name == OF_HOST);
        Ok(Self { leaves_absolute, creation: Mutex::new(()) })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for requested in &container.volumes {
            let (of_parent, path) = match &requested.source {
                VolumeSource::SandboxPath { parent, path } => (*parent, path),
                VolumeSource::HostPath { path, .. } if path.is_relative() => (false, path),
                VolumeSource::HostPath { path, .. } if !self.leaves_absolute => {
                    return Err(Error::invalid(format!(
                        "the container requests the volume `{}` of the host, which `{OF_HOST}` mounts; add it to the chain",
                        path.display()
                    )));
                }
                _ => continue,
            };
            if container.class == ContainerClass::Debug {
                return Err(Error::invalid(
                    "a debug container has the mounts of its parent, and cannot have volumes",
                ));
            }
            if !of_parent && requested.container_path.is_relative() {
                return Err(Error::invalid(format!(
                    "the container requests `{}` of its sandbox at `{}`, which is in its sandbox too; request an absolute path",
                    path.display(),
                    requested.container_path.display()
                )));
            }
            let sandbox = Sandbox::of(container, of_parent)?;
            let failed = || format!("the volume `{}` of the sandbox cannot be mounted", path.display());
            let creation = self.creation.lock().unwrap_or_else(PoisonError::into_inner);
            let opened = sandbox.open(path);
            drop(creation);
            let (source, kind) = opened.context(failed())?;
            let target = volume::target(container, &requested.container_path, kind)?;
            // As for the sandbox itself.
            let flags = ["nodev", "nosuid"].into_iter().chain(requested.read_only.then_some("ro"));
            prepared = prepared.bind_descriptor(source, target, flags);
        }
        Ok(prepared)
    }
}

/// A sandbox, and the user and group to which its content belongs.
struct Sandbox<'a> {
    path: &'a Path,
    owner: (u32, u32),
}

impl<'a> Sandbox<'a> {
    fn of(container: &'a NewContainer, of_parent: bool) -> Result<Self> {
        if !of_parent {
            return Ok(Self { path: &container.sandbox, owner: (container.uid, container.gid) });
        }
        match &container.parent {
            Some(parent) => Ok(Self { path: &parent.sandbox, owner: (parent.uid, parent.gid) }),
            None => Err(Error::invalid(
                "the container requests a volume of its parent's sandbox, and has no parent",
            )),
        }
    }

    /// Finds what is at a path, or creates a directory there.
    fn open(&self, path: &Path) -> Result<(OwnedFd, Kind)> {
        if path.is_absolute() || path.as_os_str().is_empty() {
            return Err(Error::invalid("expected a path relative to the sandbox"));
        }
        let sandbox = foreign::directory(self.path)?;
        let found = match foreign::find(&sandbox, path, Resolve::WithoutLinks) {
            Err(error) if error.is_missing() => {
                foreign::create_directories(&sandbox, path, Some(self.owner))?
            }
            other => other?,
        };
        let metadata = fs::metadata(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
        match metadata.file_type() {
            kind if kind.is_dir() => Ok((found, Kind::Directory)),
            kind if kind.is_file() => Ok((found, Kind::File)),
            _ => Err(OpenError::NotRegular.into()),
        }
    }
}
