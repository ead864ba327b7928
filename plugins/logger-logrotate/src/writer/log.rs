//! The files of one stream: the current one, which grows by moving bytes to it from the pipe, and rotated ones.
//!
//! ```text
//! stdout          the current file        stdout.times        its times
//! stdout.1        the newest rotated      stdout.1.times
//! stdout.2.gz     compressed              stdout.2.times
//! ```

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice, tee};

use super::compression::{Compressions, Rotated};
use super::directory::{Directory, Renamed};
use super::times::Times;
use crate::options::Limits;

/// How much a file may be larger than its limit: it may end with a line of our own.
const LONGEST_NOTE: u64 = 256;

/// How often a new file is created until it has its name.
const ATTEMPTS: usize = 8;

/// The files of one stream.
#[derive(Debug)]
pub(super) struct Log {
    directory: Directory,
    name: &'static str,
    limits: Limits,
    compress: bool,
    stores_times: bool,
    file: File,
    size: u64,
    times: Option<Times>,
    compressions: Compressions,
    /// Bytes of earlier output that could not be kept, until they are returned.
    lost: u64,
}

impl Log {
    /// Continues with the files that are there.
    pub(super) fn open(
        directory: &Directory,
        name: &'static str,
        limits: Limits,
        compress: bool,
        stores_times: bool,
    ) -> io::Result<Self> {
        let (file, is_new) = match directory.open(name)? {
            Some(file) => (file, false),
            None => (directory.create(name)?, true),
        };
        let size = file.metadata()?.len();
        let mut log = Self {
            directory: directory.clone(),
            name,
            limits,
            compress,
            stores_times,
            file,
            size,
            times: None,
            compressions: Compressions::new(directory.clone(), name),
            lost: 0,
        };
        log.open_times(is_new);
        log.find_uncompressed();
        Ok(log)
    }

