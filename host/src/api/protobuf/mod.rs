//! Protocol buffers as a second encoding of the messages of the API, beside JSON.
//!
//! The types of the messages are the same for both: this is a format of serde, as `serde_json` is. What JSON does not
//! need, the number and the kind of each field, is in `schema`, by the name of the field. So a message has no second
//! definition in Rust, and no conversion that could differ from its JSON form.
//!
//! ```text
//! bytes ─▶ wire    fields with numbers ─▶ decode ─▶ the types of the API, or any JSON value
//! bytes ◀─ wire ◀─ encode, fields by name ◀──────── the types of the API, or any JSON value
//! ```
//!
//! As with every implementation of proto2, fields that the schema does not have are ignored when a message is read. Fields
//! of the types that the schema does not have, which are the extensions of this agent, are left out when one is written.

mod decode;
mod encode;
mod error;
pub(super) mod schema;
#[cfg(test)]
mod tests;
mod wire;

pub(super) use decode::{MessageDeserializer, from_slice};
pub(super) use encode::{check, to_vec};
pub use error::Error;

/// How deep messages may be nested, as in the implementations of Google.
const MAX_DEPTH: usize = 100;
