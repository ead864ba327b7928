//! Macros that declare message types.
//!
//! `required`, `optional`, `repeated` and `map` have the meaning of proto2, so that each struct reads like the schema
//! it follows. The serde attributes of each are defined here.

/// Declares a message: a struct whose fields have a proto2 label.
macro_rules! message {
    (@ [$($meta:tt)*] $name:ident { $($done:tt)* }) => {
        $($meta)*
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name { $($done)* }
    };
    (@ $meta:tt $name:ident { $($done:tt)* }
        $(#[$attr:meta])* required $field:ident: $type:ty, $($rest:tt)*) => {
        message! { @ $meta $name { $($done)* $(#[$attr])* pub $field: $type, } $($rest)* }
    };
    (@ $meta:tt $name:ident { $($done:tt)* }
        $(#[$attr:meta])* optional $field:ident: $type:ty, $($rest:tt)*) => {
        message! { @ $meta $name { $($done)*
            $(#[$attr])*
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $field: Option<$type>,
        } $($rest)* }
    };
    (@ $meta:tt $name:ident { $($done:tt)* }
        $(#[$attr:meta])* repeated $field:ident: $type:ty, $($rest:tt)*) => {
        message! { @ $meta $name { $($done)*
            $(#[$attr])*
            #[serde(default, deserialize_with = "super::wire::unset", skip_serializing_if = "Vec::is_empty")]
            pub $field: Vec<$type>,
        } $($rest)* }
    };
    (@ $meta:tt $name:ident { $($done:tt)* }
        $(#[$attr:meta])* map $field:ident: $type:ty, $($rest:tt)*) => {
        message! { @ $meta $name { $($done)*
            $(#[$attr])*
            #[serde(
                default,
                deserialize_with = "super::wire::unset",
                skip_serializing_if = "std::collections::BTreeMap::is_empty"
            )]
            pub $field: std::collections::BTreeMap<String, $type>,
        } $($rest)* }
    };
    ($(#[$attr:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        message! { @ [$(#[$attr])*] $name {} $($fields)* }
    };
}

/// Declares an enum whose values are upper-case in JSON. One of them is marked `#[default]`.
macro_rules! word {
    ($(#[$attr:meta])* pub enum $name:ident { $($values:tt)* }) => {
        $(#[$attr])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum $name { $($values)* }
    };
}
