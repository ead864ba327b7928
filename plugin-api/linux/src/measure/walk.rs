//! The walk through a tree that is measured: depth first, with descriptors of the innermost directories only.
//!
//! Files are counted while a directory is listed; directories in it are noted, and entered when it is listed to its end.
//! Of an outer directory, only its identity and the position of the next directory in it are kept. It is reached again
//! as `..` of the one below it. If that is another one, because that was moved, the outer ones are found again from the
//! top. What is left of one that is not there any more is given up, and the result says so.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Statx, StatxAttributes, StatxFlags, openat, openat2,
    seek, statx,
};
use rustix::io::Errno;

use super::{Shared, Stopped, lock};
use crate::descent::{self, Above, Descent, HERE, Id, LIST};

/// How many directories are open of a walk that is interrupted.
const MAX_OPEN_IDLE: usize = 4;

/// How many directories in one directory are noted at once.
const MAX_PENDING: usize = 1 << 12;

/// The same in a directory that is listed again.
const MAX_PENDING_AGAIN: usize = 1 << 6;

/// How often each entry is listed on average: a directory that was closed is listed again from the next directory in it
/// on, and one that was moved is searched for.
const MAX_LISTED: u64 = 4;

/// Bytes of a directory that are listed at once.
const BUFFER: usize = 128 << 10;

/// The same in a directory that is listed again.
const BUFFER_AGAIN: usize = 2 << 10;

/// A directory in another one, which is to be entered.
#[derive(Debug)]
struct Pending {
    /// The position in the listing from which it is found again.
    position: u64,
    name: CString,
}

/// How far a directory is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// Files are being counted.
    Files,
    /// Directories are being noted that were not before.
    Directories,
    Listed,
}

/// A directory that is open.
#[derive(Debug)]
struct Level {
    directory: OwnedFd,
    listing: Listing,
    pending: VecDeque<Pending>,
    /// Where the directories begin that are not noted, if there are any.
    rest: Option<u64>,
    /// Where the descriptor is in the listing.
    position: u64,
    is_reopened: bool,
}

impl Level {
    fn new(directory: OwnedFd) -> Self {
        let (listing, pending) = (Listing::Files, VecDeque::new());
        Self { directory, listing, pending, rest: None, position: 0, is_reopened: false }
    }
}

impl descent::Level for Level {
    /// Where the next directory to enter begins, or a later one; `None` if there is none left.
    type Kept = Option<u64>;

    fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    fn keep(&mut self) -> Result<Option<u64>, Errno> {
        Ok(self.pending.front().map(|pending| pending.position).or(self.rest))
    }

    fn reopened(directory: OwnedFd, rest: Option<u64>) -> Self {
        Self { listing: Listing::Listed, rest, is_reopened: true, ..Self::new(directory) }
    }
}

/// An entry that is no directory, or of an unknown type.
#[derive(Debug, Clone, Copy)]
struct Entry {
    inode: u64,
    /// Where its name begins.
    name: usize,
    position: u64,
}

/// A part of a measurement: a directory with what is in it. Dropping one that is not finished cancels the measurement.
#[derive(Debug)]
pub struct Walk {
    shared: Arc<Shared>,
    /// Its outermost directory, from which the others are found again, and how deep it is in the tree.
    top: OwnedFd,
    depth: usize,
    descent: Descent<Level>,
    counted: Counted,
    scratch: Scratch,
}

/// What was found since the last time that it was added to the shared total.
#[derive(Debug, Default)]
struct Counted {
    bytes: u64,
    entries: u64,
    unread: u64,
    lost: u64,
    /// Entries that were listed, some of them several times.
    listed: u64,
}

/// Memory for listings, empty while a walk is interrupted.
#[derive(Debug, Default)]
struct Scratch {
    buffer: Vec<MaybeUninit<u8>>,
    entries: Vec<Entry>,
    names: Vec<u8>,
}

/// Opens a directory for reading, whose descriptor may be one of another kind.
pub(super) fn open_top(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let open = |flags| openat(directory, c".", flags, Mode::empty());
    open(LIST | OFlags::NOATIME).or_else(|_| open(LIST))
}

impl Walk {
    pub(super) fn new(shared: Arc<Shared>, top: OwnedFd, depth: usize) -> Result<Self, Errno> {
        let outermost = open_top(top.as_fd())?;
        shared.walks.fetch_add(1, Ordering::Relaxed);
        let (descent, counted, scratch) = (Descent::default(), Counted::default(), Scratch::default());
        let mut walk = Self { shared, top, depth, descent, counted, scratch };
        walk.enter(outermost);
        Ok(walk)
    }

