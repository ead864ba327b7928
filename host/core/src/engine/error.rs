//! Errors of an engine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::transport::TransportError;

/// Why an engine did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It cannot be reached.
    #[error("cannot reach the container engine at `{}`; {}", socket.display(), advice(source))]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: TransportError,
    },
    /// It does not answer.
    #[error(
        "the container engine at `{}` did not answer within {}s; check that it is running and not stopped or overloaded",
        socket.display(), timeout.as_secs()
    )]
    TimedOut {
        /// Its socket.
        socket: PathBuf,
        /// How long it had.
        timeout: Duration,
    },
    /// It refused.
    #[error(
        "the container engine refused to {action} (status {status}): {message}; {}",
        super::advice::on_refusal(action, message)
    )]
    Refused {
        /// What it was asked for.
        action: String,
        /// Status of its answer.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It failed during a pull.
    #[error(
        "the container engine cannot pull image `{image}`: {message}; {}",
        super::advice::on_pull(message)
    )]
    Pull {
        /// The image.
        image: String,
        /// Its words.
        message: String,
    },
    /// Its answer is not as expected.
    #[error("the container engine at `{}` gave an answer that is not understood when it was to {action}: {reason}", socket.display())]
    Malformed {
        /// Its socket.
        socket: PathBuf,
        /// What it was asked for.
        action: String,
        /// What is wrong.
        reason: String,
    },
    /// It is too old or too new.
    #[error(
        "the container engine {version} speaks versions {min} to {max} of its API; this agent needs one of {} to {}",
        super::client::MIN_API,
        super::client::MAX_API
    )]
    Version {
        /// Version of the engine.
        version: String,
        /// Oldest version of the API that it knows.
        min: String,
        /// Newest version of the API that it knows.
        max: String,
    },
}

/// What to do about a connection that fails.
fn advice(error: &TransportError) -> &'static str {
    let TransportError::Connect { source } = error else { return "it may have been stopped" };
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start the engine, or set `docker.socket` to its socket"
        }
        io::ErrorKind::PermissionDenied => "the agent must be root or in the group of the socket",
        _ => "check `docker.socket` and the engine",
    }
}

impl EngineError {
    /// Whether the engine knows no such container, image or network.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the engine says that nothing is to be done, or that something else is in progress.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 304 | 409, .. })
    }

    /// Whether the request may succeed when the engine is reachable again.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }

    /// Whether the engine says that the request is wrong.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 404, .. })
    }
}
