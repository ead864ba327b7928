//! Schemas of the tables of plugins in the configuration file.
//!
//! A [`Schema`] is a constant. `#[derive(PluginConfig)]` creates it, and the export attributes write it as JSON schema
//! into the manifest of the plugin file. So the agent validates a plugin's table without running the plugin, and
//! reports errors with file, line and key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_model::units;
use serde::{Deserialize, Deserializer, de};

use crate::note::Text;

/// A type that can be a plugin's configuration, or a value in it. Derive it for structs with named fields and for enums
/// without fields.
pub trait PluginConfig {
    /// The values that the type accepts.
    const SCHEMA: &'static Schema;
}

/// The values that a key of the configuration accepts.
#[derive(Debug)]
pub enum Schema {
    /// `true` or `false`.
    Boolean,
    /// An integer between two bounds.
    Integer {
        /// The lower bound, inclusive.
        minimum: i64,
        /// The upper bound, inclusive.
        maximum: i64,
    },
    /// A finite number, with or without a fractional part.
    Number,
    /// A string.
    Text,
    /// A string in one of these formats: `duration` (`"1m 30s"`), `size` (`"64 MiB"`), `path`.
    Form(&'static str),
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// An array whose elements have this schema.
    List(&'static Schema),
    /// A table with arbitrary keys, whose values have this schema.
    Map(&'static Schema),
    /// A value with this schema whose key may be omitted.
    Optional(&'static Schema),
    /// A table with these keys.
    Table {
        /// The known keys.
        fields: &'static [Field],
        /// Whether other keys are rejected.
        closed: bool,
    },
}

/// A key of a table.
#[derive(Debug)]
pub struct Field {
    /// Name of the key.
    pub name: &'static str,
    /// Description for operators: the doc comment of the field. May be empty.
    pub description: &'static str,
    /// Whether the key may be omitted.
    pub optional: bool,
    /// The values that it accepts.
    pub schema: &'static Schema,
}

impl Schema {
    /// Whether a key with this schema may be omitted.
    #[must_use]
    pub const fn is_optional(&self) -> bool {
        matches!(self, Self::Optional(_))
    }

    /// Writes this as JSON schema.
    pub(crate) const fn write(&self, text: &mut Text, description: &str) {
        text.raw("{");
        if !description.is_empty() {
            text.raw("\"description\":");
            text.quoted(description);
            text.raw(",");
        }
        self.write_body(text);
        text.raw("}");
    }

    const fn write_body(&self, text: &mut Text) {
        match self {
            Self::Boolean => text.raw("\"type\":\"boolean\""),
            Self::Integer { minimum, maximum } => {
                text.raw("\"type\":\"integer\",\"minimum\":");
                text.number(*minimum);
                text.raw(",\"maximum\":");
                text.number(*maximum);
            }
            Self::Number => text.raw("\"type\":\"number\""),
            Self::Text => text.raw("\"type\":\"string\""),
            Self::Form(form) => {
                text.raw("\"type\":\"string\",\"format\":");
                text.quoted(form);
            }
            Self::Choice(words) => {
                text.raw("\"enum\":");
                text.list(words);
            }
            Self::List(items) => {
                text.raw("\"type\":\"array\",\"items\":");
                items.write(text, "");
            }
            Self::Map(values) => {
                text.raw("\"type\":\"object\",\"additionalProperties\":");
                values.write(text, "");
            }
            Self::Optional(inner) => inner.write_body(text),
            Self::Table { fields, closed } => write_table(text, fields, *closed),
        }
    }
}

const fn write_table(text: &mut Text, fields: &[Field], closed: bool) {
    text.raw("\"type\":\"object\",\"properties\":{");
    let mut i = 0;
    while i < fields.len() {
        text.comma_unless(i == 0);
        text.quoted(fields[i].name);
        text.raw(":");
        fields[i].schema.write(text, fields[i].description);
        i += 1;
    }
    text.raw("},\"required\":[");
    let (mut i, mut first) = (0, true);
    while i < fields.len() {
        if !fields[i].optional {
            text.comma_unless(first);
            text.quoted(fields[i].name);
            first = false;
        }
        i += 1;
    }
    text.raw(if closed { "],\"additionalProperties\":false" } else { "]" });
}

/// A table without keys.
impl PluginConfig for () {
    const SCHEMA: &'static Schema = &Schema::Table { fields: &[], closed: true };
}

macro_rules! describe {
    ($($schema:expr => $($ty:ty),+;)+) => {
        $($(impl PluginConfig for $ty { const SCHEMA: &'static Schema = &$schema; })+)+
    };
}

macro_rules! describe_integers {
    ($($ty:ty: $minimum:expr, $maximum:expr;)+) => {
        $(impl PluginConfig for $ty {
            const SCHEMA: &'static Schema = &Schema::Integer { minimum: $minimum, maximum: $maximum };
        })+
    };
}

describe! {
    Schema::Boolean => bool;
    Schema::Number => f32, f64;
    Schema::Text => String;
    Schema::Form("path") => PathBuf;
    Schema::Form("duration") => TimeSpan;
    Schema::Form("size") => Size;
}

// Integers in TOML are signed 64-bit integers, so larger values cannot be configured.
describe_integers! {
    u8: 0, u8::MAX as i64;
    u16: 0, u16::MAX as i64;
    u32: 0, u32::MAX as i64;
    u64: 0, i64::MAX;
    usize: 0, i64::MAX;
    i8: i8::MIN as i64, i8::MAX as i64;
    i16: i16::MIN as i64, i16::MAX as i64;
    i32: i32::MIN as i64, i32::MAX as i64;
    i64: i64::MIN, i64::MAX;
}

impl<T: PluginConfig> PluginConfig for Option<T> {
    const SCHEMA: &'static Schema = &Schema::Optional(T::SCHEMA);
}

impl<T: PluginConfig> PluginConfig for Vec<T> {
    const SCHEMA: &'static Schema = &Schema::List(T::SCHEMA);
}

impl<T: PluginConfig> PluginConfig for BTreeSet<T> {
    const SCHEMA: &'static Schema = &Schema::List(T::SCHEMA);
}

impl<T: PluginConfig> PluginConfig for BTreeMap<String, T> {
    const SCHEMA: &'static Schema = &Schema::Map(T::SCHEMA);
}

impl<T: PluginConfig, S> PluginConfig for HashMap<String, T, S> {
    const SCHEMA: &'static Schema = &Schema::Map(T::SCHEMA);
}

/// A duration, configured as a string: `"250ms"`, `"1m 30s"`. See [`units::duration`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

/// A size in bytes, configured as a string: `"512 KiB"`, `"64MiB"`, `"1 GB"`. See [`units::size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let invalid = || de::Error::custom(format!("`{text}` is not a duration such as \"1m 30s\""));
        units::duration(&text).map(Self).ok_or_else(invalid)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let invalid = || de::Error::custom(format!("`{text}` is not a size such as \"64 MiB\""));
        units::size(&text).map(Self).ok_or_else(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_size_or_duration_is_quoted_in_the_error() {
        assert_eq!(serde_json::from_value::<Size>("64 MiB".into()).unwrap(), Size(64 << 20));
        let error = serde_json::from_value::<Size>("12 parsecs".into()).unwrap_err();
        assert_eq!(error.to_string(), "`12 parsecs` is not a size such as \"64 MiB\"");
        assert_eq!(
            serde_json::from_value::<TimeSpan>("1m 30s".into()).unwrap(),
            TimeSpan(Duration::from_secs(90))
        );
        let error = serde_json::from_value::<TimeSpan>("5".into()).unwrap_err();
        assert_eq!(error.to_string(), "`5` is not a duration such as \"1m 30s\"");
    }
}