    /// Continues until about this many entries were listed. Returns whether it is finished. Blocks.
    pub fn advance(&mut self, entries: u64) -> bool {
        let begin = self.counted.listed;
        while !self.shared.is_stopped()
            && let Some(level) = self.descent.innermost()
        {
            if level.listing != Listing::Listed {
                self.list();
            } else if let Some(next) = level.pending.pop_front() {
                self.descend(&next);
            } else if let Some(rest) = level.rest.take() {
                level.listing = Listing::Directories;
                level.position = rest;
                if let Err(errno) = seek(&level.directory, SeekFrom::Start(rest)) {
                    self.shared.stop(Stopped::System(errno));
                }
            } else {
                self.ascend();
            }
            if self.counted.listed - begin >= entries {
                break;
            }
        }
        self.publish();
        self.is_finished()
    }

    /// Releases memory and most descriptors, before it is continued much later.
    pub fn interrupt(&mut self) {
        self.scratch = Scratch::default();
        if let Err(errno) = self.descent.close_to(MAX_OPEN_IDLE) {
            self.shared.stop(Stopped::System(errno));
        }
    }

    /// Takes a directory with what is in it out of the outer ones, to be walked by another thread. `None` if there is
    /// none now.
    #[must_use]
    pub fn split(&mut self) -> Option<Self> {
        let is_ready = |level: &Level| level.listing == Listing::Listed && !level.pending.is_empty();
        let (above, level) = self.descent.open_ones().find(|(_, level)| is_ready(level))?;
        let depth = self.depth + above + 1;
        // The first one: from the next on, all are listed again if the directory is closed for a while.
        let name = &level.pending.front()?.name;
        let opened = open(level.directory.as_fd(), name).ok()?;
        let Some(opened) = opened else {
            level.pending.pop_front();
            return None;
        };
        // Otherwise it stays with this walk.
        let part = Self::new(Arc::clone(&self.shared), opened, depth).ok()?;
        level.pending.pop_front();
        Some(part)
    }

    fn is_finished(&self) -> bool {
        self.descent.is_empty() || self.shared.is_stopped()
    }

    /// Adds what was found to the total.
    fn publish(&mut self) {
        let Counted { bytes, entries, unread, lost, listed } = std::mem::take(&mut self.counted);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.unread.fetch_add(unread, Ordering::Relaxed);
        self.shared.lost.fetch_add(lost, Ordering::Relaxed);
        let entries = self.shared.entries.fetch_add(entries, Ordering::Relaxed).saturating_add(entries);
        let listed = self.shared.listed.fetch_add(listed, Ordering::Relaxed).saturating_add(listed);
        let Shared { max_entries, .. } = *self.shared;
        if entries > max_entries || listed > max_entries.saturating_mul(MAX_LISTED) {
            self.shared.stop(Stopped::TooMany);
        }
    }

    /// Reads some entries of the innermost directory.
    fn list(&mut self) {
        let Some(level) = self.descent.innermost() else { return };
        let Scratch { buffer, entries, names } = &mut self.scratch;
        let (size, most) =
            if level.is_reopened { (BUFFER_AGAIN, MAX_PENDING_AGAIN) } else { (BUFFER, MAX_PENDING) };
        if buffer.is_empty() {
            buffer.resize(BUFFER, MaybeUninit::uninit());
        }
        entries.clear();
        names.clear();
        let counts_files = level.listing == Listing::Files;
        let mut has_unknown = false;
        let mut listing = RawDir::new(&level.directory, &mut buffer[..size]);
        loop {
            let found = match listing.next() {
                None => {
                    level.listing = Listing::Listed;
                    break;
                }
                // It was removed, for example.
                Some(Err(Errno::NOENT)) => {
                    level.listing = Listing::Listed;
                    break;
                }
                Some(Err(_)) => {
                    self.counted.unread += 1;
                    level.listing = Listing::Listed;
                    break;
                }
                Some(Ok(found)) => found,
            };
            self.counted.listed += 1;
            let position = std::mem::replace(&mut level.position, found.next_entry_cookie());
            let (name, kind) = (found.file_name(), found.file_type());
            let is_directory = kind == FileType::Directory;
            if name == c"." || name == c".." {
            } else if is_directory && level.pending.len() < most && level.rest.is_none() {
                level.pending.push_back(Pending { position, name: name.to_owned() });
            } else if is_directory {
                level.rest.get_or_insert(position);
                if !counts_files {
                    level.listing = Listing::Listed;
                    break;
                }
            } else if counts_files || kind == FileType::Unknown {
                has_unknown |= kind == FileType::Unknown;
                entries.push(Entry { inode: found.ino(), name: names.len(), position });
                names.extend_from_slice(name.to_bytes_with_nul());
            }
            if listing.is_buffer_empty() {
                break;
            }
        }
        if !has_unknown {
            // In the order of the disk.
            entries.sort_unstable_by_key(|entry| entry.inode);
        }
        for entry in entries.iter() {
            let Some(name) = names.get(entry.name..).and_then(|name| CStr::from_bytes_until_nul(name).ok())
            else {
                continue;
            };
            let found = match stat(level.directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => found,
                Err(Errno::NOENT) => continue,
                Err(_) => {
                    self.counted.unread += u64::from(counts_files);
                    continue;
                }
            };
            if has_unknown && FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory {
                if level.pending.len() < most && level.rest.is_none() {
                    level.pending.push_back(Pending { position: entry.position, name: name.to_owned() });
                } else {
                    level.rest.get_or_insert(entry.position);
                }
            } else if counts_files {
                self.counted.entries += 1;
                self.counted.bytes += size_of(&self.shared, &found);
            }
        }
    }

