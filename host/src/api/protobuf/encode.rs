//! Messages as a target of serde.
//!
//! The types of the API, and any JSON value of the same form, can be encoded: a field is found by its name.

use std::fmt::{self, Write as _};

use data_encoding::BASE64;
use serde::Serialize;
use serde::ser::{Impossible, SerializeMap, SerializeSeq, SerializeStruct, Serializer};

use super::MAX_DEPTH;
use super::error::Error;
use super::schema::{Field, Kind, Label, Message};
use super::wire::{WireType, insert_length, put_length, put_tag, put_varint};

/// Encodes a message. Fields that are required and missing get the default of their kind, as clients cannot read a message
/// without them.
///
/// # Errors
/// When a value is not of the kind of its field.
pub(in crate::api) fn to_vec(message: &'static Message, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    value.serialize(MessageSerializer { message, out: &mut out, depth: 0, start: None })?;
    Ok(out)
}

/// Checks that a value can be encoded.
///
/// # Errors
/// When a value is not of the kind of its field.
pub(in crate::api) fn check(message: &'static Message, value: &impl Serialize) -> Result<(), Error> {
    to_vec(message, value).map(drop)
}

/// A message that is written.
struct MessageSerializer<'o> {
    message: &'static Message,
    out: &'o mut Vec<u8>,
    depth: usize,
    /// Where it begins, if its length is put in front of it.
    start: Option<usize>,
}

/// Its fields.
struct Fields<'o> {
    message: &'static Message,
    out: &'o mut Vec<u8>,
    depth: usize,
    start: Option<usize>,
    /// After the last one that was written, as types have their fields in the order of the schema.
    likely: usize,
    /// The fields that were written, a bit each.
    written: u128,
    /// The field of a key whose value is next.
    key: Option<usize>,
}

impl<'o> MessageSerializer<'o> {
    fn fields(self) -> Result<Fields<'o>, Error> {
        let Self { message, out, depth, start } = self;
        if depth > MAX_DEPTH {
            return Err(Error::new(format!(
                "`{}` is nested more than {MAX_DEPTH} levels deep",
                message.name
            )));
        }
        Ok(Fields { message, out, depth, start, likely: 0, written: 0, key: None })
    }

    fn refuse<T>(self, found: &str) -> Result<T, Error> {
        Err(Error::new(format!("expected an object, found {found}")))
    }
}

impl Fields<'_> {
    fn write<T: Serialize + ?Sized>(&mut self, index: usize, value: &T) -> Result<(), Error> {
        let &Field { number, name, label, kind } = &self.message.fields[index];
        let before = self.out.len();
        let value =
            value.serialize(FieldSerializer { number, label, kind, out: self.out, depth: self.depth });
        value.map_err(|error| error.within(name))?;
        if self.out.len() > before {
            self.written |= 1 << index;
        }
        self.likely = index + 1;
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        for (index, field) in self.message.fields.iter().enumerate() {
            if field.label == Label::Required && self.written & (1 << index) == 0 {
                put_default(field, self.out);
            }
        }
        if let Some(start) = self.start {
            insert_length(self.out, start);
        }
        Ok(())
    }
}

/// Writes a field with the default of its kind.
fn put_default(field: &Field, out: &mut Vec<u8>) {
    match field.kind {
        Kind::Double => {
            put_tag(out, field.number, WireType::Fixed64);
            out.extend([0; 8]);
        }
        Kind::String | Kind::Bytes => {
            put_tag(out, field.number, WireType::Length);
            put_length(out, &[]);
        }
        Kind::Message(message) => {
            put_tag(out, field.number, WireType::Length);
            let start = out.len();
            // No message requires one of its own kind.
            let required = message.fields.iter().filter(|field| field.label == Label::Required);
            required.for_each(|field| put_default(field, out));
            insert_length(out, start);
        }
        Kind::Enumeration(known) => {
            put_tag(out, field.number, WireType::Varint);
            put_varint(out, known.values.first().map_or(0, |(_, number)| from_int(i128::from(*number))));
        }
        Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => {
            put_tag(out, field.number, WireType::Varint);
            put_varint(out, 0);
        }
    }
}

