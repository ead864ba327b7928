//! Messages as a source of serde.
//!
//! A type of the API gets what it asks for. Any other value gets what it would find in JSON: names of enumerations, base64
//! of bytes, `"Infinity"` for a number that JSON has no literal for. A value of an enumeration that is newer than the schema is
//! its number, which is kept; where a type needs to know it, it is an error.

use data_encoding::BASE64;
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::MAX_DEPTH;
use super::error::Error;
use super::schema::{Field, Kind, Label, Message};
use super::wire::{Stored, take_field, take_varint};

/// Reads a message.
///
/// # Errors
/// When the bytes are not such a message, with the field that is wrong.
pub(in crate::api) fn from_slice<T: DeserializeOwned>(
    message: &'static Message,
    bytes: &[u8],
) -> Result<T, Error> {
    T::deserialize(MessageDeserializer::new(message, bytes))
}

/// A message that is read.
pub(in crate::api) struct MessageDeserializer<'b> {
    message: &'static Message,
    parts: Parts<'b>,
    depth: usize,
}

/// What is stored of a message: several parts, one after the other, are the same as the message that they are merged to.
#[derive(Clone, Copy)]
enum Parts<'b> {
    One(&'b [u8]),
    Several(&'b [Occurrence<'b>]),
}

impl<'b> MessageDeserializer<'b> {
    pub(in crate::api) fn new(message: &'static Message, bytes: &'b [u8]) -> Self {
        Self { message, parts: Parts::One(bytes), depth: 0 }
    }
}

impl<'de> Deserializer<'de> for MessageDeserializer<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.depth > MAX_DEPTH {
            return Err(Error::new(format!(
                "`{}` is nested more than {MAX_DEPTH} levels deep",
                self.message.name
            )));
        }
        let found = occurrences(self.message, self.parts)?;
        visitor.visit_map(Fields { message: self.message, rest: &found, current: None, depth: self.depth })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

/// Where a field occurs: its place in the schema, and what is stored.
type Occurrence<'b> = (usize, Stored<'b>);

/// The fields that the schema has, in its order. Those of one field stay in the order in which they are stored.
fn occurrences<'b>(message: &Message, parts: Parts<'b>) -> Result<Vec<Occurrence<'b>>, Error> {
    let mut found = Vec::new();
    match parts {
        Parts::One(bytes) => add_occurrences(message, bytes, &mut found)?,
        Parts::Several(parts) => {
            for (_, part) in parts {
                add_occurrences(message, length(*part)?, &mut found)?;
            }
        }
    }
    found.sort_by_key(|(index, _)| *index);
    Ok(found)
}

fn add_occurrences<'b>(
    message: &Message,
    mut bytes: &'b [u8],
    found: &mut Vec<Occurrence<'b>>,
) -> Result<(), Error> {
    while !bytes.is_empty() {
        let (number, stored) = take_field(&mut bytes)?;
        if let Some(index) = message.index_of(number) {
            found.push((index, stored));
        }
    }
    Ok(())
}

/// The fields of a message.
struct Fields<'b> {
    message: &'static Message,
    rest: &'b [Occurrence<'b>],
    /// The field whose value is next.
    current: Option<(&'static Field, ValueDeserializer<'b>)>,
    depth: usize,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(&(index, _)) = self.rest.first() else { return Ok(None) };
        let count = self.rest.iter().take_while(|(other, _)| *other == index).count();
        let (stored, rest) = self.rest.split_at(count);
        let field = &self.message.fields[index];
        self.rest = rest;
        let Field { label, kind, .. } = *field;
        let value = ValueDeserializer { kind, label, values: Values::Field(stored), depth: self.depth };
        self.current = Some((field, value));
        seed.deserialize(IntoDeserializer::<Error>::into_deserializer(field.name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let current = self.current.take().ok_or_else(|| Error::new("a value was read before its key"))?;
        let (field, value) = current;
        seed.deserialize(value).map_err(|error| error.within(field.name))
    }
}

/// The values of a repeated field. Numbers may be packed: several of them, one after the other, are stored as one.
struct Elements<'b> {
    kind: Kind,
    depth: usize,
    rest: &'b [Occurrence<'b>],
    packed: &'b [u8],
    /// How many there were.
    count: usize,
}

impl<'b> Elements<'b> {
    fn next(&mut self) -> Result<Option<Stored<'b>>, Error> {
        let is_number = !matches!(self.kind, Kind::String | Kind::Bytes | Kind::Message(_) | Kind::Double);
        loop {
            if !self.packed.is_empty() {
                return take_varint(&mut self.packed).map(|number| Some(Stored::Varint(number)));
            }
            let Some(((_, stored), rest)) = self.rest.split_first() else { return Ok(None) };
            self.rest = rest;
            match stored {
                Stored::Length(packed) if is_number => self.packed = packed,
                stored => return Ok(Some(*stored)),
            }
        }
    }
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let index = self.count;
        let Some(stored) = self.next().map_err(|error| error.at(index))? else { return Ok(None) };
        self.count += 1;
        let value = ValueDeserializer::single(self.kind, stored, self.depth);
        seed.deserialize(value).map(Some).map_err(|error| error.at(index))
    }
}

/// The entries of a map: messages whose field 1 is the key, and whose field 2 is the value.
struct Entries<'b> {
    kind: Kind,
    depth: usize,
    stored: &'b [Occurrence<'b>],
    index: usize,
    value: Option<(&'b str, ValueDeserializer<'b>)>,
}

