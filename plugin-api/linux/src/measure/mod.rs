//! How much space a directory tree takes, which a container has written and may still be changing.
//!
//! ```text
//! Measurement ── total, hard links, errors ◀── walk.rs   parts of the tree, each on one thread at a time
//! ```
//!
//! - Every entry is named relative to a descriptor of its directory: no path is resolved twice, no link is followed, and
//!   neither the length of a path nor the depth of the tree matters. Nothing but directories is opened.
//! - No mount point is crossed.
//! - Nothing recurses. Descriptors, memory and the number of entries are bounded; a tree beyond the bounds is an error.
//! - A file with several links in the tree counts once.
//! - What vanishes meanwhile is no error. What is moved meanwhile can count twice or not at all; nothing else is left out
//!   because of it.
//! - A [`Walk`] can be interrupted after any number of entries, and shared with other threads.

mod links;
mod walk;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::io::Errno;

use links::Links;
pub use walk::Walk;

/// Most entries of one tree. One that grows as fast as it is measured ends a measurement at this.
const MAX_ENTRIES: u64 = 1 << 28;

/// Deepest tree.
const MAX_DEPTH: usize = 1 << 17;

/// Entries between two questions whether another thread has nothing to do.
const SLICE: u64 = 1 << 10;

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Space that is allocated for it, as `du` shows.
    pub bytes: u64,
    /// Entries in it and the directory itself. A file with several links has several.
    pub entries: u64,
    /// Directories and files that could not be read and are not included.
    pub unread: u64,
    /// Directories that were moved before all in them was counted, with a directory below them, to another place.
    pub lost: u64,
}

/// Why a tree was not measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// It is deeper than any useful tree.
    #[error("it has more than {MAX_DEPTH} directories in one another")]
    TooDeep,
    /// It has more entries than can be measured, or grows as fast as it is measured.
    #[error(
        "more than {MAX_ENTRIES} entries were found in it: it is very large, or grows as fast as it is measured"
    )]
    TooMany,
    /// It was cancelled.
    #[error("the measurement was cancelled")]
    Cancelled,
    /// The directory cannot be read, or no descriptor is free.
    #[error("a directory in it cannot be read: {0}")]
    System(io::Error),
}

impl MeasureError {
    /// Whether the tree itself is the reason: it is made so that it cannot be measured.
    #[must_use]
    pub fn is_unmeasurable(&self) -> bool {
        matches!(self, Self::TooDeep | Self::TooMany)
    }
}

/// Why the walks end early.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    TooDeep,
    TooMany,
    Cancelled,
    System(Errno),
}

/// A measurement of one tree. Clones are of the same one.
#[derive(Debug, Clone)]
pub struct Measurement(Arc<Shared>);

/// What the walks of one measurement share.
#[derive(Debug)]
struct Shared {
    bytes: AtomicU64,
    entries: AtomicU64,
    unread: AtomicU64,
    lost: AtomicU64,
    listed: AtomicU64,
    links: Mutex<Links>,
    /// Walks that are not finished.
    walks: AtomicUsize,
    is_stopped: AtomicBool,
    stopped: Mutex<Option<Stopped>>,
    max_depth: usize,
    max_entries: u64,
}

impl Measurement {
    /// Begins to measure the tree below an open directory. The walk does the work.
    ///
    /// # Errors
    /// If the directory cannot be opened for reading.
    pub fn begin(directory: impl AsFd) -> io::Result<(Self, Walk)> {
        Self::begin_with(directory, MAX_DEPTH, MAX_ENTRIES)
    }

    fn begin_with(directory: impl AsFd, max_depth: usize, max_entries: u64) -> io::Result<(Self, Walk)> {
        let top: OwnedFd = walk::open_top(directory.as_fd())?;
        let shared = Arc::new(Shared {
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            listed: AtomicU64::new(0),
            links: Mutex::default(),
            walks: AtomicUsize::new(0),
            is_stopped: AtomicBool::new(false),
            stopped: Mutex::new(None),
            max_depth,
            max_entries,
        });
        let walk = Walk::new(Arc::clone(&shared), top, 0)?;
        Ok((Self(shared), walk))
    }

