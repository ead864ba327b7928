//! What clients and the I/O switchboard of a container send each other over a stream socket: frames of a header and data.
//!
//! ```text
//! header   kind u8 · 0 · length u16 of the data, little-endian
//! ```
//!
//! How much of the output the log has is in a file of [`Counts`], which outlives the switchboard.
//!
//! A client first sends [`Kind::Attach`]. The switchboard closes the connection after [`Kind::End`], or if the client sends
//! what is no frame.

/// Length of the header of a frame in bytes.
pub const HEADER: usize = 4;

/// Maximum length of the data of a client's frame in bytes.
pub const MAX_INPUT: usize = 4096;

/// Maximum length of the data of a frame of the switchboard in bytes.
pub const MAX_OUTPUT: usize = 16 << 10;

/// Maximum number of clients at a time. Others are disconnected at once, but for one that sends [`HAS_ENDED`].
pub const MAX_CLIENTS: usize = 16;

/// In the data of [`Kind::Attach`]: the client wants output.
pub const WITH_OUTPUT: u8 = 1;

/// In the data of [`Kind::Attach`]: the processes of the container have ended. What they have written is logged now, also if
/// a client has not read it yet, which receives it later.
pub const HAS_ENDED: u8 = 2;

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// From the switchboard: standard output of the container, or output of its terminal.
    Stdout = 1,
    /// From the switchboard: standard error.
    Stderr = 2,
    /// From the switchboard, last, without data: the streams have ended, and all output was logged and sent.
    End = 3,
    /// From a client, first: one byte, the sum of [`WITH_OUTPUT`] and [`HAS_ENDED`].
    Attach = 16,
    /// From a client: standard input of the container, or input of its terminal.
    Input = 17,
    /// From a client: the end of standard input. No more input of any client is passed on. No effect on a terminal.
    EndOfInput = 18,
    /// From a client: size of the terminal in rows and columns, two u16.
    Resize = 19,
}

impl Kind {
    /// The kind with a number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::End,
            16 => Self::Attach,
            17 => Self::Input,
            18 => Self::EndOfInput,
            19 => Self::Resize,
            _ => return None,
        })
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its kind.
    pub kind: Kind,
    /// Length of its data in bytes.
    pub length: u16,
}

impl Header {
    /// Encodes the header.
    #[must_use]
    pub const fn encode(self) -> [u8; HEADER] {
        let [low, high] = self.length.to_le_bytes();
        [self.kind as u8, 0, low, high]
    }

    /// Decodes a header. `None` if it is none.
    #[must_use]
    pub const fn parse(bytes: [u8; HEADER]) -> Option<Self> {
        match (Kind::from_number(bytes[0]), bytes[1]) {
            (Some(kind), 0) => Some(Self { kind, length: u16::from_le_bytes([bytes[2], bytes[3]]) }),
            _ => None,
        }
    }
}

/// What a switchboard has read from the container, and what the log has received of that: for standard output, or a
/// terminal, and for standard error.
///
/// ```text
/// read u64 × 2 · logged u64 × 2 · errno u32 × 2, little-endian
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes that were read.
    pub read: [u64; 2],
    /// Bytes that were written to the log. Once the switchboard has ended, the rest of those read is lost.
    pub logged: [u64; 2],
    /// Why a part of that is lost: the last error of writing to the log, also if it could be written to again later. 0 if there
    /// was none.
    pub errno: [u32; 2],
}

impl Counts {
    /// Length in bytes.
    pub const LENGTH: usize = 40;

    /// Encodes the counts.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let [read, logged] = [self.read, self.logged];
        let numbers = read.into_iter().chain(logged).flat_map(u64::to_le_bytes);
        let errnos = self.errno.into_iter().flat_map(u32::to_le_bytes);
        bytes.iter_mut().zip(numbers.chain(errnos)).for_each(|(to, from)| *to = from);
        bytes
    }

    /// Decodes counts.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Self {
        let long = |index: usize| {
            let bytes = bytes.get(index * 8..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let short = |index: usize| {
            let bytes = bytes.get(32 + index * 4..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        Self { read: [long(0), long(1)], logged: [long(2), long(3)], errno: [short(0), short(1)] }
    }

    /// Bytes that the log has not received.
    #[must_use]
    pub fn missing(self) -> [u64; 2] {
        let ([out, err], [logged_out, logged_err]) = (self.read, self.logged);
        [out.saturating_sub(logged_out), err.saturating_sub(logged_err)]
    }
}

/// The data of [`Kind::Resize`].
#[must_use]
pub const fn encode_size(rows: u16, columns: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
    [a, b, c, d]
}

/// Rows and columns of [`Kind::Resize`].
#[must_use]
pub fn parse_size(data: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d]: [u8; 4] = data.try_into().ok()?;
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_decoded_as_they_were_encoded_and_nothing_else_is() {
        for number in 0..=u8::MAX {
            let Some(kind) = Kind::from_number(number) else { continue };
            assert_eq!(kind as u8, number);
            let header = Header { kind, length: 0x1234 };
            assert_eq!(Header::parse(header.encode()), Some(header));
        }
        assert_eq!(Header::parse([0, 0, 0, 0]), None);
        assert_eq!(Header::parse([17, 1, 0, 0]), None);
        assert_eq!(parse_size(&encode_size(24, 80)), Some((24, 80)));
        assert_eq!(parse_size(&[1, 2, 3]), None);
    }

    #[test]
    fn counts_are_decoded_as_they_were_encoded() {
        let counts = Counts { read: [1, u64::MAX], logged: [1, 2], errno: [0, 28] };
        assert_eq!(Counts::parse(&counts.encode()), counts);
        assert_eq!(counts.missing(), [0, u64::MAX - 2]);
        // One that was killed between writing to the log and counting.
        assert_eq!(Counts { logged: [9, 0], ..Counts::default() }.missing(), [0, 0]);
    }
}
