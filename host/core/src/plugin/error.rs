//! Errors of plugin calls.

use cofferdam_plugin_model::Method;

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
    /// The plugin whose call failed.
    #[must_use]
    pub fn plugin(&self) -> &str {
        match self {
            Self::Refused { plugin, .. }
            | Self::Panicked { plugin, .. }
            | Self::Unavailable { plugin, .. }
            | Self::Malformed { plugin, .. }
            | Self::TimedOut { plugin, .. }
            | Self::Cancelled { plugin, .. }
            | Self::ThreadDied { plugin, .. } => plugin,
        }
    }
}

/// Joins a plugin's message, which has one cause per line.
pub(super) fn in_one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(": ")
}
