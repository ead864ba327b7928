//! The walk through a tree that is removed: depth first, innermost directories first ([`Descent`]).
//!
//! If something was moved, so that an outer directory is not found again, the walk begins again at the top. A directory
//! that was closed is listed again from its beginning, which finds the directory that the walk comes from empty, and
//! removes it.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;

use super::entry::{self, Outcome};
use super::{Kind, Left, MAX_NAMED};
use crate::descent::{self, Above, Descent, Id, LIST};

/// How often a directory is listed to which entries are added, and how often the walk begins again.
const MAX_PASSES: u32 = 8;

/// How many directories that cannot be emptied are known.
const MAX_STUCK: usize = 1 << 16;

/// Bytes of a directory that are listed at once.
const BUFFER: usize = 32 << 10;

/// A directory that is open.
struct Level {
    directory: OwnedFd,
    /// Its name in its parent. `None` if it was evicted meanwhile: then it is found by listing its parent.
    name: Option<CString>,
    /// Directories in it that are not empty and have not been walked yet.
    pending: Vec<CString>,
    /// Whether it was listed to its end.
    listed: bool,
    passes: u32,
    /// Whether something in it cannot be removed.
    failed: bool,
}

impl Level {
    fn new(directory: OwnedFd, name: Option<CString>) -> Self {
        Self { directory, name, pending: Vec::new(), listed: false, passes: 1, failed: false }
    }
}

impl descent::Level for Level {
    type Kept = ();

    fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    fn keep(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    fn reopened(directory: OwnedFd, (): ()) -> Self {
        Self::new(directory, None)
    }

    fn open_above(&self) -> Result<OwnedFd, Errno> {
        let open = || openat(&self.directory, c"..", LIST, Mode::empty());
        open().or_else(|errno| match errno {
            Errno::ACCESS => {
                entry::allow_changes(self.directory.as_fd());
                open()
            }
            _ => Err(errno),
        })
    }
}

pub(super) struct Walk<'t> {
    parent: BorrowedFd<'t>,
    top: &'t CStr,
    kind: Kind,
    /// How many entries may still be removed.
    budget: u64,
    descent: Descent<Level>,
    stuck: HashSet<Id>,
    count: u64,
    named: Vec<Left>,
    buffer: Vec<MaybeUninit<u8>>,
}

/// How a walk from the top ended.
enum End {
    Finished,
    /// There may be more. Not if something was moved all the time.
    Again {
        moved: bool,
    },
    OutOfBudget,
}

