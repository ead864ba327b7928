//! What a companion tells the plugin: a file of numbers, which outlives both. The companion holds a lock on it, so that
//! there is only one, whatever the agent knows of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use crate::companion::Companion;

/// How many numbers of its own a companion can keep.
pub const NUMBERS: usize = 16;

/// Bytes of the file without these.
const LENGTH: usize = 40;

/// Where it says why output is lost, behind the companion's own numbers.
const ERRORS: usize = LENGTH + NUMBERS * 8;

/// Where the pid and the start time are in it.
const PROCESS: u64 = 24;

/// The file with which a companion reports to the plugin, and to the next companion.
#[derive(Debug)]
pub struct Status(File);

/// What a companion has reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes of standard output and of standard error that are in no file. After a companion was killed while it counted
    /// them, at most that many.
    pub lost: [u64; 2],
    /// Whether both streams have ended, and everything that was read is in a file or counted.
    pub finished: bool,
    /// Pid of the companion that has the lock; 0 before it has written it.
    pub pid: i32,
    /// When that was started.
    pub start_time: u64,
}

impl Status {
    /// In this file.
    #[must_use]
    pub const fn new(file: File) -> Self {
        Self(file)
    }

    pub(super) const fn file(&self) -> &File {
        &self.0
    }

    /// Reads it: zeros if it was not written.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read(&self) -> io::Result<Report> {
        let [stdout, stderr, finished, pid, start_time] = self.numbers_at(0)?;
        let pid = i32::try_from(pid).unwrap_or_default();
        Ok(Report { lost: [stdout, stderr], finished: finished != 0, pid, start_time })
    }

    /// The numbers that the companion keeps; zeros if it has written none.
    ///
    /// # Errors
    /// Those of the file.
    pub fn numbers(&self) -> io::Result<[u64; NUMBERS]> {
        self.numbers_at(LENGTH)
    }

    /// Stores some of the companion's own numbers, from this index on. They are replaced together, also if the process is
    /// killed meanwhile.
    ///
    /// # Errors
    /// Those of the file, and if there are not so many.
    pub fn set_numbers(&self, first: usize, numbers: &[u64]) -> io::Result<()> {
        if first + numbers.len() > NUMBERS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.0.write_all_at(&bytes, (LENGTH + first * 8) as u64)
    }

    fn numbers_at<const N: usize>(&self, offset: usize) -> io::Result<[u64; N]> {
        let mut bytes = vec![0; N * 8];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.0.read_at(&mut bytes[filled..], (offset + filled) as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let mut numbers = [0; N];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks(8)) {
            *number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        }
        Ok(numbers)
    }

    /// Becomes the companion: takes the lock for as long as this process runs. Fails if another one has it.
    pub(super) fn take_over(&self) -> io::Result<()> {
        flock(&self.0, FlockOperation::NonBlockingLockExclusive)?;
        let pid = std::process::id();
        let own = Companion::open(pid.cast_signed())?.ok_or(io::ErrorKind::NotFound)?;
        self.set_process(u64::from(pid), own.start_time())
    }

    /// Whether a companion has the lock. If not, the file names none any more, so that the pid in it is never that of another
    /// process.
    pub(super) fn is_locked(&self) -> io::Result<bool> {
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

    /// Stores how many bytes of a stream (0 or 1) are lost. What is about to be discarded is counted before.
    ///
    /// # Errors
    /// Those of the file.
    pub fn set_lost(&self, stream: usize, bytes: u64) -> io::Result<()> {
        self.0.write_all_at(&bytes.to_le_bytes(), stream as u64 * 8)
    }

    /// Stores why bytes of a stream (0 or 1) are lost: the error of whatever was to store them, or `None` if there was none, as it
    /// did not take them. The last reason is the one that is reported.
    ///
    /// # Errors
    /// Those of the file.
    pub fn set_error(&self, stream: usize, errno: Option<i32>) -> io::Result<()> {
        let errno = errno.map_or(0, |errno| u64::from(errno.unsigned_abs()));
        self.0.write_all_at(&errno.to_le_bytes(), (ERRORS + stream * 8) as u64)
    }

    /// The last error for which output of each stream is lost.
    pub(super) fn errors(&self) -> io::Result<[Option<io::Error>; 2]> {
        let error = |number: u64| {
            let errno = i32::try_from(number).ok().filter(|errno| *errno != 0);
            errno.map(io::Error::from_raw_os_error)
        };
        Ok(self.numbers_at(ERRORS)?.map(error))
    }

    /// Removes bytes from the pipe of a stream (0 or 1), by moving them to `/dev/null`. `lost` is how many of the stream are lost
    /// already. They are counted before they are removed, so that they are counted if this process is killed meanwhile. Returns
    /// how many there were.
    ///
    /// # Errors
    /// Those of the file, and of splice(2).
    pub fn discard(
        &self,
        stream: usize,
        (pipe, null): (&OwnedFd, &OwnedFd),
        lost: u64,
        bytes: u64,
    ) -> io::Result<u64> {
        self.set_lost(stream, lost + bytes)?;
        let mut discarded = 0;
        while discarded < bytes {
            let length = usize::try_from(bytes - discarded).unwrap_or(usize::MAX);
            match splice(pipe, None, null, None, length, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(moved) => discarded += moved as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.set_lost(stream, lost + discarded)?;
        Ok(discarded)
    }

    /// Takes [`Status::finish`] back: there is more to read.
    pub(super) fn unfinish(&self) -> io::Result<()> {
        self.0.write_all_at(&0_u64.to_le_bytes(), 16)
    }

    /// Reports that both streams have ended, and that everything that was read is passed on or counted.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(&self) -> io::Result<()> {
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
    fn what_is_discarded_is_counted_exactly() {
        let status = Status::new(tempfile::tempfile().unwrap());
        let (pipe, writer) = rustix::pipe::pipe().unwrap();
        std::io::Write::write_all(&mut File::from(writer), b"abcdef").unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap().into();
        assert_eq!(status.discard(1, (&pipe, &null), 10, 4).unwrap(), 4);
        assert_eq!(status.discard(1, (&pipe, &null), 14, 100).unwrap(), 2);
        assert_eq!(status.read().unwrap().lost, [0, 16]);
    }

    #[test]
    fn the_companions_own_numbers_are_kept_beside_the_report() {
        let status = Status::new(tempfile::tempfile().unwrap());
        assert_eq!(status.numbers().unwrap(), [0; NUMBERS]);
        status.set_numbers(14, &[u64::MAX, 7]).unwrap();
        status.set_numbers(0, &[3]).unwrap();
        let numbers = status.numbers().unwrap();
        assert_eq!((numbers[0], numbers[1], numbers[14], numbers[15]), (3, 0, u64::MAX, 7));
        assert!(status.set_numbers(15, &[1, 2]).is_err());
        assert_eq!(status.read().unwrap(), Report::default());
    }

    #[test]
    fn the_last_error_is_kept_of_each_stream() {
        let status = Status::new(tempfile::tempfile().unwrap());
        let kinds = || status.errors().unwrap().map(|error| error.map(|error| error.kind()));
        assert_eq!(kinds(), [None, None]);
        status.set_error(0, Some(Errno::NOSPC.raw_os_error())).unwrap();
        status.set_error(1, Some(Errno::ROFS.raw_os_error())).unwrap();
        assert_eq!(kinds(), [Some(io::ErrorKind::StorageFull), Some(io::ErrorKind::ReadOnlyFilesystem)]);
        status.set_error(0, None).unwrap();
        assert_eq!(kinds(), [None, Some(io::ErrorKind::ReadOnlyFilesystem)]);
        assert_eq!((status.numbers().unwrap(), status.read().unwrap()), ([0; NUMBERS], Report::default()));
    }

    #[test]
    fn what_is_written_is_read() {
        let status = Status::new(tempfile::tempfile().unwrap());
        assert_eq!(status.read().unwrap(), Report::default());
        status.set_lost(1, u64::MAX - 7).unwrap();
        assert_eq!(status.read().unwrap(), Report { lost: [0, u64::MAX - 7], ..Report::default() });
        status.set_lost(0, 5).unwrap();
        status.finish().unwrap();
        status.unfinish().unwrap();
        assert!(!status.read().unwrap().finished);
        status.finish().unwrap();
        assert_eq!(
            status.read().unwrap(),
            Report { lost: [5, u64::MAX - 7], finished: true, ..Report::default() }
        );
    }
}
