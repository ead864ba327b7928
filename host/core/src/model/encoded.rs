//! A part of a record that is written several times and does not change any more.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use serde_json::value::RawValue;

/// A value that is shared by the versions of a record, and encoded as JSON once.
#[derive(Debug, Clone, Default)]
pub struct Encoded<T>(Arc<Inner<T>>);

#[derive(Debug, Default)]
struct Inner<T> {
    value: T,
    json: OnceLock<Box<RawValue>>,
}

impl<T> From<T> for Encoded<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(Inner { value, json: OnceLock::new() }))
    }
}

impl<T> Deref for Encoded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: PartialEq> PartialEq for Encoded<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl<T: Serialize> Serialize for Encoded<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Inner { value, json } = &*self.0;
        match json.get() {
            Some(json) => json.serialize(serializer),
            None => {
                let encoded = serde_json::value::to_raw_value(value).map_err(ser::Error::custom)?;
                json.get_or_init(|| encoded).serialize(serializer)
            }
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Encoded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::Encoded;

    #[test]
    fn it_is_encoded_as_its_value_is_whatever_contains_it() {
        let value = vec!["a\"b".to_owned(), "c".to_owned()];
        let encoded = Encoded::from(value.clone());
        for _ in 0..2 {
            assert_eq!(serde_json::to_string(&encoded).unwrap(), r#"["a\"b","c"]"#);
        }
        assert_eq!(serde_json::to_value(&encoded).unwrap(), serde_json::to_value(&value).unwrap());
        let decoded: Encoded<Vec<String>> = serde_json::from_str(r#"["a\"b", "c"]"#).unwrap();
        assert_eq!(decoded, encoded);
        assert_eq!(*decoded, value);
    }
}
