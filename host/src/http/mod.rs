//! Requests by HTTP to servers that are not trusted.
//!
//! ```text
//! client     sends requests and follows redirects, each of which is checked before it is requested
//!   ├──▶ resolve    the addresses of a host, unless one is closer than allowed
//!   ├──▶ redirect   where a server may redirect to
//!   ├──▶ pace       bodies that must not arrive too slowly
//!   └──▶ redact     URLs for messages
//! ```

mod client;
mod pace;
mod redact;
pub(crate) mod redirect;
mod resolve;

pub(crate) use client::{Answer, Client, Headers, HttpError, Method, Rules};
pub(crate) use redact::redact;
