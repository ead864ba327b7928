//! Where volumes are mounted in containers.

use std::fs::metadata;
use std::path::{Component, Path, PathBuf};

use cofferdam_linux::foreign;

use crate::{Error, NewContainer, Result, ResultExt};

/// What a volume is, and so what its mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// The path of a container at which to mount a volume whose requested path is `container_path`, for
/// [`Prepared::bind_descriptor`](crate::Prepared::bind_descriptor) and operations.
///
/// A relative path is one in the container's sandbox; if the container has no root file system, its mount point is created
/// there. An absolute path has to exist then; in a root file system of the container's own, the agent creates it.
///
/// # Errors
/// If the path is empty, contains `..`, is that of the root or the sandbox itself, or does not exist and cannot be created.
pub fn target(container: &NewContainer, container_path: &Path, kind: Kind) -> Result<PathBuf> {
    let refused = |why: &str| {
        Err(Error::new(format!("the container requests a volume at `{}`, {why}", container_path.display())))
    };
    let mut names = container_path.components().filter(|component| *component != Component::RootDir);
    if names.clone().any(|component| component == Component::ParentDir) {
        return refused("which contains `..`; write the path without it");
    }
    if !names.any(|component| matches!(component, Component::Normal(_))) {
        return refused("which is not the path of a file or directory");
    }
    match (container_path.is_absolute(), container.rootfs.is_some()) {
        (true, true) => Ok(container_path.to_owned()),
        (true, false) if metadata(container_path).is_ok() => Ok(container_path.to_owned()),
        (true, false) => {
            refused("which does not exist on the host, and the container has no root file system of its own")
        }
        (false, true) => Ok(container.sandbox_in_container().join(container_path)),
        (false, false) => {
            let doing = || format!("cannot create `{}` in the sandbox", container_path.display());
            let sandbox = foreign::directory(&container.sandbox).context(doing())?;
            let owner = Some((container.uid, container.gid));
            match kind {
                Kind::Directory => foreign::create_directories(&sandbox, container_path, owner).map(drop),
                Kind::File => foreign::create_file(&sandbox, container_path, owner).map(drop),
            }
            .context(doing())?;
            Ok(container.sandbox.join(container_path))
        }
    }
}
