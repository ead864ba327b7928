//! A file while it is being received.

use std::fs::File;
use std::io::{self, Seek, Write};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::report::Report;

/// A file that is being received.
pub(super) struct Target<'a> {
    file: &'a mut File,
    verifier: Verifier,
    received: u64,
    report: &'a mut Report,
}

/// Compares the hash of what is written to it with the one that is expected, if there is one.
pub(super) struct Verifier {
    expected: Option<[u8; 32]>,
    hash: Sha256,
}

/// A file has another hash than it should.
#[derive(Debug, thiserror::Error)]
#[error("its SHA-256 is `{}`, expected `{}`", HEXLOWER.encode(actual), HEXLOWER.encode(expected))]
pub(super) struct Mismatch {
    expected: [u8; 32],
    actual: [u8; 32],
}

impl<'a> Target<'a> {
    /// An empty file, with the hash that is expected.
    pub(super) fn new(file: &'a mut File, sha256: Option<[u8; 32]>, report: &'a mut Report) -> Self {
        Self { file, verifier: Verifier::new(sha256), received: 0, report }
    }

    /// The number of bytes so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// A source begins to send a file of this size.
    pub(super) fn begin(&mut self, size: Option<u64>) {
        self.report.begin(size);
    }

    /// Discards what was received. Returns how many bytes that was.
    pub(super) fn restart(&mut self) -> io::Result<u64> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.verifier.hash.reset();
        Ok(std::mem::take(&mut self.received))
    }

    /// Verifies the hash.
    pub(super) fn verify(self) -> Result<(), Mismatch> {
        self.verifier.verify()
    }
}

impl Write for Target<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.verifier.update(&bytes[..count]);
        self.received += count as u64;
        self.report.received(self.received);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Verifier {
    pub(super) fn new(sha256: Option<[u8; 32]>) -> Self {
        Self { expected: sha256, hash: Sha256::new() }
    }

    fn update(&mut self, bytes: &[u8]) {
        if self.expected.is_some() {
            self.hash.update(bytes);
        }
    }

    pub(super) fn verify(self) -> Result<(), Mismatch> {
        let Some(expected) = self.expected else { return Ok(()) };
        let actual = self.hash.finalize().into();
        if actual == expected { Ok(()) } else { Err(Mismatch { expected, actual }) }
    }
}

impl Write for Verifier {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
