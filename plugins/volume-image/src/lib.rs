//! Mounts images in a container.
//!
//! The agent assembles an image for each volume. It is mounted without a place on the host, and the mount is passed on by its
//! descriptor.

#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::model::{ContainerClass, ImageRoot, Propagation, VolumeSource};
use cofferdam_plugin_api::mount::{self, Upper};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::volume::{self, Kind};

/// Where the changes to volumes are in the scratch directory of a container.
const DIRECTORY: &str = "volume-images";

struct Images;

#[cofferdam_plugin_api::isolator]
impl Isolator for Images {
    const NAME: &'static str = "volume/image";
    const NESTING: bool = true;
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    // Nodes of devices would be created in a volume at `/dev`.
    const AFTER: &'static [&'static str] = &["filesystem/linux", "linux/devices"];
    const FEATURES: &'static [&'static str] =
        &["container.sandbox_path", "container.volume_images", "launch.bind_descriptor"];
    const HANDLES: &'static [&'static str] = &["volumes.image"];
    type Config = ();

    fn create(_: (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for (number, requested) in container.volumes.iter().enumerate() {
            let VolumeSource::Image { image, root, .. } = &requested.source else { continue };
            if container.class == ContainerClass::Debug {
                return Err(Error::invalid(
                    "a debug container has the mounts of its parent, and cannot have volumes",
                ));
            }
            let named = || {
                format!(
                    "image `{}` cannot be mounted as volume `{}`",
                    image.escape_debug(),
                    requested.container_path.display()
                )
            };
            let root = root.as_ref().ok_or_else(|| Error::new("the agent has not assembled it"));
            let mounted = root.and_then(|root| match requested.read_only {
                true => read_only(root),
                false => writable(root, &container.scratch, number),
            });
            let mounted = mounted.context(named())?;
            let target = volume::target(container, &requested.container_path, Kind::Directory)?;
            // Who made the image may have put devices of the host into it.
            let flags = requested.read_only.then_some("ro").into_iter().chain(["nodev"]);
            prepared = prepared.bind_descriptor(mounted, &target, flags);
            // The directory may be that of a layer, which other containers use.
            let private = Propagation::Private;
            prepared = prepared.operation(Operation::Propagation {
                path: target,
                propagation: private,
                recursive: true,
            });
        }
        Ok(prepared)
    }
}

/// Mounts the root file system of an image that nobody writes to.
fn read_only(root: &ImageRoot) -> Result<OwnedFd> {
    match root {
        ImageRoot::Layers { directories } if directories.len() > 1 => Ok(mount::overlay(directories, None)?),
        ImageRoot::Layers { directories } => match directories.first() {
            Some(only) => Ok(mount::clone(only, false)?),
            None => Err(Error::new("it has no layers")),
        },
        ImageRoot::Directory { path } | ImageRoot::ReadOnly { path } => Ok(mount::clone(path, false)?),
        _ => Err(unknown()),
    }
}

/// Mounts the root file system of an image with a layer for the changes of the container, which ends with it.
fn writable(root: &ImageRoot, scratch: &Path, number: usize) -> Result<OwnedFd> {
    match root {
        ImageRoot::Layers { directories } => overlay(directories, &scratch.join(DIRECTORY), number),
        ImageRoot::Directory { path } => Ok(mount::clone(path, false)?),
        ImageRoot::ReadOnly { .. } => Err(Error::invalid(
            "`image_backend` of the agent is `bind`, with which nobody can write to an image; request a read-only volume, or \
             choose another backend",
        )),
        _ => Err(unknown()),
    }
}

fn overlay(directories: &[PathBuf], parent: &Path, number: usize) -> Result<OwnedFd> {
    let topmost = directories.first().ok_or_else(|| Error::new("it has no layers"))?;
    let (upper, work) = (parent.join(format!("{number}-upper")), parent.join(format!("{number}-work")));
    let create = || {
        let metadata = fs::metadata(topmost)?;
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        DirBuilder::new().mode(0o700).create(&upper)?;
        DirBuilder::new().mode(0o700).create(&work)?;
        // The directory of the volume has the owner and permissions of the upper layer.
        chown(&upper, Some(metadata.uid()), Some(metadata.gid()))?;
        // Set separately, as the umask applies to mkdir(2).
        fs::set_permissions(&upper, Permissions::from_mode(metadata.mode() & 0o7777))
    };
    create().context(format!("cannot create a layer for its changes in `{}`", parent.display()))?;
    Ok(mount::overlay(directories, Some(Upper { upper: &upper, work: &work }))?)
}

fn unknown() -> Error {
    Error::new("the agent assembles images in a way that this version does not know")
}
