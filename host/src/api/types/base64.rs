//! Bytes inside JSON: the padded standard alphabet of RFC 4648.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Arbitrary bytes, a base64 string on the wire.
///
/// `Debug` tells only the length, since what is carried may be a secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

/// Why a string is not base64.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Base64Error {
    /// Padded base64 comes in groups of four characters.
    #[error("base64 of {length} characters is not made of groups of four")]
    Length {
        /// Characters given.
        length: usize,
    },
    /// A character outside the alphabet, or padding where none belongs.
    #[error("base64 has an invalid character at offset {offset}")]
    Character {
        /// Bytes before it.
        offset: usize,
    },
    /// The last character carries bits that belong to no byte.
    #[error("base64 ends in bits that belong to no byte")]
    TrailingBits,
}

impl Bytes {
    /// Writes the bytes as padded base64.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(self.0.len().div_ceil(3) * 4);
        for group in self.0.chunks(3) {
            let at = |i| u32::from(group.get(i).copied().unwrap_or(0));
            let bits = at(0) << 16 | at(1) << 8 | at(2);
            for position in 0..4 {
                if position > group.len() {
                    text.push('=');
                } else {
                    let index = (bits >> (18 - 6 * position)) & 0x3f;
                    text.push(char::from(ALPHABET[index as usize]));
                }
            }
        }
        text
    }

    /// Reads padded base64. Fails on anything an encoder would not have written.
    pub fn decode(text: &str) -> Result<Self, Base64Error> {
        let text = text.as_bytes();
        if !text.len().is_multiple_of(4) {
            return Err(Base64Error::Length { length: text.len() });
        }
        let padding = text.iter().rev().take(2).take_while(|&&c| c == b'=').count();
        let digits = &text[..text.len() - padding];

        let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
        let (mut bits, mut held) = (0u32, 0u32);
        for (offset, &character) in digits.iter().enumerate() {
            let value = value_of(character).ok_or(Base64Error::Character { offset })?;
            bits = bits << 6 | u32::from(value);
            held += 6;
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
                bits &= (1 << held) - 1;
            }
        }
        if bits != 0 {
            return Err(Base64Error::TrailingBits);
        }
        Ok(Self(bytes))
    }
}

fn value_of(character: u8) -> Option<u8> {
    Some(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::decode(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_the_rfc() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(Bytes(plain.into()).encode(), text);
            assert_eq!(Bytes::decode(text), Ok(Bytes(plain.into())));
        }
    }

    #[test]
    fn every_byte_survives() {
        let all = Bytes((0..=255).collect());
        assert_eq!(Bytes::decode(&all.encode()), Ok(all));
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        assert_eq!(Bytes::decode("Zg"), Err(Base64Error::Length { length: 2 }));
        assert_eq!(Bytes::decode("Zg=v"), Err(Base64Error::Character { offset: 2 }));
        assert_eq!(Bytes::decode("Z==="), Err(Base64Error::Character { offset: 1 }));
        assert_eq!(Bytes::decode("Zm9\u{e9}ab8"), Err(Base64Error::Character { offset: 3 }));
        assert_eq!(Bytes::decode("Zh=="), Err(Base64Error::TrailingBits));
    }

    #[test]
    fn debug_keeps_the_secret() {
        assert_eq!(format!("{:?}", Bytes(b"hunter2".to_vec())), "[7 bytes]");
    }
}
