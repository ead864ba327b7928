//! What a companion tells the plugin: a file of five numbers, which outlives both. The companion holds a lock on it, so that
//! there is only one, whatever the agent knows of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cofferdam_plugin_api::companion::Companion;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Bytes of the file.
const LENGTH: usize = 40;

/// Where the pid and the start time are in it.
const PROCESS: u64 = 24;

/// The file.
#[derive(Debug)]
pub(crate) struct Status(File);

/// Its content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Bytes of standard output and of standard error that are in no file. After a companion was killed while it counted
    /// them, at most that many.
    pub(crate) lost: [u64; 2],
    /// Whether both streams have ended, and everything that was read is in a file or counted.
    pub(crate) finished: bool,
    /// Pid of the companion that has the lock; 0 before it has written it.
    pub(crate) pid: i32,
    /// When that was started.
    pub(crate) start_time: u64,
}

impl Status {
    pub(crate) const fn new(file: File) -> Self {
        Self(file)
    }

    pub(crate) const fn file(&self) -> &File {
        &self.0
    }

    /// Zeros if it was not written.
    pub(crate) fn read(&self) -> io::Result<Report> {
        let mut bytes = [0; LENGTH];
        let mut filled = 0;
        while filled < LENGTH {
            match self.0.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let number = |index: usize| {
            let bytes = bytes.iter().skip(index * 8).take(8).rev();
            bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let pid = i32::try_from(number(3)).unwrap_or_default();
        Ok(Report { lost: [number(0), number(1)], finished: number(2) != 0, pid, start_time: number(4) })
    }

    /// Becomes the companion: takes the lock for as long as this process runs. Fails if another one has it.
    pub(crate) fn take_over(&self) -> io::Result<()> {
        flock(&self.0, FlockOperation::NonBlockingLockExclusive)?;
        let pid = std::process::id();
        let own = Companion::open(pid.cast_signed())?.ok_or(io::ErrorKind::NotFound)?;
        self.set_process(u64::from(pid), own.start_time())
    }

    /// Whether a companion has the lock. If not, the file names none any more, so that the pid in it is never that of another
    /// process.
    pub(crate) fn is_locked(&self) -> io::Result<bool> {
        match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let forgotten = self.set_process(0, 0);
                flock(&self.0, FlockOperation::Unlock)?;
                forgotten.map(|()| false)
            }
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_process(&self, pid: u64, start_time: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&pid.to_le_bytes());
        bytes[8..].copy_from_slice(&start_time.to_le_bytes());
        self.0.write_all_at(&bytes, PROCESS)
    }

    pub(crate) fn set_lost(&self, stream: usize, bytes: u64) -> io::Result<()> {
        self.0.write_all_at(&bytes.to_le_bytes(), stream as u64 * 8)
    }

    pub(crate) fn finish(&self) -> io::Result<()> {
        self.0.write_all_at(&1_u64.to_le_bytes(), 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_companion() {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let options = File::options().read(true).write(true).create(true).truncate(false).clone();
            Status::new(options.open(directory.path().join("status")).unwrap())
        };
        let (first, second) = (open(), open());
        assert!(!second.is_locked().unwrap());
        first.take_over().unwrap();
        assert!(second.is_locked().unwrap() && second.take_over().is_err());
        assert_eq!(second.read().unwrap().pid, std::process::id().cast_signed());
        assert!(second.read().unwrap().start_time > 0);
        drop(first);
        assert!(!second.is_locked().unwrap());
        // Its pid may be that of another process by now.
        assert_eq!(second.read().unwrap(), Report::default());
    }

    #[test]
    fn what_is_written_is_read() {
        let status = Status::new(tempfile::tempfile().unwrap());
        assert_eq!(status.read().unwrap(), Report::default());
        status.set_lost(1, u64::MAX - 7).unwrap();
        assert_eq!(status.read().unwrap(), Report { lost: [0, u64::MAX - 7], ..Report::default() });
        status.set_lost(0, 5).unwrap();
        status.finish().unwrap();
        assert_eq!(
            status.read().unwrap(),
            Report { lost: [5, u64::MAX - 7], finished: true, ..Report::default() }
        );
    }
}
