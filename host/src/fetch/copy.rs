//! Bounded copying from untrusted sources.

use std::io::{self, Read, Write};

const BUFFER_SIZE: usize = 64 << 10;

/// Copies up to a total number of bytes.
pub(super) struct Copier {
    buffer: Box<[u8]>,
    limit: u64,
    left: u64,
}

/// Why a copy is incomplete.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("cannot read it")]
    Read { source: io::Error },
    #[error("cannot write it to the sandbox")]
    Write { source: io::Error },
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
}

/// The files of a job exceed the limit of a container.
#[derive(Debug, thiserror::Error)]
#[error("the container's files exceed {limit} bytes, counting archives and their contents")]
pub(super) struct LimitExceeded {
    limit: u64,
}

impl Copier {
    /// Copies up to `limit` bytes in all calls together.
    pub(super) fn new(limit: u64) -> Self {
        Self { buffer: vec![0; BUFFER_SIZE].into(), limit, left: limit }
    }

    /// The limit of all calls together.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Copies everything and passes each chunk to `inspect` first. Returns the number of bytes.
    pub(super) fn copy(
        &mut self,
        mut from: impl Read,
        mut to: impl Write,
        mut inspect: impl FnMut(&[u8]),
    ) -> Result<u64, CopyError> {
        let before = self.left;
        loop {
            let count = match from.read(&mut self.buffer) {
                Ok(0) => return Ok(before - self.left),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(CopyError::Read { source }),
            };
            self.left = self.left.checked_sub(count as u64).ok_or(LimitExceeded { limit: self.limit })?;
            let chunk = &self.buffer[..count];
            inspect(chunk);
            to.write_all(chunk).map_err(|source| CopyError::Write { source })?;
        }
    }
}

/// A reader that fails after `limit` bytes, unlike [`Read::take`], which reports the end of the file.
pub(super) struct LimitedReader<R> {
    inner: R,
    limit: u64,
    left: u64,
}

impl<R> LimitedReader<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self { inner, limit, left: limit }
    }
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let exceeded = || io::Error::other(LimitExceeded { limit: self.limit });
        self.left = self.left.checked_sub(count as u64).ok_or_else(exceeded)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_applies_to_all_copies_together() {
        let mut copier = Copier::new(10);
        let (mut seen, mut written) = (Vec::new(), Vec::new());
        let copied =
            copier.copy(&b"sixsix"[..], &mut written, |chunk| seen.extend_from_slice(chunk)).unwrap();
        assert_eq!((copied, copier.limit()), (6, 10));
        assert_eq!((seen.as_slice(), written.as_slice()), (&b"sixsix"[..], &b"sixsix"[..]));
        assert_eq!(copier.copy(&b"four"[..], io::sink(), |_| {}).unwrap(), 4);
        let error = copier.copy(&b"1"[..], io::sink(), |_| {}).unwrap_err();
        assert!(matches!(error, CopyError::LimitExceeded(LimitExceeded { limit: 10 })));
    }

    #[test]
    fn a_limited_reader_fails_after_its_limit() {
        let read = |limit| LimitedReader::new(&b"12345"[..], limit).read_to_end(&mut Vec::new());
        assert_eq!(read(5).unwrap(), 5);
        assert!(read(4).is_err());
    }
}
