//! Successful HTTP responses.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;
use crate::api::encoding::Codec;

/// A JSON body.
pub(in crate::api) fn json<T: Serialize>(value: &T) -> Response {
    message(Codec::Json, value)
}

/// A message.
pub(in crate::api) fn message<T: Serialize>(codec: Codec, value: &T) -> Response {
    match codec.write(value) {
        Ok(body) => ([(header::CONTENT_TYPE, codec.media_type())], body).into_response(),
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error).into_response(),
    }
}

/// An empty 200.
pub(in crate::api) fn empty() -> Response {
    StatusCode::OK.into_response()
}
