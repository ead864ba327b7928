//! The compression of rotated files, a part at a time, so that output does not have to wait for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use flate2::write::GzEncoder;
use flate2::{Compression as Level, GzBuilder};

use super::directory::{Directory, Renamed};

/// Bytes that are compressed at a time: as many as a pipe can hold, so that it keeps up with the output.
const PART: u64 = 256 << 10;

/// The rotated files of one stream that are to be compressed, the oldest first.
#[derive(Debug)]
pub(super) struct Compressions {
    directory: Directory,
    name: &'static str,
    waiting: VecDeque<Rotated>,
    current: Option<Current>,
}

/// A rotated file. The container can change every name and every size, so it is read by its descriptor, and not further than
/// what was written to it.
#[derive(Debug)]
pub(super) struct Rotated {
    /// Its number, which grows with each rotation.
    pub(super) number: u32,
    pub(super) file: File,
    /// Bytes that were written to it.
    pub(super) size: u64,
}

/// The one that is being compressed.
#[derive(Debug)]
struct Current {
    source: Rotated,
    /// Bytes of it that have been compressed.
    done: u64,
    encoder: GzEncoder<File>,
}

impl Compressions {
    pub(super) const fn new(directory: Directory, name: &'static str) -> Self {
        Self { directory, name, waiting: VecDeque::new(), current: None }
    }

    pub(super) fn push(&mut self, rotated: Rotated) {
        self.waiting.push_back(rotated);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    /// A file has another number.
    pub(super) fn renamed(&mut self, from: u32, to: u32) {
        let current = self.current.iter_mut().map(|current| &mut current.source);
        for rotated in current.chain(&mut self.waiting).filter(|rotated| rotated.number == from) {
            rotated.number = to;
        }
    }

    /// A file is not there any more.
    pub(super) fn removed(&mut self, number: u32) {
        if self.current.as_ref().is_some_and(|current| current.source.number == number) {
            self.abort();
        }
        self.waiting.retain(|rotated| rotated.number != number);
    }

    /// Compresses the next part. If that fails, the file stays as it is.
    pub(super) fn step(&mut self) {
        if self.try_step().is_err() {
            self.abort();
        }
    }

    /// Keeps the file that is being compressed as it is.
    pub(super) fn abort(&mut self) {
        if self.current.take().is_some() {
            self.directory.remove(&self.temporary());
        }
    }

    fn try_step(&mut self) -> io::Result<()> {
        let mut current = match self.current.take() {
            Some(current) => current,
            None => match self.waiting.pop_front() {
                Some(rotated) => self.begin(rotated)?,
                None => return Ok(()),
            },
        };
        let continues = current.compress();
        let current = self.current.insert(current);
        if continues? {
            return Ok(());
        }
        current.encoder.try_finish()?;
        let plain = format!("{}.{}", self.name, current.source.number);
        // Between the two, both are there, and readers use the first that they find.
        if self.directory.rename(&self.temporary(), &format!("{plain}.gz"))? == Renamed::Blocked {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.directory.remove(&plain);
        self.current = None;
        Ok(())
    }

    fn begin(&self, source: Rotated) -> io::Result<Current> {
        let metadata = source.file.metadata()?;
        // For readers that have it open.
        let mut extra = b"CF\x10\x00".to_vec();
        extra.extend(metadata.dev().to_le_bytes());
        extra.extend(metadata.ino().to_le_bytes());
        let target = self.directory.create(&self.temporary())?;
        let mtime = u32::try_from(metadata.mtime()).unwrap_or_default();
        let encoder = GzBuilder::new().mtime(mtime).extra(extra).write(target, Level::default());
        Ok(Current { source, done: 0, encoder })
    }

    fn temporary(&self) -> String {
        format!("{}.gz.new", self.name)
    }
}

impl Current {
    /// Compresses a part. Returns whether there is more.
    fn compress(&mut self) -> io::Result<bool> {
        let length = (self.source.size - self.done).min(PART);
        let mut part = vec![0; usize::try_from(length).unwrap_or_default()];
        let count = self.source.file.read_at(&mut part, self.done)?;
        self.encoder.write_all(&part[..count])?;
        self.done += count as u64;
        Ok(count > 0 && self.done < self.source.size)
    }
}
