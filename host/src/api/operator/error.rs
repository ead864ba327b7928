//! Errors as HTTP responses.

use std::error::Error;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::types::EnvelopeError;
use cofferdam_core::containerizer::{KillError, LaunchError, RemoveError, UpdateError};
use cofferdam_core::model::ContainerId;

/// An error response. The first line of its text says what failed, each further line why the line above it did.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    text: String,
}

impl ApiError {
    /// An error with all its causes.
    pub(super) fn new(status: StatusCode, error: &(dyn Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        Self { status, text: causes.map(ToString::to_string).collect::<Vec<_>>().join("\n") }
    }

    pub(super) fn message(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::message(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn unknown_container(id: &ContainerId) -> Self {
        Self::message(StatusCode::NOT_FOUND, format!("there is no container `{id}`"))
    }

    pub(super) fn stopping() -> Self {
        Self::message(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping; its containers keep running")
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
        Self::new(status, &error)
    }
}

/// Mesos answers every failed launch with 400. Here, a client can tell whether it should change the request (400),
/// try again later (503), or neither (500).
impl From<LaunchError> for ApiError {
    fn from(error: LaunchError) -> Self {
        let status = match error {
            LaunchError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            LaunchError::Foreign { .. } | LaunchError::Ended { .. } => StatusCode::CONFLICT,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ if error.is_invalid() || error.exec_error().is_some() => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut new = Self::new(status, &error);
        if let Some(exhausted) = error.exhausted() {
            new.text = format!("{}\n{exhausted}", new.text);
        }
        new
    }
}

impl From<KillError> for ApiError {
    fn from(error: KillError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, &error)
    }
}

impl From<RemoveError> for ApiError {
    fn from(error: RemoveError) -> Self {
        let status = match error {
            RemoveError::StillLive { .. } | RemoveError::CleanupMissed { .. } => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, &error)
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
        Self::new(status, &error)
    }
}
