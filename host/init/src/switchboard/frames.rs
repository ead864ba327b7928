//! The output of a container of an engine, as the engine sends it to a client that attaches.
//!
//! ```text
//! header   stream u8 · 0 0 0 · length u32 of the data, big-endian
//! ```

use crate::streams::Kind;

/// Length of a header in bytes.
const HEADER: usize = 8;

/// Standard input, which engines echo in some versions, standard output, standard error, errors of the engine.
const STREAMS: [Kind; 4] = [Kind::Stdout, Kind::Stdout, Kind::Stderr, Kind::Stderr];

/// How far a sequence of frames has been read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that have been read.
    received: usize,
    /// The frame whose data is read: its stream and the bytes that are missing.
    data: Option<(Kind, u32)>,
}

/// It is not a sequence of frames.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Frames {
    /// The stream of the data that comes next, and its length. `None` before a header is complete.
    pub(crate) fn data(&self) -> Option<(Kind, usize)> {
        self.data.map(|(kind, missing)| (kind, missing as usize))
    }

    /// Where the rest of a header is to be read to. Empty while data is missing.
    pub(crate) fn header(&mut self) -> &mut [u8] {
        match self.data {
            Some(_) => &mut [],
            None => self.header.get_mut(self.received..).unwrap_or_default(),
        }
    }

    /// So many bytes of a header were read.
    pub(crate) fn read_header(&mut self, length: usize) -> Result<(), Malformed> {
        self.received += length;
        if self.received < HEADER {
            return Ok(());
        }
        self.received = 0;
        let [stream, 0, 0, 0, a, b, c, d] = self.header else { return Err(Malformed) };
        let kind = STREAMS.get(stream as usize).copied().ok_or(Malformed)?;
        let length = u32::from_be_bytes([a, b, c, d]);
        self.data = (length > 0).then_some((kind, length));
        Ok(())
    }

    /// So many bytes of data were read.
    pub(crate) fn read_data(&mut self, length: usize) {
        self.data = self.data.and_then(|(kind, missing)| {
            let missing = missing.saturating_sub(length as u32);
            (missing > 0).then_some((kind, missing))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads bytes in steps of at most so many. Returns the data by stream.
    fn read(mut bytes: &[u8], step: usize) -> Result<Vec<(Kind, Vec<u8>)>, Malformed> {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        while !bytes.is_empty() {
            match frames.data() {
                Some((kind, missing)) => {
                    let (data, rest) = bytes.split_at(missing.min(step).min(bytes.len()));
                    found.push((kind, data.to_vec()));
                    frames.read_data(data.len());
                    bytes = rest;
                }
                None => {
                    let header = frames.header();
                    let (data, rest) = bytes.split_at(header.len().min(step).min(bytes.len()));
                    header[..data.len()].copy_from_slice(data);
                    frames.read_header(data.len())?;
                    bytes = rest;
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn frames_are_read_in_any_parts() {
        let bytes = b"\x01\0\0\0\0\0\0\x05hello\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x03bad";
        for step in 1..=bytes.len() {
            let found = read(bytes, step).unwrap();
            let of = |wanted: Kind| {
                let parts = found.iter().filter(|(kind, _)| *kind == wanted);
                parts.flat_map(|(_, data)| data.clone()).collect::<Vec<_>>()
            };
            assert_eq!((of(Kind::Stdout), of(Kind::Stderr)), (b"hello".to_vec(), b"bad".to_vec()), "{step}");
        }
    }

    #[test]
    fn what_is_no_frame_is_noticed() {
        for bytes in [b"\x04\0\0\0\0\0\0\x01", b"\x01\x01\0\0\0\0\0\x01", b"HTTP/1.1"] {
            assert_eq!(read(bytes, 3), Err(Malformed));
        }
    }
}