    /// Moves what is in the pipe to the current file, which is rotated before it becomes too large. Returns how many bytes
    /// have been moved, and how many of earlier output could not be kept.
    ///
    /// The bytes move within the kernel: they are in the pipe or in the file, also when this process is killed meanwhile.
    pub(super) fn take(&mut self, pipe: &OwnedFd, available: u64) -> io::Result<Taken> {
        let space = self.limits.max_size.saturating_sub(self.size);
        let length = if available <= space { available } else { self.up_to_a_line(pipe, space)? };
        if length == 0 {
            self.rotate()?;
            return Ok(Taken { moved: 0, lost: std::mem::take(&mut self.lost) });
        }
        if let Some(times) = &mut self.times {
            times.record(self.size);
        }
        let mut offset = self.size;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match splice(pipe, None, &self.file, Some(&mut offset), length, SpliceFlags::NONBLOCK) {
            Ok(moved) => {
                self.size += moved as u64;
                Ok(Taken { moved: moved as u64, lost: 0 })
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::default()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes a line of our own, or nothing.
    pub(super) fn note(&mut self, line: &str) -> io::Result<()> {
        match self.file.write_all_at(line.as_bytes(), self.size) {
            Ok(()) => {
                self.size += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.size)?;
                Err(error)
            }
        }
    }

    /// Compresses a part of a rotated file.
    pub(super) fn compress(&mut self) {
        self.compressions.step();
    }

    /// Whether there is something to compress.
    pub(super) fn is_compressing(&self) -> bool {
        !self.compressions.is_empty()
    }

    /// A compression that has not ended is undone: the container's end does not wait for it.
    pub(super) fn close(mut self) {
        self.compressions.abort();
    }

    /// How much to move of what does not fit in: up to the end of the last line that fits. A line that does not fit in
    /// begins in the next file, where it is cut if it is longer than a file.
    fn up_to_a_line(&self, pipe: &OwnedFd, space: u64) -> io::Result<u64> {
        let Some(wanted) = usize::try_from(space).ok().filter(|space| *space > 0) else { return Ok(0) };
        let (copy, to_copy) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if let Ok(capacity) = fcntl_getpipe_size(pipe) {
            // Otherwise less is copied.
            let _ = fcntl_setpipe_size(&to_copy, capacity);
        }
        let copied = match tee(pipe, &to_copy, wanted, SpliceFlags::NONBLOCK) {
            Ok(copied) => copied,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(errno) => return Err(errno.into()),
        };
        if copied < wanted {
            return Ok(copied as u64);
        }
        let mut bytes = vec![0; copied];
        let mut filled = 0;
        while filled < copied {
            match read(&copy, &mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last as u64 + 1,
            None if self.ends_with_a_line() => 0,
            None => space,
        })
    }

    /// Whether the current file has complete lines only, and at least one.
    fn ends_with_a_line(&self) -> bool {
        let mut last = [0];
        let at = self.size.checked_sub(1);
        at.is_some_and(|at| self.file.read_exact_at(&mut last, at).is_ok() && last == *b"\n")
    }

    /// Begins a new file, and counts what could not be kept because the container has put something in the way. After an error
    /// the current file is still the old one; the next rotation fills the gap that this one has left.
    fn rotate(&mut self) -> io::Result<()> {
        let new = format!("{}.new", self.name);
        let file = self.directory.create(&new)?;
        let rotated = |number: u32| format!("{}.{number}", self.name);
        let variants = |name: &str| ["", ".gz", ".times"].map(|end| format!("{name}{end}"));
        // The first number that is free, also if a rotation was cut short: then it fills the gap. Otherwise the oldest goes.
        let is_free = |number: &u32| {
            let [plain, compressed, _] = variants(&rotated(*number));
            !self.directory.has(&plain) && !self.directory.has(&compressed)
        };
        let last = (1..self.limits.max_files).find(is_free).unwrap_or(self.limits.max_files);
        variants(&rotated(last)).iter().for_each(|oldest| self.directory.remove(oldest));
        self.compressions.removed(last);
        for number in (1..last).rev() {
            for (from, to) in variants(&rotated(number)).iter().zip(variants(&rotated(number + 1))) {
                if self.directory.rename(from, &to)? == Renamed::Blocked {
                    if !from.ends_with(".times") {
                        self.lost += self.directory.size(from).min(self.largest());
                    }
                    self.directory.remove(from);
                    self.compressions.removed(number);
                }
            }
            self.compressions.renamed(number, number + 1);
        }
        let renamed = self.directory.rename(self.name, &rotated(1))?;
        if renamed == Renamed::Blocked {
            self.lost += self.size.min(self.largest());
            self.directory.remove(self.name);
        }
        // Without, there are none.
        let _ = self.directory.rename(&format!("{}.times", self.name), &format!("{}.times", rotated(1)));
        let file = self.put_in_place(&new, file)?;
        let file = std::mem::replace(&mut self.file, file);
        let size = std::mem::replace(&mut self.size, 0);
        if renamed == Renamed::Done {
            self.compress_later(Rotated { number: 1, file, size });
        }
        self.open_times(true);
        Ok(())
    }

    /// Gives a new file its name. The container can remove or replace it until then, but has to be as fast each time.
    fn put_in_place(&self, new: &str, mut file: File) -> io::Result<File> {
        for _ in 0..ATTEMPTS {
            if self.directory.rename(new, self.name)? == Renamed::Blocked {
                break;
            }
            if self.directory.is(self.name, &file)? {
                return Ok(file);
            }
            file = self.directory.create(new)?;
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Without space for the times, there are none.
    fn open_times(&mut self, is_new: bool) {
        self.times = None;
        if self.stores_times {
            let name = format!("{}.times", self.name);
            let file = match is_new {
                true => self.directory.create(&name).ok(),
                false => {
                    self.directory.open(&name).ok().flatten().or_else(|| self.directory.create(&name).ok())
                }
            };
            self.times = file.map(Times::new);
        }
    }

    /// Finds rotated files that an earlier companion has not compressed.
    fn find_uncompressed(&mut self) {
        if !self.compress {
            return;
        }
        for number in (1..=self.limits.max_files).rev() {
            if let Ok(Some(file)) = self.directory.open(&format!("{}.{number}", self.name))
                && let Ok(metadata) = file.metadata()
            {
                self.compress_later(Rotated { number, file, size: metadata.len() });
            }
        }
    }

    /// A file that is larger than we have written was made by the container, and stays as it is.
    fn compress_later(&mut self, rotated: Rotated) {
        if self.compress && rotated.size <= self.largest() {
            self.compressions.push(rotated);
        }
    }

    /// The largest that a file can be.
    const fn largest(&self) -> u64 {
        self.limits.max_size.saturating_add(LONGEST_NOTE)
    }
}

/// What has become of output.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes that were moved from the pipe to a file.
    pub(super) moved: u64,
    /// Bytes that were in a file and are in none any more.
    pub(super) lost: u64,
}
