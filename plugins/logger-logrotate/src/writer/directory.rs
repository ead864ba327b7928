//! The sandbox, in which the files are. The container can change every name in it at any time, so a file is opened
//! without effect on it, checked, and used by its descriptor from then on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use cofferdam_plugin_api::foreign::{self, OpenError, Resolve};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// A directory whose names others can change.
#[derive(Debug, Clone)]
pub(super) struct Directory(Rc<OwnedFd>);

impl Directory {
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self(Rc::new(directory))
    }

    /// Opens a file of our own. `None` if there is none, or something else has been put there: a link, a device, a file of
    /// another user, or one with another name, that could be anywhere.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<File>> {
        let open = || {
            let found = foreign::find(&*self.0, Path::new(name), Resolve::WithoutLinks)?;
            foreign::check_regular(&found)?;
            Ok::<_, OpenError>(File::from(foreign::reopen(&found, OFlags::RDWR)?))
        };
        match open() {
            Ok(file) => {
                let metadata = file.metadata()?;
                let is_own = metadata.uid() == geteuid().as_raw() && metadata.nlink() == 1;
                Ok(is_own.then_some(file))
            }
            Err(OpenError::System(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Creates a file. What has its name is removed, unless it is a directory with content.
    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        let create = || {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(self.0.as_fd(), name, flags, Mode::from_raw_mode(0o644)).map(File::from)
        };
        match create() {
            Err(Errno::EXIST) => {
                self.remove(name);
                Ok(create()?)
            }
            created => Ok(created?),
        }
    }

    /// Whether there is anything with this name.
    pub(super) fn has(&self, name: &str) -> bool {
        statat(self.0.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether the name is that of an open file.
    pub(super) fn is(&self, name: &str, file: &File) -> io::Result<bool> {
        let found = statat(self.0.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let open = fstat(file)?;
        Ok(found.is_some_and(|found| (found.st_dev, found.st_ino) == (open.st_dev, open.st_ino)))
    }

    /// The size of a file; 0 if it is none.
    pub(super) fn size(&self, name: &str) -> u64 {
        let found = statat(self.0.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let file = found.filter(|found| FileType::from_raw_mode(found.st_mode).is_file());
        file.and_then(|file| u64::try_from(file.st_size).ok()).unwrap_or_default()
    }

    /// Renames a file. What has the new name is replaced, unless it is a directory with content.
    ///
    /// # Errors
    /// Those that say nothing of the new name, such as of a disk. Nothing has been renamed or removed.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<Renamed> {
        let rename = || renameat(self.0.as_fd(), from, self.0.as_fd(), to);
        let is_in_the_way =
            |errno| matches!(errno, Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR);
        let renamed = match rename() {
            Err(errno) if is_in_the_way(errno) => {
                self.remove(to);
                rename()
            }
            renamed => renamed,
        };
        match renamed {
            Ok(()) => Ok(Renamed::Done),
            Err(Errno::NOENT) => Ok(Renamed::Missing),
            Err(errno) if is_in_the_way(errno) => Ok(Renamed::Blocked),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes a file, or an empty directory that the container has put in its place.
    pub(super) fn remove(&self, name: &str) {
        if unlinkat(self.0.as_fd(), name, AtFlags::empty()) == Err(Errno::ISDIR) {
            // Otherwise it stays.
            let _ = unlinkat(self.0.as_fd(), name, AtFlags::REMOVEDIR);
        }
    }
}

/// What has become of a file that was to be renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renamed {
    Done,
    /// There is no such file.
    Missing,
    /// A directory with content has the new name.
    Blocked,
}
