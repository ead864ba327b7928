//! What a plugin's table in the configuration file may hold, known without running the plugin.
//!
//! A [`Schema`] is a constant, made by `#[derive(PluginConfig)]` and written as JSON schema into the
//! plugin's file when it is compiled. So the agent can refuse a bad table with file, line and key before
//! it loads anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_model::units;
use serde::{Deserialize, Deserializer, de};

use crate::note::Text;

/// A type that can be a plugin's configuration, or a part of it.
pub trait PluginConfig {
    /// What it may hold.
    const SCHEMA: &'static Schema;
}

/// What a value may be.
#[derive(Debug)]
pub enum Schema {
    /// `true` or `false`.
    Boolean,
    /// A whole number, between two bounds.
    Integer {
        /// The least.
        minimum: i64,
        /// The greatest.
        maximum: i64,
    },
    /// Any number.
    Number,
    /// Any text.
    Text,
    /// A text in a known form: `duration` (`"1m 30s"`), `size` (`"64 MiB"`), `path`.
    Form(&'static str),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list.
    List(&'static Schema),
    /// A table whose keys are the author's, not ours.
    Map(&'static Schema),
    /// May be left out.
    Optional(&'static Schema),
    /// A table with known keys.
    Table {
        /// The keys.
        fields: &'static [Field],
        /// Whether other keys are refused.
        closed: bool,
    },
}

/// A key of a table.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it may hold.
    pub schema: &'static Schema,
}

impl Schema {
    /// Whether a key of this type may be left out.
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

// TOML's integers are 64 bits with a sign, so nothing larger can be written down.
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

/// A length of time, written with units: `"250ms"`, `"1m 30s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

/// A number of bytes, written with a unit: `"512 KiB"`, `"64MiB"`, `"1 GB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || de::Error::custom(format!("`{text}` is not a length of time such as \"1m 30s\""));
        units::duration(&text).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || de::Error::custom(format!("`{text}` is not a size such as \"64 MiB\""));
        units::size(&text).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_or_time_without_a_known_unit_is_quoted() {
        assert_eq!(serde_json::from_value::<Size>("64 MiB".into()).unwrap(), Size(64 << 20));
        let wrong = serde_json::from_value::<Size>("12 parsecs".into()).unwrap_err();
        assert_eq!(wrong.to_string(), "`12 parsecs` is not a size such as \"64 MiB\"");
        assert_eq!(
            serde_json::from_value::<TimeSpan>("1m 30s".into()).unwrap(),
            TimeSpan(Duration::from_secs(90))
        );
        let wrong = serde_json::from_value::<TimeSpan>("5".into()).unwrap_err();
        assert_eq!(wrong.to_string(), "`5` is not a length of time such as \"1m 30s\"");
    }
}
