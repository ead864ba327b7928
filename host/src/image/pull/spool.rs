//! A blob between the thread that downloads it and the one that unpacks it: in a file, so that neither waits for the other
//! longer than it has to, and that it can be resumed.

use std::io::{self, Read};

use cofferdam_core::provisioner::{PartialBlob, StoreError};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// A blob that is being downloaded.
pub(super) struct Spool<'a> {
    partial: &'a PartialBlob,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct State {
    length: u64,
    end: Option<End>,
    /// Nobody reads any more.
    is_abandoned: bool,
}

/// How a download has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Failed,
}

impl<'a> Spool<'a> {
    /// A blob of which some bytes are there.
    pub(super) fn new(partial: &'a PartialBlob, length: u64) -> Self {
        Self {
            partial,
            state: Mutex::new(State { length, end: None, is_abandoned: false }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.state().length
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.state().is_abandoned
    }

    /// Adds bytes at the end.
    pub(super) fn push(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.partial.write(bytes, self.length())?;
        self.state().length += bytes.len() as u64;
        self.changed.notify_all();
        Ok(())
    }

    /// The download ends when this is dropped, also by a panic. Then a reader has what there is, or fails.
    pub(super) fn ending(&self) -> Ending<'_> {
        Ending { spool: self }
    }

    fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed.notify_all();
    }

    pub(super) fn abandon(&self) {
        self.state().is_abandoned = true;
    }

    /// Reads it from its beginning, and waits for what is not there yet.
    pub(super) fn reader(&self) -> impl Read + '_ {
        Reader { spool: self, position: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The end of a download: it has failed unless it is complete.
pub(super) struct Ending<'a> {
    spool: &'a Spool<'a>,
}

impl Ending<'_> {
    pub(super) fn complete(&self) {
        self.spool.end(End::Complete);
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.spool.end(End::Failed);
    }
}

struct Reader<'a> {
    spool: &'a Spool<'a>,
    position: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { spool, position } = self;
        let is_waiting = |state: &mut State| state.length <= *position && state.end.is_none();
        let mut state = spool.state();
        spool.changed.wait_while(&mut state, is_waiting);
        let State { length, end, .. } = *state;
        drop(state);
        if length <= *position {
            return match end {
                Some(End::Failed) => Err(io::Error::other("its download has failed")),
                _ => Ok(0),
            };
        }
        let limit = usize::try_from(length - *position).unwrap_or(usize::MAX).min(buffer.len());
        let count = spool.partial.read(&mut buffer[..limit], *position)?;
        if count == 0 && limit > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;
    use std::thread;

    use cofferdam_core::provisioner::{Digest, Store};

    use super::*;

    #[test]
    fn a_reader_does_not_wait_for_a_download_that_has_panicked() {
        let directory = tempfile::tempdir().unwrap();
        let import = Store::at(directory.path().join("store")).import().unwrap();
        let partial = import.download(&Digest::of(b""), || {}).unwrap();
        let spool = Spool::new(&partial, 0);
        thread::scope(|scope| {
            let download = || {
                let _ending = spool.ending();
                spool.push(b"begin").unwrap();
                resume_unwind(Box::new(()));
            };
            let downloading = scope.spawn(download);
            let mut read = Vec::new();
            assert!(spool.reader().read_to_end(&mut read).is_err());
            assert_eq!(read, b"begin");
            assert!(downloading.join().is_err());
        });
        let spool = Spool::new(&partial, 5);
        spool.ending().complete();
        let mut read = Vec::new();
        assert_eq!(spool.reader().read_to_end(&mut read).unwrap(), 5);
    }
}
