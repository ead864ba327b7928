//! Successful HTTP responses.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;

/// A JSON body.
pub(in crate::api) fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error).into_response(),
    }
}

/// An empty 200.
pub(in crate::api) fn empty() -> Response {
    StatusCode::OK.into_response()
}
