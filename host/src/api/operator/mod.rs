//! The operator API: the Mesos v1 agent operator API in JSON, and its GET endpoints.
//!
//! It translates and never decides: a call becomes one question to the agent, its answer one message.
//! `docs/api.md` describes each call, and the differences from Mesos.

mod calls;
mod error;
mod files;
mod launch;
mod pages;
pub(super) mod routes;
mod show;
pub mod types;

use super::{Api, socket};

pub(crate) use calls::{EXEC_FAILURE, exec_failure};
pub use launch::from_request;
pub(crate) use launch::{resources as read_resources, wire_id, wire_limits, wire_resources};
pub(crate) use show::flags;
