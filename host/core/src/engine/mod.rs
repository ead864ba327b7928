//! The Engine API of Docker, as far as the docker containerizer needs it.
//!
//! ```text
//! containerizer ─▶ Client      one method per call: deadlines, versions, errors in the engine's words
//!                    └──▶ Transport   requests over the engine's socket; by who embeds the library
//! ```
//!
//! The library has no HTTP, so [`Transport`] is a trait. Whatever it is asked for can be cancelled by dropping the future.

mod advice;
mod client;
mod error;
mod transport;
mod types;

pub use client::{Client, Timeouts};
pub use error::EngineError;
pub use transport::{Body, Method, Request, Response, Transport, TransportError};
pub use types::{
    Container, ContainerSummary, Credentials, EngineVersion, Image, ImageConfig, Network, State,
};
