//! Values whose JSON form differs from serde's default.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serializer,
    de::{self, Visitor},
};

message! {
    /// A point in time.
    pub struct TimeInfo {
        /// Nanoseconds since the Unix epoch.
        #[serde(deserialize_with = "super::wire::integer")]
        required nanoseconds: i64,
    }
}

message! {
    /// A duration.
    pub struct DurationInfo {
        /// Nanoseconds. Negative values are representable, but no call accepts them.
        #[serde(deserialize_with = "super::wire::integer")]
        required nanoseconds: i64,
    }
}

/// Reads `null`, which means unset, as the default value.
pub(super) fn unset<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads an integer that may be quoted: canonical protobuf JSON quotes all 64-bit integers.
pub(super) fn integer<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + TryFrom<u64> + TryFrom<i64>,
{
    deserializer.deserialize_any(Integer(PhantomData))
}

/// [`integer`] for a field that may be absent or `null`.
pub(super) fn optional_integer<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + TryFrom<u64> + TryFrom<i64>,
{
    struct Optional<T>(PhantomData<T>);

    impl<'de, T: FromStr + TryFrom<u64> + TryFrom<i64>> Visitor<'de> for Optional<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an integer or null")
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            integer(deserializer).map(Some)
        }
    }

    deserializer.deserialize_option(Optional(PhantomData))
}

/// Floating-point numbers; strings if not finite.
pub(super) mod double {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_any(Double)
    }

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match *value {
            f64::INFINITY => serializer.serialize_str("Infinity"),
            f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            value if value.is_nan() => serializer.serialize_str("NaN"),
            value => serializer.serialize_f64(value),
        }
    }
}

struct Integer<T>(PhantomData<T>);

impl<T: FromStr + TryFrom<u64> + TryFrom<i64>> Visitor<'_> for Integer<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an integer in range")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        T::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        T::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        value.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(value), &self))
    }
}

struct Double;

impl Visitor<'_> for Double {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a number or `Infinity`")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<f64, E> {
        Ok(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<f64, E> {
        match value {
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            // Rust would also parse `inf` and `NaN`.
            text => text
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())
                .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Sample {
        #[serde(default, deserialize_with = "optional_integer")]
        count: Option<u64>,
        #[serde(default, with = "double")]
        weight: f64,
        #[serde(default, deserialize_with = "unset")]
        items: Vec<String>,
    }

    fn read(value: serde_json::Value) -> Result<Sample, String> {
        serde_json::from_str(&value.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn null_is_unset() {
        let sample = read(json!({"count": null, "items": null})).unwrap();
        assert_eq!(sample, Sample { count: None, weight: 0.0, items: vec![] });
    }

    #[test]
    fn numbers_may_be_quoted() {
        let sample = read(json!({"count": "18446744073709551615", "weight": "0.25"})).unwrap();
        assert_eq!((sample.count, sample.weight), (Some(u64::MAX), 0.25));
        assert_eq!(read(json!({"count": 7, "weight": 3})).unwrap().count, Some(7));
    }

    #[test]
    fn numbers_out_of_range_are_rejected() {
        assert!(read(json!({"count": -1})).unwrap_err().contains("integer `-1`"));
        assert!(read(json!({"count": "many"})).unwrap_err().contains("\"many\""));
        assert!(read(json!({"count": 1.5})).unwrap_err().contains("1.5"));
    }

    #[test]
    fn no_other_words_are_numbers() {
        assert_eq!(read(json!({"weight": "Infinity"})).unwrap().weight, f64::INFINITY);
        assert_eq!(read(json!({"weight": "-Infinity"})).unwrap().weight, f64::NEG_INFINITY);
        for text in ["inf", "NaN", "infinity", "1e999", ""] {
            let error = read(json!({"weight": text})).unwrap_err();
            assert!(error.contains("a number or `Infinity`"), "{text}: {error}");
        }
    }
}
