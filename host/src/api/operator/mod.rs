//! The operator API: the Mesos v1 agent operator API, and its GET endpoints.

mod accept;
mod attach;
mod browse;
pub(super) mod calls;
pub(super) mod decode;
pub(super) mod encode;
pub(super) mod error;
mod files;
#[cfg(test)]
mod fuzz;
mod get;
mod listing;
pub(super) mod media;
mod redirect;
pub(super) mod reply;
pub(super) mod routes;
pub(super) mod stream;
mod subscribe;
pub(super) mod tasks;
pub mod types;

pub(crate) use decode::decode_resources;
pub use encode::encode_launch;
pub(crate) use encode::{agent_info, encode_fetch, encode_id, encode_limits, encode_resources, flags};
pub(crate) use error::{EXEC_FAILURE_HEADER, exec_failure};
pub(crate) use media::{MESSAGE_CONTENT_TYPE, RECORDIO};
pub(crate) use stream::{Records, RecordsBody, take_record};
pub(crate) use tasks::check_settings;
