//! What has been taken from a pipe and not been passed on yet: the end of a file in the plugin's directory.
//!
//! ```text
//! position in the stream   0 ───────── base ───────── base + passed ─────────── base + end
//! position in the file                 0 ── passed on ──▶ passed ───── kept ────▶ end
//! ```
//!
//! The file grows by moving bytes to it from the pipe within the kernel, so that they are in one of the two at any moment. The
//! other numbers are in the status file. When everything has been passed on, the file is emptied before they are changed: a
//! companion that finds more passed on than there is was preceded by one that was killed in between.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::status::{NUMBERS, Status};

/// How large the file is before it is emptied.
const EMPTIED_AT: u64 = 256 << 10;

/// How much of what has been passed on is given back to the file system at once.
const RETURNED_AT: u64 = 1 << 20;

/// The bytes of a stream that have been taken, and that one of several readers has not been passed on yet. A companion that is
/// killed leaves them to the next one. What a reader was being passed then, it is passed again.
#[derive(Debug)]
pub struct Spool<'a, const READERS: usize = 1> {
    file: File,
    status: &'a Status,
    /// Index of its numbers in the status.
    number: usize,
    base: u64,
    passed: [u64; READERS],
    end: u64,
    /// Beginning of the file whose space has been given back.
    returned: u64,
    /// How much is kept.
    limit: u64,
}

/// The result of taking bytes from a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// They are in the file, or there were none.
    Done,
    /// The file system has no space for them, or another error that may pass.
    Refused(Errno),
}

/// The base, and what has been passed on to each reader, given how long the file is.
fn positions<const READERS: usize>(
    numbers: [u64; NUMBERS],
    first: usize,
    length: u64,
) -> (u64, [u64; READERS]) {
    let base = numbers[first];
    let passed: [u64; READERS] = std::array::from_fn(|reader| numbers[first + 1 + reader]);
    let last = passed.into_iter().max().unwrap_or_default();
    if last > length { (base + last, [0; READERS]) } else { (base, passed) }
}

impl<'a, const READERS: usize> Spool<'a, READERS> {
    /// How many of the companion's own numbers it needs in the [`Status`].
    pub const NUMBERS: usize = 1 + READERS;

    /// Continues with what is in a file. `number` is the index of the first of its numbers; `limit` is how many bytes it keeps.
    ///
    /// # Errors
    /// Those of the two files.
    pub fn open(file: File, status: &'a Status, number: usize, limit: u64) -> io::Result<Self> {
        let end = file.metadata()?.len();
        let (base, passed) = positions(status.numbers()?, number, end);
        let spool = Self { file, status, number, base, passed, end, returned: 0, limit };
        spool.store()?;
        Ok(spool)
    }

    /// The bytes that have not been passed on to each reader, with a file of this length. For [`Job::backlog`](super::Job::backlog).
    #[must_use]
    pub fn backlog(status: &Status, number: usize, length: u64) -> [u64; READERS] {
        let Ok(numbers) = status.numbers() else { return [length; READERS] };
        positions::<READERS>(numbers, number, length).1.map(|passed| length - passed)
    }

    /// Position in the stream of the first byte that has not been passed on to a reader.
    #[must_use]
    pub fn position(&self, reader: usize) -> u64 {
        self.base + self.passed[reader]
    }

