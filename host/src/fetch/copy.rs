//! Copies bytes, no more than allowed.

use std::io::{self, Read, Write};

const BUFFER: usize = 64 << 10;

/// Copies from strangers, and keeps account of all that it copied.
pub(super) struct Copier {
    buffer: Box<[u8]>,
    most: u64,
    left: u64,
}

/// Why a copy is not complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("it cannot be read any further")]
    Read { source: io::Error },
    #[error("it cannot be written to the sandbox")]
    Write { source: io::Error },
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
}

/// There is more than a container may fetch.
#[derive(Debug, thiserror::Error)]
#[error("the container's files are larger than {most} bytes, archives and their contents counted")]
pub(super) struct TooMuch {
    most: u64,
}

impl Copier {
    /// One that copies no more than `most` bytes in its life.
    pub(super) fn new(most: u64) -> Self {
        Self { buffer: vec![0; BUFFER].into(), most, left: most }
    }

    /// How many bytes it may copy in its life.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// Copies everything, showing each piece to `see` first; returns how much it was.
    pub(super) fn copy(
        &mut self,
        mut from: impl Read,
        mut to: impl Write,
        mut see: impl FnMut(&[u8]),
    ) -> Result<u64, CopyError> {
        let before = self.left;
        loop {
            let count = match from.read(&mut self.buffer) {
                Ok(0) => return Ok(before - self.left),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(CopyError::Read { source }),
            };
            self.left = self.left.checked_sub(count as u64).ok_or(TooMuch { most: self.most })?;
            let piece = &self.buffer[..count];
            see(piece);
            to.write_all(piece).map_err(|source| CopyError::Write { source })?;
        }
    }
}

/// A reader that fails when there is more than `left`, where [`Read::take`] would look like the end.
pub(super) struct Metered<R> {
    inner: R,
    most: u64,
    left: u64,
}

impl<R> Metered<R> {
    pub(super) fn new(inner: R, most: u64) -> Self {
        Self { inner, most, left: most }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let most = self.most;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(TooMuch { most }))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowance_is_for_all_copies_together() {
        let mut copier = Copier::new(10);
        let (mut seen, mut written) = (Vec::new(), Vec::new());
        let copied =
            copier.copy(&b"sixsix"[..], &mut written, |piece| seen.extend_from_slice(piece)).unwrap();
        assert_eq!((copied, copier.most()), (6, 10));
        assert_eq!((seen.as_slice(), written.as_slice()), (&b"sixsix"[..], &b"sixsix"[..]));
        assert_eq!(copier.copy(&b"four"[..], io::sink(), |_| {}).unwrap(), 4);
        let error = copier.copy(&b"1"[..], io::sink(), |_| {}).unwrap_err();
        assert!(matches!(error, CopyError::TooMuch(TooMuch { most: 10 })));
    }

    #[test]
    fn a_metered_reader_allows_the_last_byte_and_not_one_more() {
        let read = |most| Metered::new(&b"12345"[..], most).read_to_end(&mut Vec::new());
        assert_eq!(read(5).unwrap(), 5);
        assert!(read(4).is_err());
    }
}
