//! The folders of which a root file system is made.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::prelude::*;

const UPPER: &str = "upper";
const WORK: &str = "work";

/// The folder that a container named as its root file system, without symbolic links: what is checked
/// here is what is mounted later.
pub fn folder(rootfs: &Path) -> Result<PathBuf> {
    let refused = |why: &str| Error::new(format!("the root file system `{}` {why}", rootfs.display()));
    if !rootfs.is_absolute() {
        return Err(refused("is not an absolute path"));
    }
    let real =
        fs::canonicalize(rootfs).map_err(|error| Error::from(error).context(refused("cannot be used")))?;
    if real.is_dir() { Ok(real) } else { Err(refused("is not a folder")) }
}

/// The folder below a layer of the container's own, which takes all changes.
pub fn overlay(lower: PathBuf, scratch: &Path) -> Result<Root> {
    if !scratch.is_absolute() {
        return Err(Error::new("the agent gave the container no scratch directory"));
    }
    let metadata =
        fs::metadata(&lower).context(format!("cannot look at the root file system `{}`", lower.display()))?;
    let (upper, work) = (scratch.join(UPPER), scratch.join(WORK));
    // The container's `/` is the upper layer's: same owner and permissions as the folder's.
    make(&upper, metadata.mode() & 0o7777)?;
    chown(&upper, Some(metadata.uid()), Some(metadata.gid())).context(format!(
        "cannot give `{}` to user {}",
        upper.display(),
        metadata.uid()
    ))?;
    make(&work, 0o700)?;
    Ok(Root::Overlay { lower: vec![lower], upper, work })
}

/// A directory that was there already would show the container what is in it, so that is an error.
fn make(directory: &Path, mode: u32) -> Result<()> {
    fs::create_dir(directory)
        // Set apart from making it, because the umask would take bits away.
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(mode)))
        .context(format!("cannot make `{}`", directory.display()))
}

/// Removes both directories of [`overlay`], whatever the container put there.
pub fn remove(scratch: &Path) -> Result<()> {
    // A container that was never seen has none, and a relative path would mean the agent's own directory.
    if !scratch.is_absolute() {
        return Ok(());
    }
    for name in [UPPER, WORK] {
        let path = scratch.join(name);
        // Never follows a symbolic link, not even one that is put there meanwhile.
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::from(error)
                    .context(format!("cannot remove the container's layer `{}`", path.display())));
            }
            _ => {}
        }
    }
    Ok(())
}
