//! Decompression of streams whose compression is told by their first bytes.

use std::error::Error;
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
    } else if first.starts_with(&ZSTD) || is_skipped(first) {
        Ok(Box::new(Unzstd::new(stream)))
    } else {
        Ok(Box::new(stream))
    }
}

/// Whether a frame of zstd begins here that is not compressed data, as that of pzstd.
fn is_skipped(first: &[u8]) -> bool {
    matches!(first, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
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
                        return Err(truncated());
                    }
                }
                Err(error) => return Err(explained(&error)),
            }
        }
        Ok(false)
    }

    fn check_frame(&self) -> io::Result<()> {
        let stored = self.decoder.get_checksum_from_data();
        match stored.is_none() || stored == self.decoder.get_calculated_checksum() {
            true => Ok(()),
            false => Err(invalid("the checksum of a zstd frame is wrong: the data is damaged".to_owned())),
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
                self.decoder.decode_blocks(&mut self.stream, some).map_err(|error| explained(&error))?;
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

/// Why a frame cannot be decompressed, in words for whoever has the archive. An error of reading it stays what it is: it may
/// come from this machine, not from the archive.
fn explained(error: &FrameDecoderError) -> io::Error {
    let causes = std::iter::successors(Some(error as &(dyn Error + 'static)), |&error| error.source());
    if let Some(error) = causes.clone().find_map(|cause| cause.downcast_ref::<io::Error>()) {
        return match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::UnexpectedEof, _) => truncated(),
            (_, Some(errno)) => io::Error::from_raw_os_error(errno),
            (kind, None) => io::Error::new(kind, error.to_string()),
        };
    }
    invalid(match error {
        FrameDecoderError::WindowSizeTooBig { requested, max } => {
            format!("a zstd frame needs a window of {requested} bytes; expected at most {max}")
        }
        FrameDecoderError::DictNotProvided { dict_id } => {
            format!("a zstd frame needs the dictionary {dict_id}; compress it without one")
        }
        FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_)) => {
            "there is something other than zstd frames after the compressed data".to_owned()
        }
        error => {
            let cause = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
            format!("a zstd frame is damaged: {cause}")
        }
    })
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the zstd data ends within a frame")
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
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
        let stream = [frame(b"one "), skipped.clone(), frame(b""), frame(b"two"), skipped.clone()].concat();
        assert_eq!(text(&stream).unwrap(), b"one two");
        // As pzstd begins.
        assert_eq!(text(&[skipped, frame(b"one")].concat()).unwrap(), b"one");
        for end in [stream.len() - 1, frame(b"one ").len() - 3, 6] {
            let error = text(&stream[..end]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
            assert_eq!(error.to_string(), "the zstd data ends within a frame", "{end}");
        }
    }

    #[test]
    fn what_is_wrong_with_zstd_data_is_said() {
        let frame = compress_to_vec(&b"one two three"[..], CompressionLevel::Fastest);
        let error = |bytes: &[u8]| {
            let error = text(bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            error.to_string()
        };
        let mut damaged = frame.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(error(&damaged), "the checksum of a zstd frame is wrong: the data is damaged");
        let rest = error(&[&frame[..], b"rest"].concat());
        assert_eq!(rest, "there is something other than zstd frames after the compressed data");
        let header = |bytes: &[u8]| [&ZSTD, bytes].concat();
        // A window of 2^(10 + 31) bytes, a dictionary, and a block of the kind that is reserved.
        assert!(error(&header(&[0, 31 << 3])).contains("needs a window of 2199023255552 bytes"));
        assert!(error(&header(&[1, 0, 7])).contains("needs the dictionary 7"));
        assert!(error(&header(&[0, 0, 0x07, 0, 0])).starts_with("a zstd frame is damaged: "));
    }

    #[test]
    fn an_error_of_reading_zstd_data_is_passed_on() {
        struct Failing<'a>(&'a [u8], fn() -> io::Error);
        impl Read for Failing<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                match self.0.read(buffer)? {
                    0 => Err(self.1()),
                    count => Ok(count),
                }
            }
        }
        let frame = compress_to_vec(&b"one two three"[..], CompressionLevel::Fastest);
        for end in [5, 8, frame.len() - 2] {
            for failed in [|| io::Error::from_raw_os_error(libc::EIO), || io::Error::other("stopped")] {
                let mut stream = decompress(Failing(&frame[..end], failed)).unwrap();
                let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(error.to_string(), failed().to_string(), "{end}");
                assert_eq!(error.raw_os_error(), failed().raw_os_error(), "{end}");
            }
        }
    }
}
