//! Paths of sockets, whose length the kernel limits to 107 bytes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Calls `act` with a path of the directory that is short enough for the address of a socket in it.
pub(crate) fn at_short_path<T>(directory: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let opened = File::open(directory)?;
    act(Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd())))
}