impl<'b> Entries<'b> {
    fn entry(&self, mut bytes: &'b [u8]) -> Result<(&'b str, ValueDeserializer<'b>), Error> {
        let (mut key, mut value) = (&b""[..], Stored::Length(&[]));
        while !bytes.is_empty() {
            match take_field(&mut bytes)? {
                (1, stored) => key = length(stored)?,
                (2, stored) => value = stored,
                _ => {}
            }
        }
        Ok((text(key)?, ValueDeserializer::single(self.kind, value, self.depth)))
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((_, stored)) = self.stored.get(self.index) else { return Ok(None) };
        let entry = length(*stored).and_then(|bytes| self.entry(bytes));
        let (key, value) = entry.map_err(|error| error.at(self.index))?;
        self.index += 1;
        self.value = Some((key, value));
        seed.deserialize(StrDeserializer::<Error>::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, value) = self.value.take().ok_or_else(|| Error::new("a value was read before its key"))?;
        seed.deserialize(value).map_err(|error| error.at(key))
    }
}

/// The value of a field, or one of its values.
struct ValueDeserializer<'b> {
    kind: Kind,
    label: Label,
    values: Values<'b>,
    /// Of the message that it is in.
    depth: usize,
}

/// What is stored of a value.
enum Values<'b> {
    /// Of a field: at least one.
    Field(&'b [Occurrence<'b>]),
    Single(Stored<'b>),
}

impl<'b> ValueDeserializer<'b> {
    /// One of the values of a field.
    fn single(kind: Kind, stored: Stored<'b>, depth: usize) -> Self {
        Self { kind, label: Label::Optional, values: Values::Single(stored), depth }
    }

    fn occurrences(&self) -> &'b [Occurrence<'b>] {
        match self.values {
            Values::Field(stored) => stored,
            Values::Single(_) => &[],
        }
    }

    /// As everywhere, the last one counts.
    fn last(&self) -> Result<Stored<'b>, Error> {
        match self.values {
            Values::Field([.., (_, last)]) => Ok(*last),
            Values::Field([]) => Err(Error::new("a field without a value")),
            Values::Single(stored) => Ok(stored),
        }
    }

    fn varint(&self) -> Result<u64, Error> {
        match self.last()? {
            Stored::Varint(number) => Ok(number),
            _ => Err(wrong_type("a number")),
        }
    }

    fn double(&self) -> Result<f64, Error> {
        match self.last()? {
            Stored::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(wrong_type("a floating-point number")),
        }
    }

    fn bytes(&self) -> Result<&'b [u8], Error> {
        length(self.last()?)
    }

    /// Messages are merged.
    fn parts(&self) -> Result<Parts<'b>, Error> {
        match self.values {
            Values::Field(parts @ [_, _, ..]) => Ok(Parts::Several(parts)),
            _ => self.bytes().map(Parts::One),
        }
    }

    /// A value of an enumeration.
    fn number(&self) -> Result<i32, Error> {
        self.varint().map(as_int32)
    }
}

impl<'de> Deserializer<'de> for ValueDeserializer<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Self { kind, label, depth, .. } = self;
        match label {
            Label::Repeated => {
                let rest = self.occurrences();
                return visitor.visit_seq(Elements { kind, depth, rest, packed: &[], count: 0 });
            }
            Label::Map => {
                let stored = self.occurrences();
                return visitor.visit_map(Entries { kind, depth, stored, index: 0, value: None });
            }
            _ => {}
        }
        match kind {
            Kind::Bool => visitor.visit_bool(self.varint()? != 0),
            Kind::Int32 => visitor.visit_i32(as_int32(self.varint()?)),
            Kind::Int64 => visitor.visit_i64(self.varint()?.cast_signed()),
            Kind::Uint32 => visitor.visit_u32(as_int32(self.varint()?).cast_unsigned()),
            Kind::Uint64 => visitor.visit_u64(self.varint()?),
            Kind::Double => match self.double()? {
                f64::INFINITY => visitor.visit_str("Infinity"),
                f64::NEG_INFINITY => visitor.visit_str("-Infinity"),
                value if value.is_nan() => visitor.visit_str("NaN"),
                value => visitor.visit_f64(value),
            },
            Kind::String => visitor.visit_str(text(self.bytes()?)?),
            Kind::Bytes => visitor.visit_string(BASE64.encode(self.bytes()?)),
            // One that is newer than the schema has no name.
            Kind::Enumeration(known) => {
                let number = self.number()?;
                match known.name_of(number) {
                    Some(name) => visitor.visit_str(name),
                    None => visitor.visit_i32(number),
                }
            }
            Kind::Message(message) => MessageDeserializer { message, parts: self.parts()?, depth: depth + 1 }
                .deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.kind {
            Kind::Enumeration(known) => {
                let number = self.number()?;
                let unknown = || Error::new(format!("{number} is not a value of `{}`", known.name));
                let name = known.name_of(number).ok_or_else(unknown)?;
                visitor.visit_enum(StrDeserializer::<Error>::new(name))
            }
            Kind::String => visitor.visit_enum(StrDeserializer::<Error>::new(text(self.bytes()?)?)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind {
            Kind::Bytes => visitor.visit_bytes(self.bytes()?),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string unit unit_struct seq tuple tuple_struct map
        struct identifier
    }
}

fn length(stored: Stored<'_>) -> Result<&[u8], Error> {
    match stored {
        Stored::Length(bytes) => Ok(bytes),
        _ => Err(wrong_type("bytes with their length")),
    }
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::new("it is not UTF-8"))
}

/// The lower half, as of every number of 32 bits. Negative ones are stored with 64 bits.
#[expect(clippy::cast_possible_truncation, reason = "which is intended")]
fn as_int32(number: u64) -> i32 {
    number as i32
}

fn wrong_type(expected: &str) -> Error {
    Error::new(format!("it has the wrong wire type; expected {expected}"))
}
