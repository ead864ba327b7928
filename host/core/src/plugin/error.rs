//! Errors of plugin calls.

use std::time::Duration;

use cofferdam_plugin_model::Method;

use super::recoverer::StateError;

/// Why a call of a plugin failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The plugin returned an error.
    #[error("`{plugin}` failed in `{method}`: {reason}")]
    Refused {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// The plugin's error with its causes.
        reason: String,
        /// Whether the same call may succeed later.
        retryable: bool,
    },
    /// The plugin returned an error that only another request of the client can help.
    #[error("`{plugin}` failed in `{method}`: {reason}")]
    Invalid {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// The plugin's error with its causes.
        reason: String,
    },
    /// The plugin's code panicked.
    #[error("`{plugin}` {reason} (at {location}); {aftermath}")]
    Panicked {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// The panic message.
        reason: String,
        /// Source location of the panic.
        location: String,
        /// State of the plugin afterwards.
        aftermath: String,
    },
    /// The plugin was not called because it is quarantined, out of service or not in the chain.
    #[error("`{plugin}` is {state}, so `{method}` was not called: {reason}")]
    Unavailable {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// `quarantined`, `out of service` or `not in the chain`.
        state: &'static str,
        /// Why.
        reason: String,
    },
    /// The request or the reply could not be encoded or decoded.
    #[error("`{plugin}`: invalid payload of `{method}`: {reason}")]
    Malformed {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// What is wrong with it.
        reason: String,
    },
    /// The plugin did not answer within its timeout.
    #[error("{reason}")]
    TimedOut {
        /// The plugin.
        plugin: String,
        /// The error as a sentence.
        reason: String,
    },
    /// The plugin changed the thread that it was called on.
    #[error("{reason}")]
    ThreadChanged {
        /// The plugin.
        plugin: String,
        /// The error as a sentence.
        reason: String,
    },
    /// Another call about the same container has not returned yet.
    #[error(
        "`{method}` of `{plugin}` was not called: its `{in_flight}` for this container has not returned for {since:.1?}"
    )]
    Busy {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// The method that is still running.
        in_flight: Method,
        /// How long it has been running.
        since: Duration,
    },
    /// Too many calls of the plugin have timed out and are still running.
    #[error(
        "`{method}` of `{plugin}` was not called: {late} of its calls have timed out and not returned yet"
    )]
    Overloaded {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// Number of late calls.
        late: usize,
    },
    /// The job was abandoned before this call.
    #[error("`{method}` of `{plugin}` was not called: an earlier call timed out")]
    Cancelled {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
    },
    /// The thread that was to make the call panicked or could not be started.
    #[error("`{plugin}` was not called: {reason}")]
    ThreadDied {
        /// The plugin.
        plugin: String,
        /// What happened.
        reason: String,
    },
}

impl CallError {
    /// Whether a call of the plugin is late: the same call is possible once that one has returned.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Busy { .. } | Self::Overloaded { .. })
    }

    /// A state in a reply that cannot be kept.
    pub(crate) fn state(plugin: &str, method: Method, error: &StateError) -> Self {
        Self::Malformed { plugin: plugin.to_owned(), method, reason: crate::error_chain::describe(error) }
    }

    /// The plugin whose call failed.
    #[must_use]
    pub fn plugin(&self) -> &str {
        match self {
            Self::Refused { plugin, .. }
            | Self::Invalid { plugin, .. }
            | Self::Panicked { plugin, .. }
            | Self::Unavailable { plugin, .. }
            | Self::Malformed { plugin, .. }
            | Self::TimedOut { plugin, .. }
            | Self::ThreadChanged { plugin, .. }
            | Self::Busy { plugin, .. }
            | Self::Overloaded { plugin, .. }
            | Self::Cancelled { plugin, .. }
            | Self::ThreadDied { plugin, .. } => plugin,
        }
    }
}

/// Joins a plugin's message, which has one cause per line.
pub(super) fn in_one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(": ")
}