impl SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        match self.message.index_by_name(key, self.likely) {
            Some(index) => self.write(index, value),
            None => Ok(()),
        }
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl SerializeMap for Fields<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key = self.message.index_by_name(&text_of(key)?, self.likely);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        match self.key.take() {
            Some(index) => self.write(index, value),
            None => Ok(()),
        }
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

/// What is not the beginning of a message.
macro_rules! refuse {
    ($($method:ident($($argument:ty),*) $found:literal;)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), Error> {
            self.refuse($found)
        })*
    };
}

/// What no type of the API is.
macro_rules! impossible {
    () => {
        type SerializeTuple = Impossible<(), Error>;
        type SerializeTupleStruct = Impossible<(), Error>;
        type SerializeTupleVariant = Impossible<(), Error>;
        type SerializeStructVariant = Impossible<(), Error>;

        fn serialize_newtype_struct<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            value: &T,
        ) -> Result<(), Error> {
            value.serialize(self)
        }

        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: &T,
        ) -> Result<(), Error> {
            self.refuse("a variant with a value")
        }

        fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Error> {
            self.refuse("a tuple")
        }

        fn serialize_tuple_struct(
            self,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleStruct, Error> {
            self.refuse("a tuple")
        }

        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleVariant, Error> {
            self.refuse("a variant with values")
        }

        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeStructVariant, Error> {
            self.refuse("a variant with fields")
        }

        fn is_human_readable(&self) -> bool {
            false
        }
    };
}

impl<'o> Serializer for MessageSerializer<'o> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Impossible<(), Error>;
    type SerializeMap = Fields<'o>;
    type SerializeStruct = Fields<'o>;

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Fields<'o>, Error> {
        self.fields()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'o>, Error> {
        self.fields()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Error> {
        self.refuse("a list")
    }

    refuse! {
        serialize_bool(bool) "a boolean";
        serialize_i8(i8) "a number";
        serialize_i16(i16) "a number";
        serialize_i32(i32) "a number";
        serialize_i64(i64) "a number";
        serialize_u8(u8) "a number";
        serialize_u16(u16) "a number";
        serialize_u32(u32) "a number";
        serialize_u64(u64) "a number";
        serialize_f32(f32) "a number";
        serialize_f64(f64) "a number";
        serialize_char(char) "a string";
        serialize_str(&str) "a string";
        serialize_bytes(&[u8]) "bytes";
        serialize_none() "null";
        serialize_unit() "null";
        serialize_unit_struct(&'static str) "null";
        serialize_unit_variant(&'static str, u32, &'static str) "a string";
    }

    impossible!();
}

/// The value of a field that is written.
struct FieldSerializer<'o> {
    number: u32,
    /// That of the field, or `Optional` for one value of several.
    label: Label,
    kind: Kind,
    out: &'o mut Vec<u8>,
    /// Of the message that the field is in.
    depth: usize,
}

impl<'o> FieldSerializer<'o> {
    fn refuse<T>(&self, found: &str) -> Result<T, Error> {
        let expected = match (self.label, self.kind) {
            (Label::Repeated, _) => "a list".to_owned(),
            (Label::Map, _) | (_, Kind::Message(_)) => "an object".to_owned(),
            (_, Kind::Bool) => "a boolean".to_owned(),
            (_, Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64) => "an integer in range".to_owned(),
            (_, Kind::Double) => "a number".to_owned(),
            (_, Kind::String) => "a string".to_owned(),
            (_, Kind::Bytes) => "base64".to_owned(),
            (_, Kind::Enumeration(known)) => format!("a value of `{}`", known.name),
        };
        Err(Error::new(format!("expected {expected}, found {found}")))
    }

    fn is_one(&self) -> bool {
        !matches!(self.label, Label::Repeated | Label::Map)
    }

    fn put_number(self, number: u64) {
        put_tag(self.out, self.number, WireType::Varint);
        put_varint(self.out, number);
    }