    /// Position in the stream of the next byte that is taken.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base + self.end
    }

    /// Whether everything has been passed on to a reader.
    #[must_use]
    pub fn is_drained(&self, reader: usize) -> bool {
        self.passed[reader] == self.end
    }

    /// Beginning of what not all readers have been passed on.
    fn first(&self) -> u64 {
        self.passed.into_iter().min().unwrap_or(self.end)
    }

    /// How much more may be taken.
    #[must_use]
    pub fn space(&self) -> u64 {
        self.limit.saturating_sub(self.end - self.first())
    }

    /// Moves what is in the pipe to the file, as far as there is space.
    ///
    /// # Errors
    /// Those that do not pass.
    pub fn take(&mut self, pipe: &OwnedFd, available: u64) -> io::Result<Taken> {
        let length = usize::try_from(available.min(self.space())).unwrap_or(usize::MAX);
        let mut offset = self.end;
        match splice(pipe, None, &self.file, Some(&mut offset), length, SpliceFlags::NONBLOCK) {
            Ok(moved) => {
                self.end += moved as u64;
                Ok(Taken::Done)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::Done),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO | Errno::ROFS)) => {
                Ok(Taken::Refused(errno))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads what has not been passed on to a reader, from a distance to its beginning on. Returns how many bytes.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read(&self, reader: usize, distance: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let left = (self.end - self.passed[reader]).saturating_sub(distance);
        let length = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut bytes[..length], self.passed[reader] + distance)?;
        Ok(length)
    }

    /// The first bytes have been passed on to a reader.
    ///
    /// # Errors
    /// Those of the two files.
    pub fn advance(&mut self, reader: usize, bytes: u64) -> io::Result<()> {
        self.passed[reader] += bytes;
        self.status.set_numbers(self.number + 1 + reader, &[self.passed[reader]])?;
        let first = self.first();
        if first == self.end && self.end >= EMPTIED_AT {
            ftruncate(&self.file, 0)?;
            self.base += self.end;
            (self.passed, self.end, self.returned) = ([0; READERS], 0, 0);
            self.store()?;
        } else if first - self.returned >= RETURNED_AT {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Where that is not supported, it is given back when everything has been passed on.
            let _ = fallocate(&self.file, flags, self.returned, first - self.returned);
            self.returned = first;
        }
        Ok(())
    }

    /// Stores all numbers at once.
    fn store(&self) -> io::Result<()> {
        let numbers: Vec<u64> = std::iter::once(self.base).chain(self.passed).collect();
        self.status.set_numbers(self.number, &numbers)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// A pipe with these bytes in it.
    fn pipe(bytes: &[u8]) -> OwnedFd {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        File::from(writer).write_all(bytes).unwrap();
        reader
    }

    fn status() -> Status {
        Status::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn another_companion_continues_where_the_last_one_was_killed() {
        let (file, status) = (tempfile::tempfile().unwrap(), status());
        let open = || Spool::<2>::open(file.try_clone().unwrap(), &status, 3, 1000).unwrap();
        let mut spool = open();
        assert_eq!(spool.take(&pipe(b"abcdef"), 6).unwrap(), Taken::Done);
        spool.advance(0, 2).unwrap();
        spool.advance(1, 6).unwrap();
        assert_eq!(Spool::<2>::backlog(&status, 3, 6), [4, 0]);
        drop(spool);
        let spool = open();
        let mut bytes = [0; 10];
        assert_eq!((spool.position(0), spool.position(1), spool.end()), (2, 6, 6));
        assert_eq!(spool.space(), 996);
        assert_eq!(spool.read(0, 1, &mut bytes).unwrap(), 3);
        assert_eq!(&bytes[..3], b"def");
        assert!(spool.is_drained(1) && !spool.is_drained(0));
    }

    #[test]
    fn no_more_is_taken_than_may_be_kept() {
        let status = status();
        let mut spool = Spool::<1>::open(tempfile::tempfile().unwrap(), &status, 0, 4).unwrap();
        let pipe = pipe(b"abcdef");
        spool.take(&pipe, 6).unwrap();
        assert_eq!((spool.end(), spool.space()), (4, 0));
        spool.advance(0, 3).unwrap();
        spool.take(&pipe, 2).unwrap();
        assert_eq!((spool.position(0), spool.end(), spool.space()), (3, 6, 1));
    }

    #[test]
    fn the_file_is_emptied_and_positions_continue_also_after_a_kill_in_between() {
        let (file, status) = (tempfile::tempfile().unwrap(), status());
        file.set_len(EMPTIED_AT).unwrap();
        let mut spool = Spool::<2>::open(file.try_clone().unwrap(), &status, 0, 1 << 20).unwrap();
        spool.advance(0, EMPTIED_AT).unwrap();
        assert_eq!(file.metadata().unwrap().len(), EMPTIED_AT);
        spool.advance(1, EMPTIED_AT).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert_eq!((spool.position(0), spool.end()), (EMPTIED_AT, EMPTIED_AT));
        drop(spool);
        // Emptied, and killed before that was stored.
        status.set_numbers(0, &[EMPTIED_AT, 7, 7]).unwrap();
        assert_eq!(Spool::<2>::backlog(&status, 0, 0), [0, 0]);
        let spool = Spool::<2>::open(file, &status, 0, 1 << 20).unwrap();
        assert_eq!((spool.position(1), spool.is_drained(1)), (EMPTIED_AT + 7, true));
    }

    #[test]
    fn space_of_what_has_been_passed_on_is_given_back_while_more_follows() {
        use std::os::unix::fs::MetadataExt;

        let (file, status) = (tempfile::tempfile().unwrap(), status());
        fallocate(&file, FallocateFlags::empty(), 0, 3 << 20).unwrap();
        let mut spool = Spool::<1>::open(file.try_clone().unwrap(), &status, 0, 4 << 20).unwrap();
        let before = file.metadata().unwrap().blocks();
        spool.advance(0, 2 << 20).unwrap();
        let after = file.metadata().unwrap();
        assert!(after.blocks() < before && after.len() == 3 << 20, "{} {before}", after.blocks());
    }
}
