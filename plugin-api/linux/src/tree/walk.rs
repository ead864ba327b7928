//! The walk through a tree that is removed: depth first, with descriptors of the innermost directories only.
//!
//! ```text
//! parent ── top ── … ── … ── a ── b ── c     c is being listed
//!                   evicted  └── open ──┘
//! ```
//!
//! An evicted directory is reached again as `..` of the one below it. If it is not the same one any more, because
//! something was moved, the walk begins again at the top. An evicted directory is listed again from its beginning,
//! which finds the directory that the walk comes from empty, and removes it.

use std::collections::{HashSet, VecDeque};
use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, fstat, openat, seek};
use rustix::io::Errno;

use super::entry::{self, Outcome};
use super::{Kind, Left, MAX_NAMED};

/// How many directories are open at once, if the process has that many descriptors left.
const MAX_OPEN: usize = 16;

/// How many evicted directories are known. Of a deeper tree, the innermost are removed first.
const MAX_EVICTED: usize = 1 << 18;

/// How often a directory is listed to which entries are added, and how often the walk begins again.
const MAX_PASSES: u32 = 8;

/// How many directories that cannot be emptied are known.
const MAX_STUCK: usize = 1 << 16;

/// Bytes of a directory that are listed at once.
const BUFFER: usize = 32 << 10;

/// What identifies a directory while it exists.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    fn of(directory: &OwnedFd) -> Result<Self, Errno> {
        let found = fstat(directory)?;
        Ok(Self { device: found.st_dev, inode: found.st_ino })
    }
}

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

pub(super) struct Walk<'t> {
    parent: BorrowedFd<'t>,
    top: &'t CStr,
    kind: Kind,
    /// How many entries may still be removed.
    budget: u64,
    /// The outer directories, without the outermost if `cut`.
    evicted: VecDeque<Id>,
    cut: bool,
    open: VecDeque<Level>,
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
            evicted: VecDeque::new(),
            cut: false,
            open: VecDeque::new(),
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
        self.evicted.clear();
        self.open.clear();
        self.cut = false;
        match remove(self.kind, self.parent, false, self.top, true) {
            Outcome::Removed => return End::Finished,
            Outcome::NotEmpty => {}
            Outcome::Failed(errno) => {
                self.report(None, self.top, errno);
                return End::Finished;
            }
        }
        match entry::open(self.parent, self.top) {
            Ok(Some(directory)) => self.open.push_back(Level::new(directory, Some(self.top.to_owned()))),
            // It was replaced.
            Ok(None) => return End::Again { moved: true },
            Err(errno) => {
                self.report(None, self.top, errno);
                return End::Finished;
            }
        }
        while let Some(level) = self.open.back_mut() {
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
        let Some(level) = self.open.back_mut() else { return };
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
        let Some(level) = self.open.pop_back() else { return };
        for (name, errno) in failed {
            self.report(Some(&level.directory), &name, errno);
        }
        self.open.push_back(level);
    }

    /// Opens a directory in the innermost one.
    fn descend(&mut self, name: CString) {
        self.budget = self.budget.saturating_sub(1);
        if self.open.len() >= MAX_OPEN {
            self.evict();
        }
        let opened = loop {
            let Some(level) = self.open.back() else { return };
            match entry::open(level.directory.as_fd(), &name) {
                Err(Errno::MFILE | Errno::NFILE) if self.open.len() > 1 => self.evict(),
                other => break other,
            }
        };
        let failure = match opened {
            // It was removed or replaced, which the next pass finds.
            Ok(None) => return,
            Ok(Some(directory)) => match self.is_stuck(&directory) {
                Ok(false) => return self.open.push_back(Level::new(directory, Some(name))),
                // Reported before.
                Ok(true) => None,
                Err(errno) => Some(errno),
            },
            Err(errno) => Some(errno),
        };
        let Some(mut level) = self.open.pop_back() else { return };
        level.failed = true;
        if let Some(errno) = failure {
            self.report(Some(&level.directory), &name, errno);
        }
        self.open.push_back(level);
    }

    fn is_stuck(&self, directory: &OwnedFd) -> Result<bool, Errno> {
        Ok(!self.stuck.is_empty() && self.stuck.contains(&Id::of(directory)?))
    }

    /// Closes the outermost open directory.
    fn evict(&mut self) {
        let Some(level) = self.open.pop_front() else { return };
        // If this fails, it is not found again, and the walk begins again.
        let id = Id::of(&level.directory).unwrap_or(Id { device: 0, inode: 0 });
        self.evicted.push_back(id);
        if self.evicted.len() > MAX_EVICTED {
            self.evicted.pop_front();
            self.cut = true;
        }
    }

    /// Removes the innermost directory, of which everything that can be was removed, and returns to its parent.
    fn ascend(&mut self) -> Result<(), End> {
        let Some(mut level) = self.open.pop_back() else { return Ok(()) };
        if self.open.is_empty() {
            if let Some(id) = self.evicted.pop_back() {
                let reopened = reopen(&level.directory, id).ok_or(End::Again { moved: true })?;
                let is_top = self.evicted.is_empty() && !self.cut;
                let name = is_top.then(|| self.top.to_owned());
                self.open.push_back(Level::new(reopened, name));
            } else if self.cut {
                return Err(End::Again { moved: false });
            }
        }
        let (parent, is_ours) = match self.open.back() {
            Some(parent) => (parent.directory.as_fd(), true),
            None => (self.parent, false),
        };
        if let Some(name) = &level.name {
            let busy = if self.kind == Kind::Cgroups { Errno::BUSY } else { Errno::NOTEMPTY };
            let failure = match remove(self.kind, parent, is_ours, name, true) {
                Outcome::Removed => return Ok(()),
                Outcome::NotEmpty if level.failed => None,
                Outcome::NotEmpty if level.passes < MAX_PASSES => {
                    level.passes += 1;
                    level.listed = false;
                    if seek(&level.directory, SeekFrom::Start(0)).is_ok() {
                        self.open.push_back(level);
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
            if let Some(parent) = self.open.back_mut() {
                parent.failed = true;
            }
        }
        Ok(())
    }

    /// Notes an entry that is left.
    fn report(&mut self, directory: Option<&OwnedFd>, name: &CStr, errno: Errno) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            let directory = directory.map_or(self.parent, |directory| directory.as_fd());
            // Too long for the kernel if it is deep.
            let path = fs::read_link(entry::descriptor_path(directory)).unwrap_or_else(|_| "…".into());
            let path = if name.is_empty() { path } else { path.join(OsStr::from_bytes(name.to_bytes())) };
            self.named.push(Left { path, source: io::Error::from(errno) });
        }
    }
}

/// Removes an entry unless it is a directory with content.
fn remove(kind: Kind, directory: BorrowedFd<'_>, is_ours: bool, name: &CStr, is_directory: bool) -> Outcome {
    match kind {
        Kind::Files => entry::remove(directory, is_ours, name, is_directory),
        Kind::Cgroups => entry::remove_cgroup(directory, name),
    }
}

/// The parent of a directory, if it is the one that it was.
fn reopen(directory: &OwnedFd, id: Id) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(directory, c"..", flags, Mode::empty());
    let opened = open().or_else(|errno| match errno {
        Errno::ACCESS => {
            entry::allow_changes(directory.as_fd());
            open()
        }
        _ => Err(errno),
    });
    let parent = opened.ok()?;
    (Id::of(&parent) == Ok(id)).then_some(parent)
}
