//! The directory for what ends with containers, such as the writable layers of their root file systems: on the disk of
//! the work directory, or in memory.
//!
//! In memory it is one tmpfs of limited size for all containers, which stays mounted when the agent ends, as its
//! containers keep running. Pages that a container writes there are charged to the container's memory cgroup. So one
//! that fills its root meets its own memory limit, if it has one, and otherwise the size of the tmpfs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::directory::{SEARCHABLE, create_searchable};

/// Magic number of tmpfs in statfs(2).
const TMPFS: i64 = 0x0102_1994;

/// Prepares the directory: a tmpfs of `size` bytes, or none. Idempotent.
///
/// What it contains belongs to containers that may be running. As long as there is something in a directory on disk,
/// nothing is mounted on it; as long as there is something in the tmpfs, it stays.
///
/// # Errors
/// If the directory cannot be created, read or mounted on.
pub(crate) fn prepare(directory: &Path, size: Option<u64>) -> io::Result<()> {
    create_searchable(directory)?;
    match (size, is_in_memory(directory)?) {
        (None, false) => {}
        (None, true) => release(directory)?,
        (Some(size), true) => mount_remount(directory, flags(), data(size))?,
        (Some(_), false) if !is_empty(directory)? => tracing::warn!(
            "`{}` is used by containers, so it stays on disk; restart the agent when they have ended",
            directory.display()
        ),
        (Some(size), false) => mount("cofferdam-scratch", directory, "tmpfs", flags(), Some(&*data(size)))?,
    }
    Ok(())
}

/// Unmounts the tmpfs, unless a container uses it.
///
/// # Errors
/// If the directory cannot be read, or the kernel refuses.
pub(crate) fn release(directory: &Path) -> io::Result<()> {
    if !is_in_memory(directory)? || !is_empty(directory)? {
        return Ok(());
    }
    match unmount(directory, UnmountFlags::NOFOLLOW) {
        // Somebody looks at it.
        Err(Errno::BUSY) => Ok(()),
        other => Ok(other?),
    }
}

fn flags() -> MountFlags {
    MountFlags::NODEV | MountFlags::NOSUID
}

fn data(size: u64) -> CString {
    // Digits and letters only.
    CString::new(format!("mode=0{SEARCHABLE:o},size={size}")).unwrap_or_default()
}

/// Whether a tmpfs is mounted on the directory.
fn is_in_memory(directory: &Path) -> io::Result<bool> {
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev());
    let parent = directory.parent().unwrap_or(directory);
    let is_mounted = match device(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found? != device(parent)?,
    };
    Ok(is_mounted && statfs(directory)?.f_type == TMPFS)
}

/// Whether no container has anything in it.
fn is_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory.join("containers")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        entries => Ok(entries?.next().is_none()),
    }
}