    /// Opens a directory in the innermost one.
    fn descend(&mut self, next: &Pending) {
        if self.depth + self.descent.depth() >= self.shared.max_depth {
            return self.shared.stop(Stopped::TooDeep);
        }
        match self.descent.open_below(|level| open(level.directory.as_fd(), &next.name)) {
            Ok(Some(opened)) => self.enter(opened),
            Ok(None) => {}
            Err(errno @ (Errno::MFILE | Errno::NFILE)) => self.shared.stop(Stopped::System(errno)),
            Err(_) => self.counted.unread += 1,
        }
    }

    /// Counts a directory, which is then the innermost one.
    fn enter(&mut self, directory: OwnedFd) {
        self.counted.entries += 1;
        self.counted.listed += 1;
        match stat(directory.as_fd(), c"", AtFlags::EMPTY_PATH) {
            Ok(found) => self.counted.bytes += found.stx_blocks * 512,
            Err(_) => self.counted.unread += 1,
        }
        if let Err(errno) = self.descent.enter(Level::new(directory)) {
            self.shared.stop(Stopped::System(errno));
        }
    }

    /// Leaves the innermost directory.
    fn ascend(&mut self) {
        let Some((_, Above::Moved(_))) = self.descent.leave() else { return };
        let Self { shared, top, descent, counted, scratch, .. } = self;
        let found = open_top(top.as_fd()).and_then(|top| {
            descent.find_again(top, |directory, id| find(directory, id, &mut scratch.buffer, counted))
        });
        match found {
            // Those in which something was left.
            Ok(lost) => counted.lost += lost.into_iter().flatten().count() as u64,
            Err(errno) => shared.stop(Stopped::System(errno)),
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        if !self.is_finished() {
            self.shared.stop(Stopped::Cancelled);
        }
        self.publish();
        self.shared.walks.fetch_sub(1, Ordering::Release);
    }
}

/// The directory with an identity in another one, whatever its name.
fn find(
    directory: &OwnedFd,
    id: Id,
    buffer: &mut Vec<MaybeUninit<u8>>,
    counted: &mut Counted,
) -> Result<Option<OwnedFd>, Errno> {
    buffer.resize(BUFFER, MaybeUninit::uninit());
    let mut listing = RawDir::new(directory, buffer);
    while let Some(found) = listing.next() {
        counted.listed += 1;
        match found {
            Ok(found) if found.ino() == id.inode => match open(directory.as_fd(), found.file_name()) {
                Ok(Some(opened)) if Id::of(&opened)? == id => return Ok(Some(opened)),
                Ok(_) => {}
                Err(errno @ (Errno::MFILE | Errno::NFILE)) => return Err(errno),
                Err(_) => {}
            },
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Opens a directory for listing. `None` if there is none of this name any more, or something is mounted on it.
fn open(directory: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let open = |flags| openat2(directory, name, flags, Mode::empty(), HERE);
    // Only its owner and root may read it without changing its access time.
    let opened = match open(LIST | OFlags::NOATIME) {
        Err(Errno::PERM) => open(LIST),
        other => other,
    };
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn stat(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Statx, Errno> {
    let wanted = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::INO | StatxFlags::BLOCKS;
    statx(directory, name, flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT, wanted)
}

/// What a link to a file adds.
fn size_of(shared: &Shared, found: &Statx) -> u64 {
    // Something else is mounted on it.
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return 0;
    }
    let bytes = found.stx_blocks * 512;
    if found.stx_nlink < 2 || bytes == 0 {
        return bytes;
    }
    let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
    lock(&shared.links).add((device, found.stx_ino), found.stx_nlink, bytes)
}