    /// What was found until now.
    #[must_use]
    pub fn so_far(&self) -> Used {
        Used {
            bytes: self.0.bytes.load(Ordering::Relaxed),
            entries: self.0.entries.load(Ordering::Relaxed),
            unread: self.0.unread.load(Ordering::Relaxed),
            lost: self.0.lost.load(Ordering::Relaxed),
        }
    }

    /// Lets all walks end at once.
    pub fn cancel(&self) {
        self.0.stop(Stopped::Cancelled);
    }

    /// The result; `None` as long as a walk is not finished.
    ///
    /// # Errors
    /// [`MeasureError`]. What was found until then is [`Measurement::so_far`].
    pub fn result(&self) -> Option<Result<Used, MeasureError>> {
        if self.0.walks.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(match *lock(&self.0.stopped) {
            None => Ok(self.so_far()),
            Some(Stopped::TooDeep) => Err(MeasureError::TooDeep),
            Some(Stopped::TooMany) => Err(MeasureError::TooMany),
            Some(Stopped::Cancelled) => Err(MeasureError::Cancelled),
            Some(Stopped::System(errno)) => Err(MeasureError::System(errno.into())),
        })
    }
}

impl Shared {
    /// Ends the measurement. The first reason is kept.
    fn stop(&self, reason: Stopped) {
        lock(&self.stopped).get_or_insert(reason);
        self.is_stopped.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }
}

/// Measures a tree with some threads. Blocks.
///
/// # Errors
/// [`MeasureError`].
pub fn measure(directory: impl AsFd, threads: usize) -> Result<Used, MeasureError> {
    let (measurement, walk) = Measurement::begin(directory).map_err(MeasureError::System)?;
    let team = Team {
        work: Mutex::new(Work { walks: vec![walk], busy: 0 }),
        changed: Condvar::new(),
        idle: AtomicUsize::new(0),
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Those that there are do the work of one that cannot be created.
            drop(thread::Builder::new().spawn_scoped(scope, || team.run()));
        }
        team.run();
    });
    // All walks are finished.
    measurement.result().unwrap_or(Err(MeasureError::Cancelled))
}

/// Threads that measure one tree.
struct Team {
    work: Mutex<Work>,
    changed: Condvar,
    /// Threads without a walk.
    idle: AtomicUsize,
}

struct Work {
    walks: Vec<Walk>,
    /// Threads with a walk, which may share it.
    busy: usize,
}

impl Team {
    fn run(&self) {
        while let Some(mut walk) = self.next() {
            while !walk.advance(SLICE) {
                if self.idle.load(Ordering::Relaxed) > 0
                    && let Some(part) = walk.split()
                {
                    lock(&self.work).walks.push(part);
                    self.changed.notify_one();
                }
            }
            lock(&self.work).busy -= 1;
            self.changed.notify_all();
        }
    }

    /// Another walk; `None` if there will be none.
    fn next(&self) -> Option<Walk> {
        let mut work = lock(&self.work);
        self.idle.fetch_add(1, Ordering::Relaxed);
        let walk = loop {
            if let Some(walk) = work.walks.pop() {
                work.busy += 1;
                break Some(walk);
            }
            if work.busy == 0 {
                break None;
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        };
        self.idle.fetch_sub(1, Ordering::Relaxed);
        walk
    }
}

/// Gives the calling thread the lowest priority of its scheduling class (19), and with it a low one for disks.
///
/// # Errors
/// Those of setpriority(2).
pub fn lowest_priority() -> io::Result<()> {
    // On Linux, that of the thread and not of its process.
    Ok(rustix::process::setpriority_process(None, 19)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
