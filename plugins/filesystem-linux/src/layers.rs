//! The directories of an overlay root file system.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{mount, tree};

const UPPER: &str = "upper";
const WORK: &str = "work";

/// The canonical path of a requested root file system, so that the directory that was checked is the one that is
/// mounted.
///
/// # Errors
/// If it is not the absolute path of a directory.
pub fn canonical_rootfs(rootfs: &Path) -> Result<PathBuf> {
    let refused = |why: &str| Error::invalid(format!("the root file system `{}` {why}", rootfs.display()));
    if !rootfs.is_absolute() {
        return Err(refused("is not an absolute path"));
    }
    let real =
        fs::canonicalize(rootfs).map_err(|error| Error::from(error).context(refused("cannot be used")))?;
    if real.is_dir() { Ok(real) } else { Err(refused("is not a directory")) }
}

/// An overlay of directories, topmost first, and an upper layer in the container's scratch directory, to which all changes
/// are written.
pub fn overlay(lower: Vec<PathBuf>, scratch: &Path) -> Result<Root> {
    if !scratch.is_absolute() {
        return Err(Error::new("the container has no scratch directory"));
    }
    let topmost = lower.first().ok_or_else(|| Error::new("the root file system has no layers"))?;
    let metadata = fs::metadata(topmost)
        .context(format!("cannot inspect the root file system `{}`", topmost.display()))?;
    let (upper, work) = (scratch.join(UPPER), scratch.join(WORK));
    // `/` of the container has the owner and permissions of the upper layer, so they are copied from the lower one.
    create(&upper, metadata.mode() & 0o7777)?;
    let inspected = mount::can_have_upper_layer(&upper);
    if !inspected.context(format!("cannot inspect the file system of `{}`", upper.display()))? {
        return Err(Error::new(format!(
            "`{}` is on an overlay file system, as in a container, where the changes of a container to its root file system cannot \
             be written; let the agent's `work_dir` be a volume or a tmpfs, or set `scratch_memory`",
            scratch.display()
        )));
    }
    chown(&upper, Some(metadata.uid()), Some(metadata.gid())).context(format!(
        "cannot change the owner of `{}` to user {}",
        upper.display(),
        metadata.uid()
    ))?;
    create(&work, 0o700)?;
    Ok(Root::Overlay { lower, upper, work })
}

/// Creates a directory. Fails if it exists, because the container would see its content.
fn create(directory: &Path, mode: u32) -> Result<()> {
    fs::create_dir(directory)
        // Set separately, as the umask applies to mkdir(2).
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(mode)))
        .context(format!("cannot create `{}`", directory.display()))
}

/// Removes both directories of [`overlay`] with their content.
pub fn remove(scratch: &Path) -> Result<()> {
    // Empty for an unknown container; a relative path would be resolved in the agent's working directory.
    if !scratch.is_absolute() {
        return Ok(());
    }
    for name in [UPPER, WORK] {
        let path = scratch.join(name);
        tree::remove(&path).context(format!("cannot remove the container's layer `{}`", path.display()))?;
    }
    Ok(())
}
