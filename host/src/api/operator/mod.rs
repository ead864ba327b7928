//! The operator API: the Mesos v1 agent operator API in JSON, and its GET endpoints.

mod attach;
mod calls;
mod decode;
mod encode;
mod error;
mod files;
#[cfg(test)]
mod fuzz;
mod get;
mod listing;
mod reply;
pub(super) mod routes;
mod stream;
pub mod types;

pub(crate) use decode::decode_resources;
pub use encode::encode_launch;
pub(crate) use encode::{encode_id, encode_limits, encode_resources, flags};
pub(crate) use error::{EXEC_FAILURE_HEADER, exec_failure};
pub(crate) use stream::{MESSAGE_CONTENT_TYPE, RECORDIO, Records, RecordsBody, take_record};
