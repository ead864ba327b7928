//! Errors of a plugin.

use std::fmt;

use serde::Serialize;
use serde_json::Value as Json;

/// Result of a method of a plugin.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a method failed: one or more messages for the operator, outermost first.
///
/// Any [`std::error::Error`] is converted by `?` with its sources; [`ResultExt::context`] adds what was being done.
/// This type does not implement `std::error::Error` itself, which makes that conversion possible.
pub struct Error {
    causes: Vec<String>,
    retryable: bool,
    invalid: bool,
    state: Option<Json>,
}

impl Error {
    /// An error with a message of one line. By convention it is in lower case and does not end with a full stop.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { causes: vec![message.to_string()], retryable: false, invalid: false, state: None }
    }

    /// As [`Error::new`], for a request that contradicts itself, the configuration or the host, so that the client has to
    /// change it. The API of the agent then answers with status 400 instead of 500.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self { invalid: true, ..Self::new(message) }
    }

    /// Adds what was being done as the outermost message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.causes.insert(0, doing.to_string());
        self
    }

    /// Marks the error as temporary: the same call may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Replaces the plugin's state for the container of the call, so that `cleanup` can undo a method that failed
    /// half-way. Ignored for calls that are not for one container. If the state cannot be encoded as JSON, the old
    /// state is kept and the encoding error is added to the messages.
    ///
    /// The agent stores this state after the call has returned. To store a state during the call, so that it survives a
    /// crash of the agent, use [`Host::put_state`](crate::Host::put_state).
    #[must_use]
    pub fn with_state(mut self, state: &impl Serialize) -> Self {
        match serde_json::to_value(state) {
            Ok(state) => self.state = Some(state),
            Err(error) => self.causes.push(format!("cannot encode the plugin's state as JSON: {error}")),
        }
        self
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Whether the client has to change its request.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.invalid
    }

    /// The messages, outermost first; never empty.
    #[must_use]
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// The new state, if [`Error::with_state`] set one.
    #[must_use]
    pub fn state(&self) -> Option<&Json> {
        self.state.as_ref()
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut causes = vec![error.to_string()];
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self { causes, retryable: false, invalid: false, state: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.causes.join("\n"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Adds context to errors.
pub trait ResultExt<T> {
    /// Adds what was being done as the outermost message.
    ///
    /// # Errors
    /// The original error with that message.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(doing))
    }
}
