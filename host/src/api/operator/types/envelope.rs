//! The envelope all messages share: a `type`, and a body in the field named after it.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

/// Why a text is not one of the messages of an API.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// No JSON, or JSON without room for a `type`.
    #[error("expected a JSON object with a `type`")]
    Malformed {
        /// What the parser met, and where.
        source: serde_json::Error,
    },
    /// An object without a `type`.
    #[error("`type` is missing, expected one of {}", Words(known))]
    NoType {
        /// The types there are.
        known: &'static [&'static str],
    },
    /// A type that exists in Mesos and is not served here. The HTTP answer is 501, not 400.
    #[error("`{name}` is not implemented by this agent, which supports {}", Words(known))]
    NotImplemented {
        /// The type asked for.
        name: String,
        /// The types there are.
        known: &'static [&'static str],
    },
    /// A type nobody knows.
    #[error("`{name}` is not a known type, expected one of {}", Words(known))]
    UnknownType {
        /// The type asked for.
        name: String,
        /// The types there are.
        known: &'static [&'static str],
    },
    /// The type needs a body and the field for it is absent or `null`.
    #[error("`{name}` needs the field `{field}`, which is missing")]
    NoBody {
        /// The type of the message.
        name: &'static str,
        /// The field in which its body belongs.
        field: &'static str,
    },
    /// The body is there and has the wrong shape.
    #[error("cannot read `{field}`")]
    Body {
        /// The field that holds the body.
        field: &'static str,
        /// What is wrong with it, and where.
        source: serde_json::Error,
    },
}

struct Words<'a>(&'a [&'static str]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, word) in self.0.iter().enumerate() {
            write!(f, "{}`{word}`", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Declares an enum of messages: for each its type on the wire, and the field and type of its body, if any.
///
/// A field marked `or default` may be absent; the body is then the default of its type.
macro_rules! envelope {
    (
        $(#[$attr:meta])*
        pub enum $name:ident, not implemented $refused:tt {
            $($(#[$doc:meta])* $word:literal => $variant:ident $(($body:ty) in $field:literal $(or $unavailable:ident)?)?,)*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name { $($(#[$doc])* $variant $(($body))?,)* }

        impl $name {
            /// Every type there is, in the order of the documentation.
            pub const TYPES: &'static [&'static str] = &[$($word),*];

            /// The word that stands for this message in its `type` field.
            pub fn type_name(&self) -> &'static str {
                match self { $(envelope!(@pattern $variant $($field)?) => $word,)* }
            }

            /// Reads a message from JSON text.
            ///
            /// # Errors
            /// Whatever is wrong with the text is named, with its line and column where the parser knows them.
            pub fn from_json(text: &[u8]) -> Result<Self, super::envelope::EnvelopeError> {
                const NOT_IMPLEMENTED: &[&str] = &$refused;
                match super::envelope::type_of(text, Self::TYPES, NOT_IMPLEMENTED)? {
                    $($word => Ok(envelope!(@read text, $variant, $word $(, $field $(or $unavailable)?)?)),)*
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
    (@read $text:ident, $variant:ident, $word:literal) => { Self::$variant };
    (@read $text:ident, $variant:ident, $word:literal, $field:literal) => {
        match super::envelope::body_of($text, $field)? {
            Some(body) => Self::$variant(body),
            None => return Err(super::envelope::EnvelopeError::NoBody { name: $word, field: $field }),
        }
    };
    (@read $text:ident, $variant:ident, $word:literal, $field:literal or default) => {
        Self::$variant(super::envelope::body_of($text, $field)?.unwrap_or_default())
    };
}

/// Finds the type a message claims to be, among those there are.
pub(super) fn type_of(
    text: &[u8],
    known: &'static [&'static str],
    not_implemented: &[&str],
) -> Result<&'static str, EnvelopeError> {
    let name: Option<String> = field(text, "type").map_err(|source| EnvelopeError::Malformed { source })?;
    let name = name.ok_or(EnvelopeError::NoType { known })?;
    match known.iter().find(|word| **word == name) {
        Some(word) => Ok(word),
        None if not_implemented.contains(&name.as_str()) => {
            Err(EnvelopeError::NotImplemented { name, known })
        }
        None => Err(EnvelopeError::UnknownType { name, known }),
    }
}

/// Reads the body of a message out of its text, skipping all that belongs to other types.
pub(super) fn body_of<T: for<'de> Deserialize<'de>>(
    text: &[u8],
    name: &'static str,
) -> Result<Option<T>, EnvelopeError> {
    field(text, name).map_err(|source| EnvelopeError::Body { field: name, source })
}

/// Reads one field of an object from its text, so that errors still know their line and column.
fn field<T: for<'de> Deserialize<'de>>(text: &[u8], name: &str) -> serde_json::Result<Option<T>> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Field { name, value: PhantomData }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
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
