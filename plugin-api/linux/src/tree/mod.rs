//! Removal of directory trees that a container has written.
//!
//! ```text
//! remove ─▶ rmdir, enough for most ─▶ walk.rs   directory by directory, innermost first
//!                                        │
//!                                        ▼
//!                                     entry.rs  one entry, and what prevents its removal
//! ```
//!
//! Whoever wrote the tree is not trusted, and may still be writing. So:
//!
//! - Every entry is named relative to a descriptor of its directory. No path is resolved twice, no link is followed, and
//!   neither the length of a path nor the depth of the tree matters.
//! - No mount point is crossed. What is mounted in the tree is detached, not removed.
//! - Nothing recurses. The number of descriptors is bounded, and smaller if the process has few left.
//! - Immutable and append-only entries, and directories without permissions, are changed so that they can be removed.
//! - One entry that cannot be removed does not keep the others. It is reported.
//! - It ends even if entries are added all the time.

mod entry;
mod walk;

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use walk::Walk;

/// How many entries one call removes. A tree that grows as fast as it is removed ends a call at this.
const MAX_ENTRIES: u64 = 1 << 24;

/// How many entries an error names.
const MAX_NAMED: usize = 3;

/// An entry that was not removed.
#[derive(Debug)]
pub struct Left {
    /// Its path, as far as the kernel can tell.
    pub path: PathBuf,
    /// Why it was not removed.
    pub source: io::Error,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path.display(), self.source)
    }
}

/// Why a tree was not removed, or not completely.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The directory that contains it cannot be opened.
    #[error("cannot open the directory of `{}`", path.display())]
    Parent {
        /// The tree.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Entries cannot be removed. All others were.
    #[error(
        "{count} entries in `{}` cannot be removed, everything else was: {}{}",
        path.display(),
        named.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        if *count > named.len() as u64 { "; …" } else { "" }
    )]
    Left {
        /// The tree.
        path: PathBuf,
        /// Number of entries, without the directories that contain them.
        count: u64,
        /// The first of them.
        named: Vec<Left>,
    },
    /// So many entries were removed that the tree is large or grows. Another call continues.
    #[error(
        "`{}` is not empty after {entries} entries in it were removed: it is large, or a process still writes to it",
        path.display()
    )]
    Unfinished {
        /// The tree.
        path: PathBuf,
        /// Number of entries.
        entries: u64,
    },
}

impl RemoveError {
    /// Whether entries are left only because they are in use, or grow.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Parent { .. } => false,
            Self::Left { named, .. } => {
                named.iter().all(|left| left.source.kind() == io::ErrorKind::ResourceBusy)
            }
            Self::Unfinished { .. } => true,
        }
    }

    /// Whether another call continues.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        matches!(self, Self::Unfinished { .. })
    }
}

/// Removes a directory with everything in it, or a file. A missing one is no error. Blocks.
///
/// The path up to the last component is trusted: only the caller and more privileged users may be able to change it. If
/// the last component is a link, the link is removed; if something is mounted on it, that is detached first.
///
/// # Errors
/// [`RemoveError`]. What can be removed was removed; the call can be repeated.
pub fn remove(path: &Path) -> Result<(), RemoveError> {
    remove_tree(path, Kind::Files, MAX_ENTRIES)
}

/// As [`remove`], for a caller that has no time for a large tree: after about `entries` entries it ends with
/// [`RemoveError::Unfinished`], and another call continues.
///
/// # Errors
/// As [`remove`].
pub fn remove_at_most(path: &Path, entries: u64) -> Result<(), RemoveError> {
    remove_tree(path, Kind::Files, entries.min(MAX_ENTRIES))
}

/// Removes a cgroup and those below it, which processes in it may have created at any depth. A missing one is no error.
/// The files in them are the kernel's, and no obstacle; processes are. Blocks.
///
/// # Errors
/// As [`remove`].
pub fn remove_cgroups(path: &Path) -> Result<(), RemoveError> {
    remove_tree(path, Kind::Cgroups, MAX_ENTRIES)
}

/// What a tree consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Files,
    Cgroups,
}

fn remove_tree(path: &Path, kind: Kind, limit: u64) -> Result<(), RemoveError> {
    let parent_error = |source| RemoveError::Parent { path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(parent_error(io::ErrorKind::InvalidInput.into()));
    };
    // Most are empty. No descriptor is needed for these.
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    let name = CString::new(name.as_bytes()).map_err(|error| parent_error(error.into()))?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.map_err(|errno| parent_error(errno.into()))?,
    };
    let mut walk = Walk::new(parent.as_fd(), &name, kind, limit);
    let is_finished = walk.run();
    match walk.left() {
        _ if !is_finished => Err(RemoveError::Unfinished { path: path.to_owned(), entries: limit }),
        (0, _) => Ok(()),
        (count, named) => Err(RemoveError::Left { path: path.to_owned(), count, named }),
    }
}

#[cfg(test)]
mod tests;
