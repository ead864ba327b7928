//! Opens files in directories that others write to, such as those of containers.
//!
//! A file is found with `O_PATH`, which has no effect on it, and opened for reading only after it is known to be a
//! regular file: opening a FIFO waits for a writer, and opening a device can do anything. It is opened through the
//! descriptor that was checked, so it does not matter what happens to its path meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// How a path below a directory is resolved. No way leads out of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// As if the directory were `/`.
    InRoot,
    /// A symbolic link or `..` that leads out of the directory is an error.
    Beneath,
    /// A symbolic link is an error.
    WithoutLinks,
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path leads out of the directory, or through a symbolic link where none may be.
    #[error("its path leads out of the directory, or through a symbolic link")]
    Outside,
    /// It is a directory, a device, a FIFO or a socket.
    #[error("it is not a regular file")]
    NotRegular,
    /// A system call failed.
    #[error(transparent)]
    System(io::Error),
}

impl OpenError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::System(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    }
}

impl From<Errno> for OpenError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::XDEV | Errno::LOOP => Self::Outside,
            other => Self::System(other.into()),
        }
    }
}

/// Finds what is at a path below a directory, as a descriptor that can be neither read nor written.
///
/// # Errors
/// [`OpenError::Outside`], or the error of openat2(2).
pub fn find(directory: impl AsFd, path: &Path, resolve: Resolve) -> Result<OwnedFd, OpenError> {
    let resolve = match resolve {
        Resolve::InRoot => ResolveFlags::IN_ROOT,
        Resolve::Beneath => ResolveFlags::BENEATH,
        Resolve::WithoutLinks => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    };
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(directory, path, flags, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS)?)
}

/// Opens what was found for reading, if it is a regular file.
///
/// # Errors
/// [`OpenError::NotRegular`], or the error of open(2).
pub fn open_regular(found: impl AsFd) -> Result<File, OpenError> {
    check_regular(&found)?;
    Ok(reopen(found, OFlags::RDONLY)?.into())
}

/// Checks that what was found is a regular file.
///
/// # Errors
/// [`OpenError::NotRegular`], or the error of fstat(2).
pub fn check_regular(found: impl AsFd) -> Result<(), OpenError> {
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(OpenError::NotRegular),
    }
}

/// Opens what was found and checked with any flags.
///
/// # Errors
/// The error of open(2).
pub fn reopen(found: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
    openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

/// Opens a directory by a path that nobody else can change.
///
/// # Errors
/// The error of open(2).
pub fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(at: &Path, path: &str, resolve: Resolve) -> Result<String, OpenError> {
        let mut text = String::new();
        open_regular(find(directory(at)?, Path::new(path), resolve)?)?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn only_regular_files_are_opened_and_no_link_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = outside.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "text").unwrap();
        symlink("file", root.join("inside")).unwrap();
        symlink("/file", root.join("absolute")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        symlink("/proc/self/fd/0", root.join("magic")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        for resolve in [Resolve::InRoot, Resolve::Beneath, Resolve::WithoutLinks] {
            assert_eq!(open(&root, "file", resolve).unwrap(), "text");
            assert!(matches!(open(&root, "fifo", resolve), Err(OpenError::NotRegular)), "{resolve:?}");
            assert!(matches!(open(&root, "", resolve), Err(OpenError::NotRegular)), "{resolve:?}");
            assert!(open(&root, "missing", resolve).unwrap_err().is_missing(), "{resolve:?}");
            assert!(open(&root, "file/x", resolve).unwrap_err().is_missing(), "{resolve:?}");
            for path in ["outside", "../secret", "magic", "loop"] {
                assert!(open(&root, path, resolve).is_err(), "{path}, {resolve:?}");
            }
        }
        assert_eq!(open(&root, "inside", Resolve::Beneath).unwrap(), "text");
        assert_eq!(open(&root, "absolute", Resolve::InRoot).unwrap(), "text");
        assert!(matches!(open(&root, "absolute", Resolve::Beneath), Err(OpenError::Outside)));
        assert!(matches!(open(&root, "inside", Resolve::WithoutLinks), Err(OpenError::Outside)));
    }
}
