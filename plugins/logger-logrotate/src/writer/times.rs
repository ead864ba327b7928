//! The times of a file's bytes: pairs of an offset and the time at which the bytes from there on were read.
//!
//! The file of the output stays as the container wrote it, and bytes can move to it without being looked at.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a pair.
pub(super) const PAIR: u64 = 16;

/// Output that follows within this time has no time of its own, in nanoseconds.
const RESOLUTION: u64 = 10_000_000;

/// The file with the times of another one.
#[derive(Debug)]
pub(super) struct Times {
    file: File,
    length: u64,
    last: Option<u64>,
}

impl Times {
    /// Appends to a file. An incomplete pair at its end is overwritten.
    pub(super) fn new(file: File) -> Self {
        let length = file.metadata().map_or(0, |metadata| metadata.len()) / PAIR * PAIR;
        let mut time = [0; 8];
        let last = length
            .checked_sub(8)
            .and_then(|at| file.read_exact_at(&mut time, at).ok())
            .map(|()| u64::from_le_bytes(time));
        Self { file, length, last }
    }

    /// Records that the bytes from `offset` on are being read now. The output is more important than its times: on a full
    /// disk, it has the time of what was read before.
    pub(super) fn record(&mut self, offset: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        // The clock may have been set back.
        let now = self.last.map_or(now, |last| now.max(last));
        if self.last.is_some_and(|last| now - last < RESOLUTION) {
            return;
        }
        let mut pair = [0; PAIR as usize];
        pair[..8].copy_from_slice(&offset.to_le_bytes());
        pair[8..].copy_from_slice(&now.to_le_bytes());
        if self.file.write_all_at(&pair, self.length).is_ok() {
            self.length += PAIR;
            self.last = Some(now);
        }
    }
}