    fn put_bytes(self, bytes: &[u8]) {
        put_tag(self.out, self.number, WireType::Length);
        put_length(self.out, bytes);
    }

    fn integer(self, value: i128) -> Result<(), Error> {
        let fits = match self.kind {
            _ if !self.is_one() => false,
            Kind::Int32 => i32::try_from(value).is_ok(),
            Kind::Int64 => i64::try_from(value).is_ok(),
            Kind::Uint32 => u32::try_from(value).is_ok(),
            Kind::Uint64 => u64::try_from(value).is_ok(),
            // Also one that is newer than the schema.
            Kind::Enumeration(_) => i32::try_from(value).is_ok(),
            #[expect(clippy::cast_precision_loss, reason = "as when such a number is read from JSON")]
            Kind::Double => return self.double(value as f64),
            _ => false,
        };
        match fits {
            true => {
                self.put_number(from_int(value));
                Ok(())
            }
            false => self.refuse(&format!("the number {value}")),
        }
    }

    fn double(self, value: f64) -> Result<(), Error> {
        match self.kind {
            Kind::Double if self.is_one() => {
                put_tag(self.out, self.number, WireType::Fixed64);
                self.out.extend(value.to_le_bytes());
                Ok(())
            }
            // Some write whole numbers with a fraction.
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and checked against its range")]
            Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64
                if value.fract() == 0.0 && value.abs() < 1e18 =>
            {
                self.integer(value as i128)
            }
            _ => self.refuse(&format!("the number {value}")),
        }
    }

    fn text(self, text: &str) -> Result<(), Error> {
        let found = || "a string";
        match self.kind {
            _ if !self.is_one() => self.refuse(found()),
            Kind::String => {
                self.put_bytes(text.as_bytes());
                Ok(())
            }
            Kind::Bytes => match BASE64.decode(text.as_bytes()) {
                Ok(bytes) => {
                    self.put_bytes(&bytes);
                    Ok(())
                }
                Err(error) => self.refuse(&format!("a string that is not: {error}")),
            },
            Kind::Enumeration(known) => match known.number_of(text) {
                Some(number) => {
                    self.put_number(from_int(number.into()));
                    Ok(())
                }
                // As in Mesos, one that is newer than the schema is left out.
                None if self.label != Label::Required => Ok(()),
                None => self.refuse(&format!("`{}`", text.escape_debug())),
            },
            Kind::Double => match text {
                "Infinity" => self.double(f64::INFINITY),
                "-Infinity" => self.double(f64::NEG_INFINITY),
                "NaN" => self.double(f64::NAN),
                text => match text.parse() {
                    Ok(value) if f64::is_finite(value) => self.double(value),
                    _ => self.refuse(found()),
                },
            },
            Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => match text.parse() {
                Ok(value) => self.integer(value),
                Err(_) => self.refuse(found()),
            },
            Kind::Bool | Kind::Message(_) => self.refuse(found()),
        }
    }

    fn object(self) -> Result<Object<'o>, Error> {
        let Self { number, label, kind, out, depth } = self;
        match (label, kind) {
            (Label::Map, _) => {
                Ok(Object::Map(Entries { number, kind, out, depth, start: 0, key: String::new() }))
            }
            (Label::Required | Label::Optional, Kind::Message(message)) => {
                put_tag(out, number, WireType::Length);
                let start = Some(out.len());
                let message = MessageSerializer { message, out, depth: depth + 1, start };
                Ok(Object::Message(message.fields()?))
            }
            _ => Self { number, label, kind, out, depth }.refuse("an object"),
        }
    }
}

