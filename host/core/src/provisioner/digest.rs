//! SHA-256 digests, by which everything in an image is named.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, in text `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// A text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a digest; expected `sha256:` and 64 digits from 0-9 and a-f", .text.escape_debug())]
pub struct InvalidDigest {
    text: String,
}

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// The first twelve digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        HEXLOWER.encode(&self.0[..6])
    }

    /// Parses the 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidDigest`].
    pub fn from_hex(text: &str) -> Result<Self, InvalidDigest> {
        let decoded = HEXLOWER.decode(text.as_bytes()).ok();
        let bytes = decoded.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| InvalidDigest { text: text.to_owned() })
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest { text: text.to_owned() };
        Self::from_hex(text.strip_prefix("sha256:").ok_or_else(invalid)?).map_err(|_| invalid())
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

/// A reader that computes the digest and the size of what is read from it.
#[derive(Debug)]
pub struct HashReader<R> {
    inner: R,
    hash: Sha256,
    size: u64,
}

impl<R: Read> HashReader<R> {
    /// A reader of which nothing was read.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// The digest and the size of what was read.
    #[must_use]
    pub fn finish(self) -> (Digest, u64) {
        (Digest(self.hash.finalize().into()), self.size)
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_a_round_trip_and_others_are_refused() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        for text in ["", "sha256:", "sha512:00", &text[7..], &text.to_uppercase(), &text[..70], "sha256:../x"]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_read_is_hashed() {
        let mut reader = HashReader::new(&b"some text"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.finish(), (Digest::of(b"some text"), 9));
    }
}
