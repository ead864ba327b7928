//! What was read and what was logged, in a file that outlives the switchboard.

use super::log::Log;
use crate::streams::{Counts, Kind};
use crate::sys::{self, Fd};

/// The counts, and the file of them.
pub(crate) struct Counting {
    counts: Counts,
    recorded: Counts,
    file: Fd,
}

impl Counting {
    pub(crate) fn new(file: Fd) -> Self {
        Self { counts: Counts::default(), recorded: Counts::default(), file }
    }

    /// So many bytes were read.
    pub(crate) fn read(&mut self, kind: Kind, length: usize) {
        let [out, err] = &mut self.counts.read;
        let count = if kind == Kind::Stderr { err } else { out };
        *count += length as u64;
    }

    /// The log has received what it says.
    pub(crate) fn logged(&mut self, log: &Log) {
        (self.counts.logged, self.counts.errno) = (log.logged(), log.errno());
    }

    /// Writes the counts to the file, if they have changed. Space for them is reserved.
    pub(crate) fn record(&mut self) {
        if self.counts != self.recorded && sys::write_at(self.file, &self.counts.encode(), 0).is_ok() {
            self.recorded = self.counts;
        }
    }
}
