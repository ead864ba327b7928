//! The way from the top of a tree of directories down to one of them, while others may change the tree.
//!
//! ```text
//! top ── … ── … ── a ── b ── c     c is the innermost
//!       closed  └── open ──┘
//! ```
//!
//! Neither the stack nor the number of descriptors depends on the depth: only the innermost directories are open. Of an
//! outer one, its identity is kept. It is opened again as `..` of the one below it, and is then the same directory, or
//! something was moved. Of a tree that is very deep, the outermost directories are forgotten.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat};
use rustix::io::Errno;

/// How many directories are open at once, if the process has that many descriptors left.
const MAX_OPEN: usize = 16;

/// How many closed directories are known.
const MAX_CLOSED: usize = 1 << 18;

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

    /// Called before it is closed.
    fn keep(&mut self) -> Result<Self::Kept, Errno>;

    /// It is open again.
    fn reopened(directory: OwnedFd, kept: Self::Kept) -> Self;

    /// Opens the directory above this one.
    fn open_above(&self) -> Result<OwnedFd, Errno> {
        openat(self.directory(), c"..", LIST, Mode::empty())
    }
}

/// The directories from the top to the innermost one.
#[derive(Debug)]
pub(crate) struct Descent<L: Level> {
    closed: VecDeque<(Id, L::Kept)>,
    open: VecDeque<L>,
    has_forgotten: bool,
}

/// What is above the directory that was left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Above {
    /// The directory that it was entered from. It is the innermost one now.
    Open,
    /// Nothing: it was the outermost one.
    Nothing,
    /// A directory that was forgotten.
    Forgotten,
    /// Another directory than before, or none that can be opened. Those that are closed cannot be reached from here.
    Moved(Errno),
}

impl<L: Level> Default for Descent<L> {
    fn default() -> Self {
        Self { closed: VecDeque::new(), open: VecDeque::new(), has_forgotten: false }
    }
}

impl<L: Level> Descent<L> {
    /// Number of directories on the way that are known.
    pub(crate) fn depth(&self) -> usize {
        self.closed.len() + self.open.len()
    }

    /// Those that are open, from the outside, and how many are above each.
    pub(crate) fn open_ones(&mut self) -> impl Iterator<Item = (usize, &mut L)> {
        let closed = self.closed.len();
        self.open.iter_mut().enumerate().map(move |(index, level)| (closed + index, level))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.depth() == 0
    }

    /// Whether the innermost directory is the top.
    pub(crate) fn is_top(&self) -> bool {
        self.depth() == 1 && !self.has_forgotten
    }

    pub(crate) fn innermost(&mut self) -> Option<&mut L> {
        self.open.back_mut()
    }

    /// Makes a directory the innermost one.
    pub(crate) fn enter(&mut self, level: L) -> Result<(), Errno> {
        self.close_to(MAX_OPEN - 1)?;
        self.open.push_back(level);
        Ok(())
    }

    /// Opens a directory below the innermost one with `open`; for a descriptor, others are closed if necessary.
    pub(crate) fn open_below<T>(&mut self, open: impl Fn(&L) -> Result<T, Errno>) -> Result<T, Errno> {
        loop {
            let level = self.open.back().ok_or(Errno::NOENT)?;
            match open(level) {
                Err(Errno::MFILE | Errno::NFILE) if self.open.len() > 1 => {
                    self.close_to(self.open.len() - 1)?;
                }
                opened => return opened,
            }
        }
    }

    /// Closes the outermost directories until at most so many are open.
    pub(crate) fn close_to(&mut self, open: usize) -> Result<(), Errno> {
        while self.open.len() > open
            && let Some(level) = self.open.front_mut()
        {
            self.closed.push_back((Id::of(level.directory())?, level.keep()?));
            self.open.pop_front();
            if self.closed.len() > MAX_CLOSED {
                self.closed.pop_front();
                self.has_forgotten = true;
            }
        }
        Ok(())
    }

    /// Leaves the innermost directory for the one above it.
    pub(crate) fn leave(&mut self) -> Option<(L, Above)> {
        let level = self.open.pop_back()?;
        if !self.open.is_empty() {
            return Some((level, Above::Open));
        }
        let Some((id, _)) = self.closed.back() else {
            let above = if self.has_forgotten { Above::Forgotten } else { Above::Nothing };
            return Some((level, above));
        };
        let opened = level.open_above().and_then(|above| Ok((Id::of(&above)? == *id, above)));
        let above = match (opened, self.closed.pop_back()) {
            (Ok((true, directory)), Some((_, kept))) => {
                self.open.push_back(L::reopened(directory, kept));
                Above::Open
            }
            (opened, closed) => {
                self.closed.extend(closed);
                Above::Moved(opened.err().unwrap_or(Errno::STALE))
            }
        };
        Some((level, above))
    }

    /// Finds the closed directories again from the outermost one, which is `top`, with `find`, which finds a directory in
    /// another one. Those from the first one on that is not found are returned, from the outside; the one above it is the
    /// innermost one then.
    pub(crate) fn find_again(
        &mut self,
        top: OwnedFd,
        mut find: impl FnMut(&OwnedFd, Id) -> Result<Option<OwnedFd>, Errno>,
    ) -> Result<Vec<L::Kept>, Errno> {
        let mut found = top;
        let mut depth = usize::from(!self.closed.is_empty());
        while let Some((id, _)) = self.closed.get(depth)
            && let Some(next) = find(&found, *id)?
        {
            found = next;
            depth += 1;
        }
        let lost = self.closed.split_off(depth).into_iter().map(|(_, kept)| kept).collect();
        if let Some((_, kept)) = self.closed.pop_back() {
            self.open.push_back(L::reopened(found, kept));
        }
        Ok(lost)
    }
}
