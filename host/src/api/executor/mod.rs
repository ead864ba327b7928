//! The executor API: what executors subscribe to and send, over a socket of its own that containers can reach.
//!
//! ```text
//! POST /api/v1/executor   SUBSCRIBE, UPDATE, MESSAGE, as in Mesos
//! POST /api/v1            calls of the operator API, for containers nested in that of the executor
//! ```
//!
//! Whoever connects is hostile until it presents the token of an executor, and may then act as this executor.

mod calls;
mod decode;
mod events;
#[cfg(test)]
mod fuzz;
mod nested;
mod requests;
mod routes;

pub(super) use requests::Requests;
pub(super) use routes::{bearer, router, unauthorized};