impl<'o> Serializer for FieldSerializer<'o> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Elements<'o>;
    type SerializeMap = Object<'o>;
    type SerializeStruct = Object<'o>;

    /// Unset.
    fn serialize_none(self) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        match self.kind {
            Kind::Bool if self.is_one() => {
                self.put_number(value.into());
                Ok(())
            }
            _ => self.refuse("a boolean"),
        }
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.integer(value.into())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.double(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        self.double(value)
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.text(value)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        match self.kind {
            Kind::Bytes if self.is_one() => {
                self.put_bytes(value);
                Ok(())
            }
            _ => self.refuse("bytes"),
        }
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Error> {
        self.text(variant)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'o>, Error> {
        match self.label {
            Label::Repeated => Ok(Elements {
                number: self.number,
                kind: self.kind,
                out: self.out,
                depth: self.depth,
                count: 0,
            }),
            _ => self.refuse("a list"),
        }
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Object<'o>, Error> {
        self.object()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Object<'o>, Error> {
        self.object()
    }

    impossible!();
}

/// The values of a repeated field.
struct Elements<'o> {
    number: u32,
    kind: Kind,
    out: &'o mut Vec<u8>,
    depth: usize,
    count: usize,
}

impl SerializeSeq for Elements<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let Self { number, kind, depth, count, .. } = *self;
        put_value(FieldSerializer { number, label: Label::Optional, kind, out: self.out, depth }, value)
            .map_err(|error| error.at(count))?;
        self.count += 1;
        Ok(())
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes a value of a list or a map, which cannot be unset.
fn put_value<T: Serialize + ?Sized>(field: FieldSerializer<'_>, value: &T) -> Result<(), Error> {
    let FieldSerializer { number, label, kind, out, depth } = field;
    let before = out.len();
    value.serialize(FieldSerializer { number, label, kind, out: &mut *out, depth })?;
    match out.len() > before || matches!(kind, Kind::Enumeration(_)) {
        true => Ok(()),
        false => FieldSerializer { number, label, kind, out, depth }.refuse("null"),
    }
}

/// A message or a map, both of which are objects in JSON.
enum Object<'o> {
    Message(Fields<'o>),
    Map(Entries<'o>),
}

/// The fields of an entry of a map.
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// The entries of a map.
struct Entries<'o> {
    number: u32,
    kind: Kind,
    out: &'o mut Vec<u8>,
    depth: usize,
    /// Where the entry begins whose value is next.
    start: usize,
    key: String,
}

impl Entries<'_> {
    fn begin(&mut self, key: String) {
        put_tag(self.out, self.number, WireType::Length);
        self.start = self.out.len();
        put_tag(self.out, KEY, WireType::Length);
        put_length(self.out, key.as_bytes());
        self.key = key;
    }

    fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let Self { kind, depth, .. } = *self;
        let value_of =
            FieldSerializer { number: VALUE, label: Label::Optional, kind, out: &mut *self.out, depth };
        put_value(value_of, value).map_err(|error| error.at(&self.key))?;
        insert_length(self.out, self.start);
        Ok(())
    }
}

impl SerializeMap for Object<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        match self {
            Self::Message(fields) => fields.serialize_key(key),
            Self::Map(entries) => {
                entries.begin(text_of(key)?);
                Ok(())
            }
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        match self {
            Self::Message(fields) => fields.serialize_value(value),
            Self::Map(entries) => entries.put(value),
        }
    }

    fn end(self) -> Result<(), Error> {
        match self {
            Self::Message(fields) => fields.finish(),
            Self::Map(_) => Ok(()),
        }
    }
}

impl SerializeStruct for Object<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        match self {
            Self::Message(fields) => fields.serialize_field(key, value),
            Self::Map(entries) => {
                entries.begin(key.to_owned());
                entries.put(value)
            }
        }
    }

    fn end(self) -> Result<(), Error> {
        SerializeMap::end(self)
    }
}

/// A number as it is stored: the lower 64 bits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "which is intended")]
fn from_int(number: i128) -> u64 {
    number as u64
}

/// A key of an object, which is a string.
fn text_of<T: Serialize + ?Sized>(key: &T) -> Result<String, Error> {
    struct Key<'k, T: ?Sized>(&'k T);

    impl<T: Serialize + ?Sized> fmt::Display for Key<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.serialize(f)
        }
    }

    let mut text = String::new();
    write!(text, "{}", Key(key)).map_err(|_| Error::new("expected a string as key"))?;
    Ok(text)
}
