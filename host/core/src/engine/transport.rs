//! Requests to an engine.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;

/// How requests reach an engine: HTTP over its socket.
#[async_trait]
pub trait Transport: Debug + Send + Sync {
    /// The engine's socket.
    fn socket(&self) -> &Path;

    /// Sends a request, and returns when the head of the response has arrived. Dropping the future, or the response,
    /// closes the connection, by which the engine learns of it.
    ///
    /// # Errors
    /// [`TransportError`]. A status that reports an error is none.
    async fn request(&self, request: Request) -> Result<Response, TransportError>;

    /// Sends a request that takes the connection over: after a response of status 101 it is a stream in both directions.
    /// Returns the connection, from which nothing after the head of the response has been read.
    ///
    /// # Errors
    /// [`TransportError`]. With another status, the inner result is the response.
    async fn take_over(&self, request: Request) -> Result<Result<OwnedFd, Response>, TransportError>;
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its path, with its query. Is encoded.
    pub path: String,
    /// A header and its value.
    pub header: Option<(&'static str, String)>,
    /// JSON.
    pub body: Option<Vec<u8>>,
}

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates, or acts.
    Post,
    /// Removes.
    Delete,
}

/// A response.
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Box<dyn Body>,
}

/// The body of a response.
#[async_trait]
pub trait Body: Send {
    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// Those of the connection.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, TransportError>;
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The engine does not accept connections.
    #[error("cannot connect")]
    Connect {
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came over it is no HTTP.
    #[error("the connection failed")]
    Connection {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
