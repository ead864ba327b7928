//! The API server: JSON over HTTP on a unix socket.
//!
//! It translates between messages and the agent, and makes no decisions of its own. `docs/api.md` describes each
//! call and the differences from Mesos.

mod connections;
mod context;
mod early;
mod executor;
mod memory;
pub mod operator;
mod server;
mod socket;

pub(crate) use operator::check_settings;
pub use server::serve;
pub use socket::{BindError, Listener};
