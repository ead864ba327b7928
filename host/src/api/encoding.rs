//! The encodings of messages: JSON and protocol buffers.

use serde::Serialize;
use serde::de::{DeserializeOwned, DeserializeSeed};

use super::protobuf::{self, MessageDeserializer, schema};

/// How messages are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Encoding {
    Json,
    Protobuf,
}

/// How messages of one type are encoded.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) enum Codec {
    Json,
    Protobuf(&'static schema::Message),
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum ParseError {
    /// They are not JSON, or not of the right form.
    Json(#[from] serde_json::Error),
    /// They are not a message of this type in protocol buffers.
    Protobuf(#[from] protobuf::Error),
}

/// Why a message cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(in crate::api) enum EncodeError {
    Json(#[from] serde_json::Error),
    Protobuf(#[from] protobuf::Error),
}

impl Encoding {
    /// All of them, the preferred one first.
    pub(in crate::api) const ALL: [Self; 2] = [Self::Json, Self::Protobuf];

    pub(in crate::api) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/x-protobuf",
        }
    }

    /// The encoding of messages with a schema.
    pub(in crate::api) fn of(self, schema: &'static schema::Message) -> Codec {
        match self {
            Self::Json => Codec::Json,
            Self::Protobuf => Codec::Protobuf(schema),
        }
    }
}

impl Codec {
    pub(in crate::api) fn media_type(self) -> &'static str {
        match self {
            Self::Json => Encoding::Json.media_type(),
            Self::Protobuf(_) => Encoding::Protobuf.media_type(),
        }
    }

    /// Reads a message.
    pub(in crate::api) fn read<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, ParseError> {
        match self {
            Self::Json => Ok(serde_json::from_slice(bytes)?),
            Self::Protobuf(schema) => Ok(protobuf::from_slice(schema, bytes)?),
        }
    }

    /// Reads what `seed` makes of a message.
    pub(in crate::api) fn read_with<'b, S: DeserializeSeed<'b>>(
        self,
        bytes: &'b [u8],
        seed: S,
    ) -> Result<S::Value, ParseError> {
        match self {
            Self::Json => {
                let mut deserializer = serde_json::Deserializer::from_slice(bytes);
                let value = seed.deserialize(&mut deserializer)?;
                deserializer.end()?;
                Ok(value)
            }
            Self::Protobuf(schema) => Ok(seed.deserialize(MessageDeserializer::new(schema, bytes))?),
        }
    }

    pub(in crate::api) fn write(self, message: &impl Serialize) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Json => Ok(serde_json::to_vec(message)?),
            Self::Protobuf(schema) => Ok(protobuf::to_vec(schema, message)?),
        }
    }
}

impl ParseError {
    /// What was expected.
    pub(in crate::api) fn expected(&self) -> &'static str {
        match self {
            Self::Json(_) => "a JSON object",
            Self::Protobuf(_) => "a message",
        }
    }
}
