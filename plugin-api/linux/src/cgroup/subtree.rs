//! The walk through a cgroup and the cgroups below it, which the processes in them may have created: at any depth, in any
//! number, and while they are walked.
//!
//! Each is named by a descriptor, so that no path is too long. Nothing recurses, and few directories are open.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, RawDir, openat2};
use rustix::io::Errno;

use super::{Cgroup, CgroupError};
use crate::descent::{Above, Descent, HERE, LIST, Level};

/// Bytes of a directory that are listed at a time.
const BUFFER: usize = 4 << 10;

/// A cgroup that is open, and what of it was listed.
///
/// A position in a directory of this file system is the hash of a name, which several can have: whoever seeks to it gets
/// any of them, again or not at all, and a container chooses the names. So nothing seeks: a directory is listed from its
/// beginning to its end by one descriptor, for which the kernel knows the entry itself. The names that are kept are in
/// proportion to the cgroups that exist, each of which takes several times as much memory in the kernel.
struct Listed {
    directory: Arc<OwnedFd>,
    /// Names of cgroups in it that were not entered yet.
    names: VecDeque<CString>,
    is_complete: bool,
}

impl Level for Listed {
    type Kept = VecDeque<CString>;

    fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    fn keep(&mut self) -> Result<Self::Kept, Errno> {
        while !self.is_complete {
            self.list()?;
        }
        Ok(std::mem::take(&mut self.names))
    }

    fn reopened(directory: OwnedFd, names: Self::Kept) -> Self {
        Self { directory: Arc::new(directory), names, is_complete: true }
    }
}

impl Listed {
    /// One that was just opened.
    fn begin(directory: Arc<OwnedFd>) -> Self {
        Self { directory, names: VecDeque::new(), is_complete: false }
    }

    /// The name of the next cgroup in it.
    fn next(&mut self) -> Result<Option<CString>, Errno> {
        while self.names.is_empty() && !self.is_complete {
            self.list()?;
        }
        Ok(self.names.pop_front())
    }

    /// Lists another part of it.
    fn list(&mut self) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(&*self.directory, &mut buffer);
        loop {
            match entries.next() {
                // It was removed.
                None | Some(Err(Errno::NOENT)) => {
                    self.is_complete = true;
                    return Ok(());
                }
                Some(entry) => {
                    let entry = entry?;
                    let name = entry.file_name();
                    if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                        self.names.push_back(name.to_owned());
                    }
                }
            }
            if entries.is_buffer_empty() {
                return Ok(());
            }
        }
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
                descent.enter(Listed::begin(directory)).map_err(of_kernel)?;
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
        Ok(Listed::begin(Arc::new(directory)))
    }
}