impl<'t> Walk<'t> {
    pub(super) fn new(parent: BorrowedFd<'t>, top: &'t CStr, kind: Kind, budget: u64) -> Self {
        Self {
            parent,
            top,
            kind,
            budget,
            descent: Descent::default(),
            stuck: HashSet::new(),
            count: 0,
            named: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Removes the tree as far as possible. Returns false if that was not finished within the budget.
    pub(super) fn run(&mut self) -> bool {
        let mut moved = 0;
        loop {
            match self.pass() {
                End::Finished => return true,
                End::OutOfBudget => return false,
                End::Again { moved: true } if moved == MAX_PASSES => {
                    self.report(None, self.top, Errno::AGAIN);
                    return true;
                }
                End::Again { moved: was_moved } => moved += u32::from(was_moved),
            }
        }
    }

    /// Number of entries that cannot be removed, and the first of them.
    pub(super) fn left(self) -> (u64, Vec<Left>) {
        (self.count, self.named)
    }

    fn pass(&mut self) -> End {
        self.descent = Descent::default();
        match remove(self.kind, self.parent, false, self.top, true) {
            Outcome::Removed => return End::Finished,
            Outcome::NotEmpty => {}
            Outcome::Failed(errno) => {
                self.report(None, self.top, errno);
                return End::Finished;
            }
        }
        match entry::open(self.parent, self.top) {
            Ok(Some(directory)) => self.enter(Level::new(directory, Some(self.top.to_owned()))),
            // It was replaced.
            Ok(None) => return End::Again { moved: true },
            Err(errno) => {
                self.report(None, self.top, errno);
                return End::Finished;
            }
        }
        while let Some(level) = self.descent.innermost() {
            if self.budget == 0 {
                return End::OutOfBudget;
            }
            if let Some(name) = level.pending.pop() {
                self.descend(name);
            } else if !level.listed {
                self.list();
            } else if let Err(end) = self.ascend() {
                return end;
            }
        }
        End::Finished
    }

    /// Reads some entries of the innermost directory and removes those that are no directories with content.
    fn list(&mut self) {
        let Some(level) = self.descent.innermost() else { return };
        self.buffer.resize(BUFFER, MaybeUninit::uninit());
        let mut failed = Vec::new();
        let mut entries = RawDir::new(&level.directory, &mut self.buffer);
        loop {
            let found = match entries.next() {
                None => {
                    level.listed = true;
                    break;
                }
                Some(Err(errno)) => {
                    level.listed = true;
                    failed.push((c".".to_owned(), errno));
                    break;
                }
                Some(Ok(found)) => found,
            };
            let (name, is_directory) = (found.file_name(), found.file_type() == FileType::Directory);
            let is_kernels = self.kind == Kind::Cgroups && !is_directory;
            if name != c"." && name != c".." && !is_kernels {
                self.budget = self.budget.saturating_sub(1);
                match remove(self.kind, level.directory.as_fd(), true, name, is_directory) {
                    Outcome::Removed => {}
                    Outcome::NotEmpty => level.pending.push(name.to_owned()),
                    Outcome::Failed(errno) => failed.push((name.to_owned(), errno)),
                }
            }
            if entries.is_buffer_empty() || self.budget == 0 {
                break;
            }
        }
        level.failed |= !failed.is_empty();
        for (name, errno) in failed {
            self.report_below(&name, errno);
        }
    }

    /// Opens a directory in the innermost one.
    fn descend(&mut self, name: CString) {
        self.budget = self.budget.saturating_sub(1);
        let failure = match self.descent.open_below(|level| entry::open(level.directory.as_fd(), &name)) {
            // It was removed or replaced, which the next pass finds.
            Ok(None) => return,
            Ok(Some(directory)) => match self.is_stuck(&directory) {
                Ok(false) => return self.enter(Level::new(directory, Some(name))),
                // Reported before.
                Ok(true) => None,
                Err(errno) => Some(errno),
            },
            Err(errno) => Some(errno),
        };
        if let Some(level) = self.descent.innermost() {
            level.failed = true;
        }
        if let Some(errno) = failure {
            self.report_below(&name, errno);
        }
    }

    fn enter(&mut self, level: Level) {
        if let Err(errno) = self.descent.enter(level) {
            self.report(None, self.top, errno);
        }
    }

    fn is_stuck(&self, directory: &OwnedFd) -> Result<bool, Errno> {
        Ok(!self.stuck.is_empty() && self.stuck.contains(&Id::of(directory)?))
    }

    /// Removes the innermost directory, of which everything that can be was removed, and returns to its parent.
    fn ascend(&mut self) -> Result<(), End> {
        let (mut level, parent) = match self.descent.leave() {
            None => return Ok(()),
            Some((level, Above::Nothing)) => (level, (self.parent, false)),
            Some((_, Above::Forgotten)) => return Err(End::Again { moved: false }),
            Some((_, Above::Moved(_))) => return Err(End::Again { moved: true }),
            Some((level, Above::Open)) => {
                let is_top = self.descent.is_top();
                let Some(above) = self.descent.innermost() else { return Ok(()) };
                if is_top && above.name.is_none() {
                    above.name = Some(self.top.to_owned());
                }
                (level, (above.directory.as_fd(), true))
            }
        };
        let (parent, is_ours) = parent;
        if let Some(name) = &level.name {
            let busy = if self.kind == Kind::Cgroups { Errno::BUSY } else { Errno::NOTEMPTY };
            let failure = match remove(self.kind, parent, is_ours, name, true) {
                Outcome::Removed => return Ok(()),
                Outcome::NotEmpty if level.failed => None,
                Outcome::NotEmpty if level.passes < MAX_PASSES => {
                    level.passes += 1;
                    level.listed = false;
                    if seek(&level.directory, SeekFrom::Start(0)).is_ok() {
                        self.enter(level);
                        return Ok(());
                    }
                    Some(busy)
                }
                Outcome::NotEmpty => Some(busy),
                Outcome::Failed(errno) => Some(errno),
            };
            if let Some(errno) = failure {
                self.report(Some(&level.directory), c"", errno);
            }
            level.failed = true;
        }
        if level.failed {
            if let Ok(id) = Id::of(&level.directory)
                && self.stuck.len() < MAX_STUCK
            {
                self.stuck.insert(id);
            }
            if let Some(parent) = self.descent.innermost() {
                parent.failed = true;
            }
        }
        Ok(())
    }

    /// Notes an entry of the innermost directory that is left.
    fn report_below(&mut self, name: &CStr, errno: Errno) {
        let path = self.descent.innermost().map(|level| path_of(level.directory.as_fd()));
        self.note(path.unwrap_or_else(|| "…".into()), name, errno);
    }

    /// Notes an entry that is left.
    fn report(&mut self, directory: Option<&OwnedFd>, name: &CStr, errno: Errno) {
        let directory = directory.map_or(self.parent, |directory| directory.as_fd());
        self.note(path_of(directory), name, errno);
    }

    fn note(&mut self, directory: PathBuf, name: &CStr, errno: Errno) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            let path = match name.is_empty() {
                true => directory,
                false => directory.join(OsStr::from_bytes(name.to_bytes())),
            };
            self.named.push(Left { path, source: io::Error::from(errno) });
        }
    }
}

/// The path of a directory. Too long for the kernel if it is deep.
fn path_of(directory: BorrowedFd<'_>) -> PathBuf {
    fs::read_link(entry::descriptor_path(directory)).unwrap_or_else(|_| "…".into())
}

/// Removes an entry unless it is a directory with content.
fn remove(kind: Kind, directory: BorrowedFd<'_>, is_ours: bool, name: &CStr, is_directory: bool) -> Outcome {
    match kind {
        Kind::Files => entry::remove(directory, is_ours, name, is_directory),
        Kind::Cgroups => entry::remove_cgroup(directory, name),
    }
}
