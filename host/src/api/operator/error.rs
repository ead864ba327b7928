//! Errors as HTTP responses.

use std::error::Error;
use std::io;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::types::EnvelopeError;
use crate::telemetry::FixedLog;
use cofferdam_core::containerizer::{KillError, LaunchError, RemoveError, UpdateError};
use cofferdam_core::executor::{
    AcknowledgeError, KillTaskError, LaunchTaskError, ServeError, UpdateRefused, WriteError,
};
use cofferdam_core::model::{ContainerId, InvalidRequest};
use cofferdam_core::plugin::CallError;
use cofferdam_core::switchboard::AttachError;

/// Header of a failed launch whose command could not be executed: `not found` or `not executable`. Extension.
pub(crate) const EXEC_FAILURE_HEADER: &str = "x-cofferdam-exec-failure";

/// Bytes of the text of an error. What a client has sent may be in it, and more than once.
const MAX_TEXT: usize = 16 << 10;

/// An error response. The first line of its text says what failed, each further line why the line above it did.
#[derive(Debug)]
pub(in crate::api) struct ApiError {
    status: StatusCode,
    text: String,
}

impl ApiError {
    /// An error with all its causes.
    pub(in crate::api) fn new(status: StatusCode, error: &(dyn Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        Self { status, text: causes.map(ToString::to_string).collect::<Vec<_>>().join("\n") }
    }

    pub(in crate::api) fn message(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(in crate::api) fn bad_request(text: impl Into<String>) -> Self {
        Self::message(StatusCode::BAD_REQUEST, text)
    }

    pub(in crate::api) fn unknown_container(id: &ContainerId) -> Self {
        Self::message(StatusCode::NOT_FOUND, format!("there is no container `{id}`"))
    }

    pub(in crate::api) fn stopping() -> Self {
        Self::message(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping; its containers keep running")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, mut text } = self;
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
        (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
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

/// The response to a launch that failed.
pub(super) fn not_launched(error: LaunchError) -> Response {
    if let LaunchError::Duplicate { .. } = error {
        return StatusCode::ACCEPTED.into_response();
    }
    let failure = error.exec_error().and_then(exec_failure);
    let mut response = ApiError::from(error).into_response();
    if let Some(failure) = failure {
        response.headers_mut().insert(EXEC_FAILURE_HEADER, HeaderValue::from_static(failure));
    }
    response
}

/// Value of [`EXEC_FAILURE_HEADER`] for an error of execve(2); `None` for errors that shells do not distinguish.
pub(crate) fn exec_failure(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Some("not found"),
        io::ErrorKind::PermissionDenied => Some("not executable"),
        // `ErrorKind` has no variant for ENOEXEC (the file is not a program).
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => Some("not executable"),
        _ => None,
    }
}

impl From<KillError> for ApiError {
    fn from(error: KillError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, &error)
    }
}

impl From<AttachError> for ApiError {
    fn from(error: AttachError) -> Self {
        let status = match error {
            AttachError::Unknown { .. } => StatusCode::NOT_FOUND,
            AttachError::NotAttachable { .. } | AttachError::NotRunning { .. } => StatusCode::CONFLICT,
            AttachError::Connection { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, &error)
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

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        Self::new(StatusCode::BAD_REQUEST, &error)
    }
}

/// What could not be written may be written later.
fn not_written(error: &WriteError) -> StatusCode {
    match error {
        WriteError::Lost(_) => StatusCode::SERVICE_UNAVAILABLE,
        WriteError::Journal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<LaunchTaskError> for ApiError {
    fn from(error: LaunchTaskError) -> Self {
        let status = match &error {
            LaunchTaskError::Duplicate { .. } | LaunchTaskError::OtherExecutor { .. } => StatusCode::CONFLICT,
            LaunchTaskError::Invalid(_) | LaunchTaskError::LargeGroup { .. } => StatusCode::BAD_REQUEST,
            LaunchTaskError::Write(error) => not_written(error),
            error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, &error)
    }
}

impl From<KillTaskError> for ApiError {
    fn from(error: KillTaskError) -> Self {
        let status = match &error {
            KillTaskError::UnknownTask { .. } | KillTaskError::UnknownExecutor { .. } => {
                StatusCode::NOT_FOUND
            }
            KillTaskError::Ambiguous { .. } => StatusCode::BAD_REQUEST,
            KillTaskError::Write(error) => not_written(error),
        };
        Self::new(status, &error)
    }
}

impl From<AcknowledgeError> for ApiError {
    fn from(error: AcknowledgeError) -> Self {
        let status = match &error {
            AcknowledgeError::UnknownTask { .. } => StatusCode::NOT_FOUND,
            AcknowledgeError::OutOfOrder { .. } => StatusCode::CONFLICT,
            AcknowledgeError::Write(error) => not_written(error),
        };
        Self::new(status, &error)
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> Self {
        let status = match &error {
            ServeError::Ended => StatusCode::UNAUTHORIZED,
            ServeError::Refused(UpdateRefused::UnknownTask { .. } | UpdateRefused::ReservedId { .. }) => {
                StatusCode::BAD_REQUEST
            }
            ServeError::Refused(UpdateRefused::TooMany { .. }) | ServeError::Write(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, &error)
    }
}

impl From<FixedLog> for ApiError {
    fn from(error: FixedLog) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, &error)
    }
}

impl From<UpdateError> for ApiError {
    fn from(error: UpdateError) -> Self {
        let status = match error {
            UpdateError::Unknown { .. } => StatusCode::NOT_FOUND,
            UpdateError::NotRunning { .. } => StatusCode::CONFLICT,
            UpdateError::Invalid(_) | UpdateError::Refused(CallError::Invalid { .. }) => {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, &error)
    }
}
