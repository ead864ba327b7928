//! What a registry is shown.

/// A secret for a registry. It has no `Debug`, so that it is in no log.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Password {
        username: String,
        password: String,
    },
    /// For its authorization server.
    RefreshToken(String),
}
