//! The envelope of all messages: a `type`, and a body in the field named after it.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use crate::api::encoding::{Codec, ParseError};

/// Why a text is not a message.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an object, or `type` is not a string; not a message in protocol buffers.
    #[error("expected {} with a `type`", source.expected())]
    Malformed {
        /// The parser's error.
        source: ParseError,
    },
    /// There is no `type`.
    #[error("`type` is missing; expected one of {}", List(known))]
    NoType {
        /// The supported types.
        known: &'static [&'static str],
    },
    /// The type exists in Mesos but is not implemented. Answered with 501 instead of 400.
    #[error("`{name}` is not implemented by this agent; supported are {}", List(known))]
    NotImplemented {
        /// The type.
        name: String,
        /// The supported types.
        known: &'static [&'static str],
    },
    /// The type is unknown.
    #[error("`{name}` is not a known type; expected one of {}", List(known))]
    UnknownType {
        /// The type.
        name: String,
        /// The supported types.
        known: &'static [&'static str],
    },
    /// The body is absent or `null`.
    #[error("`{name}` requires the field `{field}`, which is missing")]
    NoBody {
        /// The type of the message.
        name: &'static str,
        /// The field of its body.
        field: &'static str,
    },
    /// The body has the wrong structure.
    #[error("cannot parse `{field}`")]
    Body {
        /// The field of the body.
        field: &'static str,
        /// The parser's error.
        source: ParseError,
    },
}

struct List<'a>(&'a [&'static str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Declares an enum of messages: the `type` of each, and the field and type of its body, if it has one.
///
/// A body marked `or default` may be absent and is then the default of its type.
macro_rules! envelope {
    (
        $(#[$attr:meta])*
        pub enum $name:ident, $schema:ident in protocol buffers, not implemented $refused:tt {
            $($(#[$doc:meta])* $word:literal => $variant:ident $(($body:ty) in $field:literal $(or $unavailable:ident)?)?,)*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name { $($(#[$doc])* $variant $(($body))?,)* }

        impl $name {
            /// All types, in the order of the documentation.
            pub const TYPES: &'static [&'static str] = &[$($word),*];

            /// The `type` of this message.
            pub fn type_name(&self) -> &'static str {
                match self { $(envelope!(@pattern $variant $($field)?) => $word,)* }
            }

            /// Reads a message from JSON text.
            ///
            /// # Errors
            /// [`EnvelopeError`](super::envelope::EnvelopeError).
            pub fn from_json(text: &[u8]) -> Result<Self, super::envelope::EnvelopeError> {
                Self::read(crate::api::encoding::Codec::Json, text)
            }

            /// The encoding of these messages.
            pub(in crate::api) fn codec(encoding: crate::api::encoding::Encoding) -> crate::api::encoding::Codec {
                encoding.of(&crate::api::protobuf::schema::agent::$schema)
            }

            /// Reads a message in some encoding.
            ///
            /// # Errors
            /// [`EnvelopeError`](super::envelope::EnvelopeError).
            pub(in crate::api) fn read(
                codec: crate::api::encoding::Codec,
                body: &[u8],
            ) -> Result<Self, super::envelope::EnvelopeError> {
                const NOT_IMPLEMENTED: &[&str] = &$refused;
                match super::envelope::type_of((codec, body), Self::TYPES, NOT_IMPLEMENTED)? {
                    $($word => Ok(envelope!(@read (codec, body), $variant, $word $(, $field $(or $unavailable)?)?)),)*
                    other => Err(super::envelope::EnvelopeError::UnknownType {
                        name: other.to_owned(),
                        known: Self::TYPES,
                    }),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;

                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("type", self.type_name())?;
                match self { $(envelope!(@bind body $variant $($field)?) => {
                    $(map.serialize_entry($field, body)?;)?
                })* }
                map.end()
            }
        }
    };
    (@pattern $variant:ident) => { Self::$variant };
    (@pattern $variant:ident $field:literal) => { Self::$variant(_) };
    (@bind $body:ident $variant:ident) => { Self::$variant };
    (@bind $body:ident $variant:ident $field:literal) => { Self::$variant($body) };
    (@read $body:tt, $variant:ident, $word:literal) => { Self::$variant };
    (@read $body:tt, $variant:ident, $word:literal, $field:literal) => {
        match super::envelope::body_of($body, $field)? {
            Some(body) => Self::$variant(body),
            None => return Err(super::envelope::EnvelopeError::NoBody { name: $word, field: $field }),
        }
    };
    (@read $body:tt, $variant:ident, $word:literal, $field:literal or default) => {
        Self::$variant(super::envelope::body_of($body, $field)?.unwrap_or_default())
    };
}

/// Bytes, and how they are encoded.
type Body<'b> = (Codec, &'b [u8]);

/// The `type` of a message, as an element of `known`.
pub(super) fn type_of(
    body: Body<'_>,
    known: &'static [&'static str],
    not_implemented: &[&str],
) -> Result<&'static str, EnvelopeError> {
    let name: Option<String> = field(body, "type").map_err(|source| EnvelopeError::Malformed { source })?;
    let name = name.ok_or(EnvelopeError::NoType { known })?;
    match known.iter().find(|word| **word == name) {
        Some(word) => Ok(word),
        None if not_implemented.contains(&name.as_str()) => {
            Err(EnvelopeError::NotImplemented { name, known })
        }
        None => Err(EnvelopeError::UnknownType { name, known }),
    }
}

/// Parses the body of a message; other fields are ignored.
pub(super) fn body_of<T: for<'de> Deserialize<'de>>(
    body: Body<'_>,
    name: &'static str,
) -> Result<Option<T>, EnvelopeError> {
    field(body, name).map_err(|source| EnvelopeError::Body { field: name, source })
}

/// Parses one field of an object, directly from the text so that errors have line and column.
fn field<T: for<'de> Deserialize<'de>>((codec, body): Body<'_>, name: &str) -> Result<Option<T>, ParseError> {
    codec.read_with(body, Field { name, value: PhantomData })
}

struct Field<'a, T> {
    name: &'a str,
    value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Field<'_, T> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Field<'_, T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.name {
                found = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}
