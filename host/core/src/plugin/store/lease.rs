//! Detects whether a file is open for writing, with a file lease (fcntl(2), `F_SETLEASE`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Whether any process has a file open or mapped for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writers {
    /// At least one process has.
    Present,
    /// No process has.
    None,
    /// The file belongs to another user, or its file system has no leases.
    Unknown,
}

/// Checks for writers of `file`, which is open for reading.
pub(super) fn writers(file: &File) -> io::Result<Writers> {
    match take(file) {
        Ok(()) => {
            // Released, as a lease blocks the next writer.
            fcntl(file, libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(Writers::None)
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Writers::Present),
            Some(libc::EACCES | libc::EINVAL) => Ok(Writers::Unknown),
            _ => Err(error),
        },
    }
}

fn take(file: &File) -> io::Result<()> {
    // If the file is opened for writing while the lease is held, the kernel sends a signal. The default, SIGIO,
    // terminates a process without a handler; SIGURG is ignored by default.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    fcntl(file, libc::F_SETLEASE, libc::F_RDLCK)
}

/// `F_SETSIG` of `<asm-generic/fcntl.h>`, which is missing in the libc crate.
const F_SETSIG: libc::c_int = 10;

fn fcntl(file: &File, operation: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and these operations take an integer.
    match unsafe { libc::fcntl(file.as_raw_fd(), operation, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn writers_are_detected_while_the_file_is_open_for_writing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(writers(&reader).unwrap(), Writers::Present);
        drop(writer);
        assert_eq!(writers(&reader).unwrap(), Writers::None);
        // The lease was released, so a writer does not block.
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    }

    #[test]
    fn breaking_the_lease_does_not_terminate_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        take(&reader).unwrap();
        let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
