//! Errors in a message.

use axum::http::StatusCode;

use crate::api::operator::error::ApiError;
use cofferdam_core::model::{InvalidId, InvalidRequest};

/// Why a message was rejected. Always the fault of its sender.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// An id is malformed.
    #[error("`{field}` is invalid")]
    Id {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidId,
    },
    /// A nested call names a top-level container.
    #[error("`{field}.parent` is missing; use the call without `NESTED` for a top-level container")]
    NoParent {
        /// The field.
        field: &'static str,
    },
    /// A field is not implemented.
    #[error("`{field}` is not supported by this agent{advice}")]
    Unsupported {
        /// The field.
        field: String,
        /// What to do instead, with leading punctuation; may be empty.
        advice: &'static str,
    },
    /// A field has an invalid value.
    #[error("`{field}` is invalid: {reason}")]
    Field {
        /// The field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Resources are invalid.
    #[error(transparent)]
    Resources(#[from] InvalidRequest),
}

pub(in crate::api) type Result<T> = std::result::Result<T, DecodeError>;

impl DecodeError {
    pub(in crate::api) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, &error)
    }
}
