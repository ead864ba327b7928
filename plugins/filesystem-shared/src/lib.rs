//! Gives a container that shares the file system of the host private views of parts of it, such as a `/tmp` of its own.

#[cfg(test)]
mod tests;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::model::VolumeSource;
use cofferdam_plugin_api::prelude::*;

struct Shared;

#[cofferdam_plugin_api::isolator]
impl Isolator for Shared {
    const NAME: &'static str = "filesystem/shared";
    // They mount the same volumes, by other rules.
    const CONFLICTS: &'static [&'static str] = &["volume/host_path", "volume/sandbox_path"];
    // Nodes of devices would be created in a volume at `/dev`.
    const AFTER: &'static [&'static str] = &["filesystem/linux", "linux/devices"];
    const FEATURES: &'static [&'static str] = &["launch.bind_descriptor"];
    const HANDLES: &'static [&'static str] = &["volumes.host_path"];
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        // Without links, as one place may have several names.
        let mut taken: Vec<PathBuf> = vec![place(&container.sandbox)?.0];
        for requested in &container.volumes {
            let VolumeSource::HostPath { path, propagation } = &requested.source else { continue };
            let target = requested.container_path.as_path();
            let failed =
                || format!("the volume `{}` at `{}` cannot be mounted", path.display(), target.display());
            if container.rootfs.is_some() {
                return Err(Error::new(
                    "the container has a root file system of its own; `volume/host_path` mounts there",
                )
                .context(failed()));
            }
            if propagation.as_deref() == Some("shared") {
                return Err(
                    Error::new("mounts in it would reach the host, which is not supported").context(failed())
                );
            }
            check_path(target).context(failed())?;
            let found = place(target).context("its `container_path` has to exist on the host");
            let (target, covered) = found.context(failed())?;
            if let Some(other) =
                taken.iter().find(|other| other.starts_with(&target) || target.starts_with(other))
            {
                let error =
                    Error::new(format!("it would hide, or be hidden by, what is at `{}`", other.display()));
                return Err(error.context(failed()));
            }
            let source = if path.is_absolute() {
                of_host(path)
            } else {
                of_sandbox(&container.sandbox, path, &covered)
            };
            let flags = requested.read_only.then_some("ro");
            prepared = prepared.clone_namespace(Namespace::Mount).bind_descriptor(
                source.context(failed())?,
                &target,
                flags,
            );
            taken.push(target);
        }
        Ok(prepared)
    }
}

/// The path of a place of the host by its descriptor, so that no link is followed later, and what is there.
fn place(path: &Path) -> Result<(PathBuf, fs::Metadata)> {
    let descriptor = of_host(path)?;
    let found = of_descriptor(&descriptor);
    Ok((fs::read_link(&found)?, fs::metadata(found)?))
}

/// Opens a path of the host, which has to exist.
fn of_host(path: &Path) -> Result<OwnedFd> {
    check_path(path)?;
    let root = foreign::directory(Path::new("/"))?;
    Ok(foreign::find(root, path.strip_prefix("/")?, Resolve::InRoot)?)
}

/// Creates a directory in the sandbox, with the owner and the permissions of the one that it covers.
fn of_sandbox(sandbox: &Path, path: &Path, covered: &fs::Metadata) -> Result<OwnedFd> {
    if !covered.is_dir() {
        return Err(Error::new("its `container_path` is not a directory"));
    }
    let sandbox = foreign::directory(sandbox)?;
    let owner = Some((covered.uid(), covered.gid()));
    let directory = foreign::create_directories(sandbox, path, owner)?;
    fs::set_permissions(of_descriptor(&directory), covered.permissions())?;
    Ok(directory)
}

/// A path through which a descriptor is followed.
fn of_descriptor(descriptor: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

/// Checks that a path is absolute, not the root, and without `..`.
fn check_path(path: &Path) -> Result<()> {
    let mut components = path.components();
    let is_absolute = components.next() == Some(Component::RootDir);
    let mut names = components.peekable();
    let is_valid = is_absolute && names.peek().is_some();
    if is_valid && names.all(|component| matches!(component, Component::Normal(_))) {
        return Ok(());
    }
    Err(Error::new(format!(
        "expected an absolute path other than `/`, without `..`, not `{}`",
        path.display()
    )))
}
