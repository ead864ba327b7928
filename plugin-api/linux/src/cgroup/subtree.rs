//! The walk through a cgroup and the cgroups below it, which the processes in them may have created: at any depth, in any
//! number, and while they are walked.
//!
//! Each is named by a descriptor, so that no path is too long. Nothing recurses, and few directories are open.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, RawDir, SeekFrom, openat2, seek};
use rustix::io::Errno;

use super::{Cgroup, CgroupError};
use crate::descent::{Above, Descent, HERE, LIST, Level};

/// Bytes of a directory that are listed for the next cgroup in it.
const BUFFER: usize = 1 << 10;

/// A cgroup that is open, and how far it is listed.
struct Listed {
    directory: Arc<OwnedFd>,
    position: u64,
}

impl Level for Listed {
    type Kept = u64;

    fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    fn keep(&self) -> u64 {
        self.position
    }

    fn reopened(directory: OwnedFd, position: u64) -> Self {
        Self { directory: Arc::new(directory), position }
    }
}

impl Listed {
    /// The name of the next cgroup in it.
    fn next(&mut self) -> Result<Option<CString>, Errno> {
        seek(&*self.directory, SeekFrom::Start(self.position))?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(&*self.directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // It was removed.
                Err(Errno::NOENT) => return Ok(None),
                entry => entry?,
            };
            self.position = entry.next_entry_cookie();
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }
}

impl Cgroup {
    /// Calls `visit` with the cgroup and then with all cgroups below it, parents before children. One that is created or
    /// removed meanwhile may be missing, and it is no error if `visit` finds that a cgroup is gone, also the first one.
    ///
    /// # Errors
    /// Those of `visit`, [`CgroupError::TooMany`] after `limit` cgroups, and those of the kernel.
    pub fn walk(
        &self,
        limit: u64,
        mut visit: impl FnMut(&Self) -> Result<(), CgroupError>,
    ) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Read { path: self.path.clone(), source };
        let of_kernel = |errno: Errno| failed(errno.into());
        let mut visit = |cgroup: &Self| match visit(cgroup) {
            Err(error) if error.is_missing() => Ok(()),
            visited => visited,
        };
        visit(self)?;
        match self.has_children() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        let mut descent = Descent::default();
        let top = self.list().map_err(failed)?;
        descent.enter(top).map_err(of_kernel)?;
        let mut visited = 1;
        while let Some(level) = descent.innermost() {
            let Some(name) = level.next().map_err(of_kernel)? else {
                match descent.leave() {
                    Some((_, Above::Moved(errno))) => return Err(of_kernel(errno)),
                    _ => continue,
                }
            };
            let open = |level: &Listed| match openat2(&*level.directory, &name, LIST, Mode::empty(), HERE) {
                Err(Errno::NOENT) => Ok(None),
                opened => opened.map(Some),
            };
            let Some(directory) = descent.open_below(open).map_err(of_kernel)? else { continue };
            if visited >= limit {
                return Err(CgroupError::TooMany { path: self.path.clone(), limit });
            }
            visited += 1;
            let directory = Arc::new(directory);
            let below = self.below(Arc::clone(&directory));
            visit(&below)?;
            if below.has_children().map_err(failed)? {
                descent.enter(Listed { directory, position: 0 }).map_err(of_kernel)?;
            }
        }
        Ok(())
    }

    /// One below it that is open.
    fn below(&self, directory: Arc<OwnedFd>) -> Self {
        let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        // The path is too long for the kernel if it is deep.
        let path = path.unwrap_or_else(|_| self.path.join("…"));
        Self { path, version: self.version, directory: Some(directory) }
    }

    /// Whether there may be cgroups below it. Listing all interface files costs more than this.
    fn has_children(&self) -> io::Result<bool> {
        let links = match &self.directory {
            Some(directory) => rustix::fs::fstat(directory)?.st_nlink,
            None => fs::metadata(&self.path)?.nlink(),
        };
        // Its own entry and `.`, but no `..` of a directory below.
        Ok(links != 2)
    }

    fn list(&self) -> io::Result<Listed> {
        let directory = match &self.directory {
            Some(directory) => rustix::fs::openat(directory, c".", LIST, Mode::empty())?,
            None => File::open(&self.path)?.into(),
        };
        Ok(Listed { directory: Arc::new(directory), position: 0 })
    }
}
