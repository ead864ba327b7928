//! A stream, and how much of it was read.

use std::io::{self, Read};

use cofferdam_core::provisioner::Digest;

use super::Progress;

/// Bytes between two reports.
const STEP: u64 = 256 << 10;

/// Reports how much of a stream was read.
pub(super) struct Metered<'p, R> {
    stream: R,
    layer: Option<Digest>,
    size: Option<u64>,
    read: u64,
    reported: u64,
    progress: &'p (dyn Fn(Progress) + Sync),
}

impl<'p, R> Metered<'p, R> {
    /// A stream of this size, if that is known; that of a layer if it is not the whole source.
    pub(super) fn new(
        stream: R,
        layer: Option<Digest>,
        size: Option<u64>,
        progress: &'p (dyn Fn(Progress) + Sync),
    ) -> Self {
        let metered = Self { stream, layer, size, read: 0, reported: 0, progress };
        metered.report();
        metered
    }

    fn report(&self) {
        let Self { layer, size, read, .. } = *self;
        (self.progress)(Progress::Read { layer, read, size });
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.read += count as u64;
        if self.read - self.reported >= STEP {
            self.reported = self.read;
            self.report();
        }
        Ok(count)
    }
}
