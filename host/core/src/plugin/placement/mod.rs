//! Where a plugin instance lives. Payload bytes and descriptors are all that passes this seam, so an instance can
//! live in the agent's process or, later, in a process of its own.

mod descriptors;
mod in_process;

use std::os::fd::{BorrowedFd, OwnedFd};

use cofferdam_plugin_model::Method;

pub use in_process::InProcess;

/// Creates instances of one plugin.
pub trait Placement: Send + Sync {
    /// Creates an instance from an encoded `CreateRequest`. Blocks while the plugin's constructor runs.
    ///
    /// # Errors
    /// The plugin's error, or its panic.
    fn create(&self, request: &[u8]) -> Result<Box<dyn Instance>, Failure>;
}

/// An instance of a plugin.
pub trait Instance: Send + Sync {
    /// Calls a method and blocks until it returns.
    ///
    /// # Errors
    /// [`InvokeError`] when the plugin fails or its reply cannot be accepted.
    fn invoke(&self, call: Invocation<'_>) -> Result<Response, InvokeError>;
}

/// One call of a method.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// The method.
    pub method: Method,
    /// The container's id; empty for calls that are not about one container.
    pub container: &'a str,
    /// When the agent stops waiting, in milliseconds since the Unix epoch.
    pub deadline_unix_ms: u64,
    /// The encoded request.
    pub request: &'a [u8],
    /// Descriptors that belong to the request.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// The reply to a successful call.
#[derive(Debug, Default)]
pub struct Response {
    /// The encoded reply; empty stands for the default of its type.
    pub payload: Vec<u8>,
    /// Descriptors that belong to the reply.
    pub descriptors: Vec<OwnedFd>,
}

/// Why a call has no reply.
#[derive(Debug)]
pub enum InvokeError {
    /// The plugin failed.
    Failure(Failure),
    /// The reply violates the contract.
    Reply(String),
}

/// A failure reported by the plugin or its panic guard.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// One line per cause, outermost first.
    pub message: String,
    /// Where a panic happened (`src/lib.rs:7`); empty otherwise.
    pub location: String,
    /// Encoded `StateReply`; empty if the state is unchanged.
    pub payload: Vec<u8>,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The plugin returned an error.
    Failed,
    /// The plugin's code panicked; the instance must not be called again.
    Panicked,
    /// An earlier call panicked, so this one did not run.
    Poisoned,
    /// The plugin does not have this method.
    Unsupported,
    /// The plugin could not read the request.
    Malformed,
    /// The plugin returned an error that only another request of the client can help.
    Invalid,
}

impl Failure {
    /// The failure in one line, with the location of a panic.
    #[must_use]
    pub fn describe(&self) -> String {
        let message = super::error::in_one_line(&self.message);
        if self.location.is_empty() { message } else { format!("{message} (at {})", self.location) }
    }
}
