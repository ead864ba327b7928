//! Bounded copying from untrusted sources.

use std::io::{self, Read, Write};

const BUFFER_SIZE: usize = 64 << 10;

/// Contents of an archive that are accepted whatever its size is. Small files compress well, or are sparse.
const SMALL: u64 = 64 << 20;

/// Copies up to a total number of bytes.
pub(super) struct Copier {
    buffer: Box<[u8]>,
    allowance: Allowance,
}

/// A number of bytes that may still be read or written.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    left: u64,
    exceeded: LimitExceeded,
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

/// The files of a job exceed a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LimitExceeded {
    #[error(
        "the container's files exceed {limit} bytes, counting archives and their contents; `max_size` of `[fetch]` \
         is the limit"
    )]
    Size { limit: u64 },
    #[error(
        "its contents exceed {limit} bytes, which is more than an archive of {archive} bytes may contain; `max_ratio` \
         of `[fetch]` is the limit"
    )]
    Ratio { limit: u64, archive: u64 },
}

impl LimitExceeded {
    /// Whether a reader has failed with this error.
    pub(super) fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Self>())
    }
}

impl Copier {
    /// Copies up to `limit` bytes in all calls together.
    pub(super) fn new(limit: u64) -> Self {
        let allowance = Allowance { left: limit, exceeded: LimitExceeded::Size { limit } };
        Self { buffer: vec![0; BUFFER_SIZE].into(), allowance }
    }

    /// What may be read from the archive that is unpacked next, or written to its members.
    pub(super) fn contents(&self, archive: u64, ratio: u64) -> Allowance {
        let limit = archive.saturating_mul(ratio).max(SMALL);
        let by_ratio = Allowance { left: limit, exceeded: LimitExceeded::Ratio { limit, archive } };
        if limit < self.allowance.left { by_ratio } else { self.allowance.clone() }
    }

    /// Copies everything. Returns the number of bytes.
    pub(super) fn copy(&mut self, from: impl Read, to: impl Write) -> Result<u64, CopyError> {
        Self::copy_within(&mut self.buffer, &mut [&mut self.allowance], from, to)
    }

    /// Counts bytes that are copied by other means.
    pub(super) fn claim(&mut self, bytes: u64) -> Result<(), LimitExceeded> {
        self.allowance.take(bytes)
    }

    /// Bytes that were copied are gone.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.allowance.left += bytes;
    }

    /// Copies the contents of an archive, which have an allowance of their own.
    pub(super) fn unpack(
        &mut self,
        contents: &mut Allowance,
        from: impl Read,
        to: impl Write,
    ) -> Result<u64, CopyError> {
        Self::copy_within(&mut self.buffer, &mut [contents, &mut self.allowance], from, to)
    }

    fn copy_within(
        buffer: &mut [u8],
        allowances: &mut [&mut Allowance],
        mut from: impl Read,
        mut to: impl Write,
    ) -> Result<u64, CopyError> {
        let mut copied = 0;
        loop {
            let count = match from.read(buffer) {
                Ok(0) => return Ok(copied),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(CopyError::Read { source }),
            };
            for allowance in allowances.iter_mut() {
                allowance.take(count as u64)?;
            }
            to.write_all(&buffer[..count]).map_err(|source| CopyError::Write { source })?;
            copied += count as u64;
        }
    }
}

impl Allowance {
    fn take(&mut self, count: u64) -> Result<(), LimitExceeded> {
        self.left = self.left.checked_sub(count).ok_or_else(|| self.exceeded.clone())?;
        Ok(())
    }
}

/// A reader that fails after a number of bytes, unlike [`Read::take`], which reports the end of the file.
pub(super) struct LimitedReader<R> {
    inner: R,
    allowance: Allowance,
}

impl<R> LimitedReader<R> {
    pub(super) fn new(inner: R, allowance: Allowance) -> Self {
        Self { inner, allowance }
    }
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.allowance.take(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_applies_to_all_copies_together() {
        let mut copier = Copier::new(10);
        let mut written = Vec::new();
        assert_eq!(copier.copy(&b"sixsix"[..], &mut written).unwrap(), 6);
        assert_eq!(written.as_slice(), &b"sixsix"[..]);
        copier.give_back(6);
        copier.claim(6).unwrap();
        assert_eq!(copier.copy(&b"four"[..], io::sink()).unwrap(), 4);
        let error = copier.copy(&b"1"[..], io::sink()).unwrap_err();
        assert!(matches!(error, CopyError::LimitExceeded(LimitExceeded::Size { limit: 10 })));
        assert_eq!(copier.claim(1).unwrap_err(), LimitExceeded::Size { limit: 10 });
    }

    #[test]
    fn contents_are_limited_by_the_size_of_their_archive_unless_they_are_small() {
        let mut copier = Copier::new(1 << 40);
        let contents = |archive, ratio| copier.contents(archive, ratio).exceeded;
        assert_eq!(contents(1, 1), LimitExceeded::Ratio { limit: SMALL, archive: 1 });
        assert_eq!(contents(SMALL, 3), LimitExceeded::Ratio { limit: 3 * SMALL, archive: SMALL });
        assert_eq!(contents(u64::MAX, 2), LimitExceeded::Size { limit: 1 << 40 });
        let mut allowance = copier.contents(1, 1);
        assert_eq!(copier.unpack(&mut allowance, io::repeat(0).take(SMALL), io::sink()).unwrap(), SMALL);
        let error = copier.unpack(&mut allowance, &b"1"[..], io::sink()).unwrap_err();
        assert!(matches!(error, CopyError::LimitExceeded(LimitExceeded::Ratio { .. })), "{error}");
    }

    #[test]
    fn a_limited_reader_fails_after_its_limit() {
        let allowance = |limit| Copier::new(limit).allowance;
        let read = |limit| LimitedReader::new(&b"12345"[..], allowance(limit)).read_to_end(&mut Vec::new());
        assert_eq!(read(5).unwrap(), 5);
        assert!(read(4).is_err());
    }
}
