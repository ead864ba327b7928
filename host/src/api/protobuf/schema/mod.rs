//! The messages of the v1 API of Mesos: the published numbers, names and kinds of their fields.
//!
//! Messages of calls that this agent does not have are left out.

/// Declares the schema of a message: `number label name: kind`.
macro_rules! message {
    ($static:ident = $name:literal { $($number:literal $label:ident $field:ident: $($kind:ident)+,)* }) => {
        pub(crate) static $static: super::Message = super::Message {
            name: $name,
            fields: &[$(super::Field {
                number: $number,
                name: stringify!($field),
                label: message!(@label $label),
                kind: message!(@kind $($kind)+),
            }),*],
        };
    };
    (@label required) => { super::Label::Required };
    (@label optional) => { super::Label::Optional };
    (@label repeated) => { super::Label::Repeated };
    (@label map) => { super::Label::Map };
    (@kind message $static:ident) => { super::Kind::Message(&$static) };
    (@kind enum $static:ident) => { super::Kind::Enumeration(&$static) };
    (@kind $scalar:ident) => { super::Kind::$scalar };
}

/// Declares the schema of an enumeration. Its first value is the default.
macro_rules! enumeration {
    ($static:ident = $name:literal { $($value:ident = $number:literal,)* }) => {
        pub(crate) static $static: super::Enumeration = super::Enumeration {
            name: $name,
            values: &[$((stringify!($value), $number)),*],
        };
    };
}

pub(in crate::api) mod agent;
mod command;
mod container;
pub(in crate::api) mod executor;
mod resource;
mod statistics;
pub(in crate::api) mod task;
mod values;

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its full name.
    pub(super) name: &'static str,
    /// In the order of their numbers.
    pub(super) fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    pub(super) number: u32,
    /// As in JSON.
    pub(super) name: &'static str,
    pub(super) label: Label,
    pub(super) kind: Kind,
}

/// How many values a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    Required,
    Optional,
    Repeated,
    /// Any number, each with a key, which is a string.
    Map,
}

/// What values a field has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Double,
    String,
    Bytes,
    Enumeration(&'static Enumeration),
    Message(&'static Message),
}

/// Values with a name and a number.
#[derive(Debug)]
pub(crate) struct Enumeration {
    /// Its full name.
    pub(super) name: &'static str,
    /// The default is the first.
    pub(super) values: &'static [(&'static str, i32)],
}

impl Message {
    /// The place of a field in the list, by its number.
    pub(super) fn index_of(&self, number: u32) -> Option<usize> {
        self.fields.binary_search_by_key(&number, |field| field.number).ok()
    }

    /// The place of a field in the list, by its name. It is found soonest if it is at `likely`.
    pub(super) fn index_by_name(&self, name: &str, likely: usize) -> Option<usize> {
        let is_it = |index: &usize| self.fields[*index].name == name;
        (likely..self.fields.len()).chain(0..likely.min(self.fields.len())).find(is_it)
    }
}

impl Enumeration {
    /// The name of a value.
    pub(super) fn name_of(&self, number: i32) -> Option<&'static str> {
        self.values.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
    }

    /// The number of a value.
    pub(in crate::api) fn number_of(&self, name: &str) -> Option<i32> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }
}
