//! The way from the top of a tree of directories down to one of them, while others may change the tree.
//!
//! ```text
//! top ── … ── … ── a ── b ── c     c is the innermost
//!       closed  └── open ──┘
//! ```
//!
//! Neither the stack nor the number of descriptors depends on the depth: only the innermost directories are open. Of an
//! outer one, its identity is kept. It is opened again as `..` of the one below it, and is then the same directory, or
//! something was moved.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat};
use rustix::io::Errno;

/// How many directories are open at once, if the process has that many descriptors left.
const MAX_OPEN: usize = 16;

/// Resolution of a single name: not through a link, and not into a mount.
pub(crate) const HERE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a directory, and nothing else, for listing.
pub(crate) const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What identifies a directory while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Id {
    pub(crate) fn of(directory: &OwnedFd) -> Result<Self, Errno> {
        let found = fstat(directory)?;
        Ok(Self { device: found.st_dev, inode: found.st_ino })
    }
}

/// An open directory on the way, with what is to be done in it.
pub(crate) trait Level: Sized {
    /// What is kept of it while it is closed.
    type Kept;

    fn directory(&self) -> &OwnedFd;

    fn keep(&self) -> Self::Kept;

    /// It is open again.
    fn reopened(directory: OwnedFd, kept: Self::Kept) -> Self;
}

/// The directories from the top to the innermost one.
#[derive(Debug)]
pub(crate) struct Descent<L: Level> {
    closed: VecDeque<(Id, L::Kept)>,
    open: VecDeque<L>,
}

/// What is above the directory that was left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Above {
    /// The directory that it was entered from. It is the innermost one now.
    Open,
    /// Nothing: it was the outermost one that is known.
    Nothing,
    /// Another directory than before, or none that can be opened. Those that are closed cannot be reached from here.
    Moved(Errno),
}

impl<L: Level> Default for Descent<L> {
    fn default() -> Self {
        Self { closed: VecDeque::new(), open: VecDeque::new() }
    }
}

impl<L: Level> Descent<L> {
    pub(crate) fn innermost(&mut self) -> Option<&mut L> {
        self.open.back_mut()
    }

    /// Makes a directory the innermost one.
    pub(crate) fn enter(&mut self, level: L) -> Result<(), Errno> {
        while self.open.len() >= MAX_OPEN {
            self.close_outermost()?;
        }
        self.open.push_back(level);
        Ok(())
    }

    /// Opens a directory below the innermost one with `open`; for a descriptor, others are closed if necessary.
    pub(crate) fn open_below<T>(&mut self, open: impl Fn(&L) -> Result<T, Errno>) -> Result<T, Errno> {
        loop {
            let level = self.open.back().ok_or(Errno::NOENT)?;
            match open(level) {
                Err(Errno::MFILE | Errno::NFILE) if self.open.len() > 1 => self.close_outermost()?,
                opened => return opened,
            }
        }
    }

    /// Closes the outermost directory that is open.
    pub(crate) fn close_outermost(&mut self) -> Result<(), Errno> {
        if let Some(level) = self.open.front() {
            self.closed.push_back((Id::of(level.directory())?, level.keep()));
            self.open.pop_front();
        }
        Ok(())
    }

    /// Leaves the innermost directory for the one above it.
    pub(crate) fn leave(&mut self) -> Option<(L, Above)> {
        let level = self.open.pop_back()?;
        if !self.open.is_empty() {
            return Some((level, Above::Open));
        }
        let Some((id, kept)) = self.closed.pop_back() else { return Some((level, Above::Nothing)) };
        let opened = openat(level.directory(), c"..", LIST, Mode::empty());
        let above = match opened.and_then(|parent| Ok((Id::of(&parent)? == id, parent))) {
            Ok((true, parent)) => {
                self.open.push_back(L::reopened(parent, kept));
                Above::Open
            }
            Ok((false, _)) => Above::Moved(Errno::STALE),
            Err(errno) => Above::Moved(errno),
        };
        Some((level, above))
    }
}
