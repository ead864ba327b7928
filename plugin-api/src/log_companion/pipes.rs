//! The pipes of a container: FIFOs in the plugin's own directory, so that they can be opened again when everybody who had
//! them open but the container has ended.
//!
//! The container's end is open for reading as well. So a pipe has a reader for as long as the container lives: whoever
//! kills the companion, the container gets neither SIGPIPE nor an error, and what is in the pipe stays there until
//! another companion reads it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, fchown, mknodat, open};
use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

use super::STREAMS;

/// Bytes that a pipe can hold, if the kernel allows it: fewer wake-ups of the companion, and time for another one to start.
const CAPACITY: usize = 256 << 10;

/// Creates the pipes in a directory, and opens the container's ends. They belong to `owner`, so that programs can open
/// `/dev/stdout`.
///
/// # Errors
/// If one of them cannot be created or opened.
pub fn create(directory: &Path, owner: Option<(u32, u32)>) -> io::Result<[OwnedFd; 2]> {
    let create = |name| {
        let path = directory.join(name);
        match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            // Of an earlier call that was cut short.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let pipe = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        if let Some((uid, gid)) = owner {
            fchown(&pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        // Without, it is slower.
        let _ = fcntl_setpipe_size(&pipe, CAPACITY);
        Ok::<_, io::Error>(pipe)
    };
    let [stdout, stderr] = STREAMS.map(create);
    Ok([stdout?, stderr?])
}

/// Opens the ends of the companion. At them, the end of the container is seen also if it has ended before.
///
/// # Errors
/// If one of them cannot be opened.
pub fn open_readers(directory: &Path) -> io::Result<[OwnedFd; 2]> {
    let open = |name| {
        let path = directory.join(name);
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let reader = open(&path, OFlags::RDONLY | flags, Mode::empty())?;
        // The kernel tells a reader that there is no writer only if there was one since the reader opened it.
        drop(open(&path, OFlags::WRONLY | flags, Mode::empty())?);
        Ok::<_, io::Error>(reader)
    };
    let [stdout, stderr] = STREAMS.map(open);
    Ok([stdout?, stderr?])
}

/// Whether nobody can write to it any more.
pub(super) fn has_ended(reader: &OwnedFd) -> io::Result<bool> {
    let mut ready = [PollFd::new(reader, PollFlags::empty())];
    poll(&mut ready, Some(&Timespec::default()))?;
    Ok(ready[0].revents().contains(PollFlags::HUP))
}

/// How many bytes a pipe can hold.
pub(super) fn capacity(reader: &OwnedFd) -> u64 {
    fcntl_getpipe_size(reader).map_or(CAPACITY, |size| size) as u64
}
