//! Decompression of streams whose compression is told by their first bytes.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::Gunzip;

/// Size of the buffer for compressed bytes.
const BUFFER: usize = 64 << 10;

/// The first bytes of compressed streams.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Decompresses gzip and zstd. Anything else is passed on as it is.
pub(crate) fn decompress<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let first = stream.fill_buf()?;
    if first.starts_with(&GZIP) {
        Ok(Box::new(Gunzip::new(stream)))
    } else if first.starts_with(&ZSTD) {
        Ok(Box::new(Unzstd::new(stream)))
    } else {
        Ok(Box::new(stream))
    }
}

/// Decompresses all frames of a zstd stream, and skips those that are not compressed data.
pub(crate) struct Unzstd<R> {
    stream: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Unzstd<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Begins the next frame. Returns whether there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.stream.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.stream) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.stream).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(false)
    }

    fn check_frame(&self) -> io::Result<()> {
        let stored = self.decoder.get_checksum_from_data();
        match stored.is_none() || stored == self.decoder.get_calculated_checksum() {
            true => Ok(()),
            false => Err(invalid("the checksum of a zstd frame is wrong")),
        }
    }
}

impl<R: BufRead> Read for Unzstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            self.in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let some = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.stream, some).map_err(invalid)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.check_frame()?;
            self.in_frame = false;
        }
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn text(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        decompress(bytes)?.read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn gzip_zstd_and_plain_streams_are_told_apart() {
        let long: Vec<u8> = (0..300_000_u32).flat_map(|number| (number % 251).to_le_bytes()).collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&long).unwrap();
        assert_eq!(text(&gzip.finish().unwrap()).unwrap(), long);
        assert_eq!(text(&compress_to_vec(&long[..], CompressionLevel::Fastest)).unwrap(), long);
        assert_eq!(text(&long).unwrap(), long);
        assert_eq!(text(b"").unwrap(), b"");
    }

    #[test]
    fn all_frames_of_a_zstd_stream_are_read_and_others_skipped() {
        let frame = |text: &[u8]| compress_to_vec(text, CompressionLevel::Fastest);
        let skipped = [&b"\x50\x2a\x4d\x18\x03\0\0\0"[..], b"abc"].concat();
        let stream = [frame(b"one "), skipped.clone(), frame(b""), frame(b"two"), skipped].concat();
        assert_eq!(text(&stream).unwrap(), b"one two");
        for end in [stream.len() - 1, frame(b"one ").len() - 3] {
            assert!(text(&stream[..end]).is_err(), "{end}");
        }
        let damaged = [&frame(b"one ")[..], b"rest"].concat();
        assert!(text(&damaged).is_err());
    }
}
