//! The volumes of an image: directories that its command writes to.
//!
//! In a root file system that the container can write to, a directory of it is as good as a volume, as both end with the
//! container, so the volume only has to exist. In a read-only one, it is a directory in the container's scratch directory, with
//! the owner and permissions of that in the image.

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::model::{ImageConfig, ImageRoot, Owner};
use cofferdam_plugin_api::prelude::*;

/// More volumes than an image has, unless its author wants to keep the agent busy.
const MAX_VOLUMES: usize = 64;

/// Permission bits of a directory that the image does not have.
const MODE: u32 = 0o755;

/// Where the volumes of a container are in its scratch directory.
const DIRECTORY: &str = "image-volumes";

/// Adds the volumes of an image, except those at whose path the request has one.
///
/// # Errors
/// If a path is invalid, or if the image has files in a volume of a read-only root file system.
pub fn add(mut prepared: Prepared, container: &NewContainer, image: &ImageConfig) -> Result<Prepared> {
    if image.volumes.len() > MAX_VOLUMES {
        return Err(Error::invalid(format!(
            "the image has {} volumes; the maximum is {MAX_VOLUMES}",
            image.volumes.len()
        )));
    }
    let is_read_only =
        container.linux.read_only_root || matches!(container.image_root, Some(ImageRoot::ReadOnly { .. }));
    for (number, volume) in image.volumes.iter().enumerate() {
        let path = path_of(volume)?;
        if container.volumes.iter().any(|requested| same(&requested.container_path, &path)) {
            continue;
        }
        let existing = existing(container, &path)?;
        if is_read_only {
            let source = directory(container, &path, existing.as_ref(), number)?;
            let flags = ["nodev".to_owned(), "nosuid".to_owned()].into();
            prepared = prepared.operation(Operation::Bind { source, target: path, recursive: false, flags });
        } else if existing.is_none() {
            prepared = prepared.operation(Operation::Mkdir { path, mode: MODE, owner: Owner::default() });
        }
    }
    Ok(prepared)
}

/// The path of a volume.
fn path_of(volume: &str) -> Result<PathBuf> {
    let path: PathBuf = Path::new(volume).components().collect();
    let mut names = path.components().skip(1);
    let is_valid = path.is_absolute()
        && !volume.contains('\0')
        && names.clone().all(|name| matches!(name, Component::Normal(_)))
        && names.next().is_some();
    match is_valid {
        true => Ok(path),
        false => Err(Error::invalid(format!(
            "the image has a volume at `{}`; expected an absolute path without `..`, and not `/`",
            volume.escape_debug()
        ))),
    }
}

fn same(requested: &Path, path: &Path) -> bool {
    requested.components().collect::<PathBuf>() == path
}

/// What the image has at the path of a volume.
fn existing(container: &NewContainer, path: &Path) -> Result<Option<OwnedFd>> {
    let rootfs = container.rootfs.as_ref().ok_or_else(|| Error::new("the image has no root file system"))?;
    let root = foreign::directory(rootfs).map_err(std::io::Error::from)?;
    match foreign::find(&root, path.strip_prefix("/")?, Resolve::InRoot) {
        Err(error) if error.is_missing() => Ok(None),
        found => found.map(Some).context(format!("the volume `{}` of the image", path.display())),
    }
}

/// Creates a directory for a volume of a read-only root file system.
fn directory(
    container: &NewContainer,
    path: &Path,
    existing: Option<&OwnedFd>,
    number: usize,
) -> Result<PathBuf> {
    let (mut mode, mut owner) = (MODE, (0, 0));
    if let Some(found) = existing {
        let named = || format!("the volume `{}` of the image", path.display());
        let shown = format!("/proc/self/fd/{}", found.as_raw_fd());
        let metadata = fs::metadata(&shown).context(named())?;
        (mode, owner) = (metadata.mode() & 0o7777, (metadata.uid(), metadata.gid()));
        if fs::read_dir(&shown).context(named())?.next().is_some() {
            return Err(Error::invalid(format!(
                "the image has files in its volume `{}`, which would be hidden, as the root file system is read-only; \
                 request a volume of your own there, or set `volumes` of this plugin to false",
                path.display()
            )));
        }
    }
    let parent = container.scratch.join(DIRECTORY);
    let created = parent.join(number.to_string());
    let create = || {
        DirBuilder::new().recursive(true).mode(0o711).create(&parent)?;
        DirBuilder::new().mode(0o700).create(&created)?;
        chown(&created, Some(owner.0), Some(owner.1))?;
        // Set separately, as the umask applies to mkdir(2).
        fs::set_permissions(&created, Permissions::from_mode(mode))
    };
    create().context(format!("cannot create `{}`", created.display()))?;
    Ok(created)
}
