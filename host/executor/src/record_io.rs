//! RecordIO: the length of each record in decimal digits, a line feed, the record.

/// The longest record that is read.
pub(crate) const MAX_RECORD: usize = 4 << 20;

/// Digits of the longest length.
const MAX_DIGITS: usize = 7;

/// Reads records from a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
}

/// A stream that is not RecordIO, or has a record that is too long.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RecordError {
    #[error("the length of a record is not a number")]
    Length,
    #[error("a record has {length} bytes; at most {MAX_RECORD} are read")]
    TooLong { length: usize },
}

impl Decoder {
    /// Adds bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, if all of it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, RecordError> {
        let Some(digits) = self.buffer.iter().take(MAX_DIGITS + 1).position(|byte| *byte == b'\n') else {
            return if self.buffer.len() > MAX_DIGITS { Err(RecordError::Length) } else { Ok(None) };
        };
        let length = std::str::from_utf8(&self.buffer[..digits]).ok().and_then(|text| text.parse().ok());
        let length: usize = length.ok_or(RecordError::Length)?;
        if length > MAX_RECORD {
            return Err(RecordError::TooLong { length });
        }
        let start = digits + 1;
        if self.buffer.len() < start + length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(start + length);
        let mut record = std::mem::replace(&mut self.buffer, rest);
        record.drain(..start);
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_are_the_same_however_the_stream_is_divided(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            size in 1_usize..50,
        ) {
            let mut stream = Vec::new();
            for record in &records {
                stream.extend_from_slice(format!("{}\n", record.len()).as_bytes());
                stream.extend_from_slice(record);
            }
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for part in stream.chunks(size) {
                decoder.push(part);
                while let Some(record) = decoder.next().unwrap() {
                    found.push(record);
                }
            }
            prop_assert_eq!(found, records);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn what_is_not_record_io_is_refused() {
        let error = |text: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(text);
            decoder.next().unwrap_err()
        };
        assert_eq!(error(b"x\n"), RecordError::Length);
        assert_eq!(error(b"12345678"), RecordError::Length);
        assert_eq!(error(b"9999999\n"), RecordError::TooLong { length: 9_999_999 });
    }
}
