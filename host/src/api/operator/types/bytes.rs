//! Bytes: base64 with padding (RFC 4648) inside JSON, and as they are in other encodings.

use std::fmt;

use data_encoding::BASE64;
use serde::de::{self, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Arbitrary bytes; a base64 string in JSON.
///
/// `Debug` shows the length only, as the bytes may be a secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.serialize_str(&BASE64.encode(&self.0)),
            false => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return deserializer.deserialize_byte_buf(Raw).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let decoded = BASE64.decode(text.as_bytes());
        decoded.map(Self).map_err(|error| D::Error::custom(format!("invalid base64: {error}")))
    }
}

/// Takes bytes as they are.
struct Raw;

impl Visitor<'_> for Raw {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_survive_a_round_trip() {
        let all = Bytes((0..=255).collect());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Bytes>(&text).unwrap(), all);
        assert_eq!(serde_json::to_string(&Bytes(b"fooba".to_vec())).unwrap(), "\"Zm9vYmE=\"");
    }

    #[test]
    fn malformed_base64_is_rejected() {
        for text in ["Zg", "Zg=v", "Z===", "Zm9\u{e9}ab8", "Zh=="] {
            let error = serde_json::from_value::<Bytes>(text.into()).unwrap_err();
            assert!(error.to_string().starts_with("invalid base64"), "{text}: {error}");
        }
    }

    #[test]
    fn debug_does_not_show_the_bytes() {
        assert_eq!(format!("{:?}", Bytes(b"hunter2".to_vec())), "[7 bytes]");
    }
}
