//! The compression of a rotated file, a part at a time, so that output does not have to wait for it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;

use flate2::write::GzEncoder;
use flate2::{Compression as Level, GzBuilder};

use super::directory::Directory;

/// Bytes that are compressed at a time.
const PART: usize = 64 << 10;

/// A compression in progress.
#[derive(Debug)]
pub(super) struct Compression {
    directory: Directory,
    plain: String,
    source: File,
    encoder: GzEncoder<File>,
}

/// Whether it continues.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Continues,
    Ended,
}

impl Compression {
    /// Begins to compress a file, in place of which there will be one whose name ends in `.gz`. `None` if there is none.
    pub(super) fn begin(directory: &Directory, plain: String) -> io::Result<Option<Self>> {
        let Some(source) = directory.open(&plain)? else { return Ok(None) };
        let metadata = source.metadata()?;
        // For readers that have it open.
        let mut extra = b"CF\x10\x00".to_vec();
        extra.extend(metadata.dev().to_le_bytes());
        extra.extend(metadata.ino().to_le_bytes());
        let target = directory.create(&temporary(&plain))?;
        let mtime = u32::try_from(metadata.mtime()).unwrap_or_default();
        let encoder = GzBuilder::new().mtime(mtime).extra(extra).write(target, Level::default());
        Ok(Some(Self { directory: directory.clone(), plain, source, encoder }))
    }

    /// Compresses the next part. If that fails, the file stays as it is.
    pub(super) fn step(&mut self) -> Progress {
        match self.compress() {
            Ok(progress) => progress,
            Err(_) => {
                self.abort();
                Progress::Ended
            }
        }
    }

    /// Compresses the rest.
    pub(super) fn finish(mut self) {
        while self.step() == Progress::Continues {}
    }

    /// Keeps the file as it is.
    pub(super) fn abort(&self) {
        self.directory.remove(&temporary(&self.plain));
    }

    fn compress(&mut self) -> io::Result<Progress> {
        let mut part = vec![0; PART];
        let count = self.source.read(&mut part)?;
        if count > 0 {
            self.encoder.write_all(&part[..count])?;
            return Ok(Progress::Continues);
        }
        self.encoder.try_finish()?;
        // Between the two, both are there, and readers use the first that they find.
        if !self.directory.rename(&temporary(&self.plain), &format!("{}.gz", self.plain)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.directory.remove(&self.plain);
        Ok(Progress::Ended)
    }
}

fn temporary(plain: &str) -> String {
    format!("{plain}.gz.new")
}
