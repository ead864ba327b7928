//! The API server: JSON or protocol buffers over HTTP, on a unix socket and, if configured, on the loopback interface.
//!
//! It translates between messages and the agent, and makes no decisions of its own. `docs/api.md` describes each
//! call and the differences from Mesos.

mod connections;
mod context;
mod early;
mod encoding;
mod endpoints;
mod executor;
mod memory;
pub mod operator;
mod path;
mod peer;
mod protobuf;
mod server;
mod socket;
mod stream;
mod tcp;
mod token;

pub(crate) use operator::check_settings;
pub use server::{Listeners, serve};
pub use socket::{BindError, Listener};
pub use tcp::{LoopbackListener, TcpError};
