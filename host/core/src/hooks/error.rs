//! Errors of hooks that fail a launch.

use crate::plugin::CallError;

/// Why a hook fails a launch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// A required hook failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Two hooks set a variable to different values, which are not shown, as they may be secrets.
    #[error(
        "the hooks `{first}` and `{second}` set the environment variable `{variable}` to different values; \
         leave one of them out, or change its settings"
    )]
    Conflict {
        /// The variable.
        variable: String,
        /// The hook that was called first.
        first: String,
        /// The other one.
        second: String,
    },
}

impl HookError {
    /// Whether the same launch may succeed later, according to the hook that failed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { retryable: true, .. }))
    }
}
