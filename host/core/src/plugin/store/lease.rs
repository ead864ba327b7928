//! Whether anybody has a file open for writing, by means of a file lease (fcntl(2), `F_SETLEASE`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Processes that have a file open for writing, or mapped so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writers {
    /// There are some.
    Present,
    /// There are none.
    None,
    /// Only the file's owner and root get to know.
    Unknown,
}

/// Finds out whether `file`, which is open for reading, is open for writing anywhere.
pub(super) fn writers(file: &File) -> io::Result<Writers> {
    match take(file) {
        Ok(()) => {
            // A lease that is kept would delay the next writer.
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
    // A writer that comes while the lease is held has the kernel send a signal: by default SIGIO, which ends a process
    // that does not handle it; SIGURG is ignored by such a process.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    fcntl(file, libc::F_SETLEASE, libc::F_RDLCK)
}

/// `F_SETSIG` of `<asm-generic/fcntl.h>`, which the libc crate lacks.
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
    fn a_file_that_is_open_for_writing_has_a_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(writers(&reader).unwrap(), Writers::Present);
        drop(writer);
        assert_eq!(writers(&reader).unwrap(), Writers::None);
        // The lease was given back: a writer does not have to wait.
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    }

    #[test]
    fn a_writer_that_comes_meanwhile_does_not_end_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        take(&reader).unwrap();
        let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
