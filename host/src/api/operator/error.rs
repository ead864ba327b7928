//! What went wrong, as a status code and text: the one place where errors become HTTP.

use std::error::Error;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::files::FileError;
use super::launch::RefusedRequest;
use super::types::EnvelopeError;
use cofferdam_core::containerizer::{KillError, LaunchError, RemoveError, UpdateError};
use cofferdam_core::model::ContainerId;

/// An answer other than the one hoped for. Its text has one line for the failure and one for each cause.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    text: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// A request that makes no sense.
    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn unknown(id: &ContainerId) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no container `{id}`"))
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping; its containers run on")
    }

    /// A failure with all its causes.
    pub(super) fn of(status: StatusCode, error: &(dyn Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        Self::new(status, causes.map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.text).into_response()
    }
}

impl From<EnvelopeError> for ApiError {
    fn from(error: EnvelopeError) -> Self {
        let status = match error {
            EnvelopeError::NotImplemented { .. } => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::of(status, &error)
    }
}

impl From<RefusedRequest> for ApiError {
    fn from(error: RefusedRequest) -> Self {
        Self::of(StatusCode::BAD_REQUEST, &error)
    }
}

/// Whatever keeps a container from being launched is a 400 in Mesos, faults of the host included; clients
/// know the difference from the text only. We tell them apart.
impl From<LaunchError> for ApiError {
    fn from(error: LaunchError) -> Self {
        let status = match error {
            LaunchError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            _ if error.is_invalid() || error.exec_error().is_some() => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::of(status, &error)
    }
}

impl From<KillError> for ApiError {
    fn from(error: KillError) -> Self {
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, &error)
    }
}

impl From<RemoveError> for ApiError {
    fn from(error: RemoveError) -> Self {
        let status = match error {
            RemoveError::StillLive { .. } => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::of(status, &error)
    }
}

impl From<UpdateError> for ApiError {
    fn from(error: UpdateError) -> Self {
        let status = match error {
            UpdateError::Unknown { .. } => StatusCode::NOT_FOUND,
            UpdateError::NotRunning { .. } => StatusCode::CONFLICT,
            UpdateError::Invalid(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::of(status, &error)
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        let status = match error {
            FileError::NotFound { .. } => StatusCode::NOT_FOUND,
            FileError::Outside { .. } | FileError::NotAFile { .. } => StatusCode::BAD_REQUEST,
            FileError::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::of(status, &error)
    }
}
