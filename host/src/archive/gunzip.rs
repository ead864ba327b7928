//! Decompression that accepts what gzip(1) does: several members, and zero bytes after the last one.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// Decompresses all members of a gzip file.
pub(crate) struct Gunzip<R> {
    /// `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gunzip<R> {
    pub(crate) fn new(compressed: R) -> Self {
        Self { member: Some(GzDecoder::new(compressed)) }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let rest = self.member.take().map(GzDecoder::into_inner);
            self.member = rest.map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// The member that begins here. Tapes and disk images pad files with zero bytes.
fn next_member<R: BufRead>(mut compressed: R) -> io::Result<Option<GzDecoder<R>>> {
    if compressed.fill_buf()?.first().is_some_and(|byte| *byte != 0) {
        return Ok(Some(GzDecoder::new(compressed)));
    }
    loop {
        let padding = compressed.fill_buf()?;
        if padding.iter().any(|byte| *byte != 0) {
            let message = "there is something other than zero bytes after the compressed data";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        match padding.len() {
            0 => return Ok(None),
            length => compressed.consume(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// The text, read in pieces of `capacity` bytes.
    fn gunzip(bytes: &[u8], capacity: usize) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        Gunzip::new(BufReader::with_capacity(capacity, bytes)).read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn members_and_zero_bytes_after_them_are_accepted() {
        let two = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        for padding in [0, 1, 7, 512, 20_000] {
            let padded = [two.clone(), vec![0; padding]].concat();
            for capacity in [1, 3, 8192] {
                assert_eq!(gunzip(&padded, capacity).unwrap(), b"one two", "{padding} zero bytes");
            }
        }
    }

    #[test]
    fn other_bytes_after_the_members_are_refused() {
        for rest in [&b"\0\0x"[..], b"x", b"\x1f\x8b", b"\0\x1f\x8b\x08\0"] {
            assert!(gunzip(&[gzip(b"one"), rest.to_vec()].concat(), 8192).is_err(), "{rest:?}");
        }
        assert!(gunzip(&[gzip(b"one"), vec![0], gzip(b"two")].concat(), 8192).is_err());
        assert!(gunzip(b"", 8192).is_err());
        assert!(gunzip(&gzip(b"one")[..20], 8192).is_err());
    }
}
