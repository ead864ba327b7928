//! Routes, and who may use them.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::BodyExt;

use super::requests::{InProgress, Kind, Requests, too_many};
use super::{calls, nested};
use crate::api::context::ApiContext;
use crate::api::operator::error::ApiError;
use crate::api::operator::media::{request_encoding, response_media};
use crate::api::operator::routes::{read_body, read_body_within, reject_while_stopping};
use crate::api::operator::types::Call;
use cofferdam_core::executor::{Executor, Token};

/// The path of subscriptions, updates and messages.
const OWN_PATH: &str = "/api/v1/executor";

/// How much longer than other requests a subscription may be: it has all updates that are not acknowledged.
const SUBSCRIPTION: usize = 4;

/// What the routes share.
#[derive(Clone)]
struct Api {
    context: Arc<ApiContext>,
    requests: Arc<Requests>,
}

/// The routes of the executor API.
pub(in crate::api) fn router(context: Arc<ApiContext>, requests: Arc<Requests>) -> Router {
    let api = Api { context: Arc::clone(&context), requests };
    Router::new()
        .route(OWN_PATH, post(executor))
        .route("/api/v1", post(operator))
        .fallback(|| async { ApiError::message(StatusCode::NOT_FOUND, "there is no such endpoint") })
        // Before anything else of a request is read.
        .layer(middleware::from_fn_with_state(api, authenticate))
        .layer(middleware::from_fn_with_state(Arc::clone(&context), reject_while_stopping))
        .with_state(context)
}

/// Finds out which executor it is, and limits its requests.
async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let presented = bearer(request.headers()).map(Token::presented);
    let Some(executor) = presented.and_then(|token| api.context.agent.executors().authenticate(&token))
    else {
        return unauthorized(
            "the header `Authorization: Bearer …` has no token of an executor that has not ended",
        );
    };
    let kind = if request.uri().path() == OWN_PATH { Kind::Own } else { Kind::Nested };
    let Some(in_progress) = api.requests.begin(executor.container(), kind).map(Arc::new) else {
        return too_many().into_response();
    };
    request.extensions_mut().insert(Arc::clone(&in_progress));
    request.extensions_mut().insert(executor);
    let response = next.run(request).await;
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _until_complete = &in_progress;
            error
        }))
    })
}

/// The token that a client presents.
pub(in crate::api) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The response to a request without a valid token.
pub(in crate::api) fn unauthorized(text: &str) -> Response {
    let mut response = ApiError::message(StatusCode::UNAUTHORIZED, text).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}

async fn executor(
    State(context): State<Arc<ApiContext>>,
    Extension(executor): Extension<Executor>,
    Extension(in_progress): Extension<Arc<InProgress>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let encoding = request_encoding(&headers)?;
    let media = response_media(&headers)?;
    let max = context.config.api.max_body;
    // Its head says so.
    let is_long = body.size_hint().lower() > max as u64;
    let _long = match is_long {
        true => Some(in_progress.with(Kind::Long).ok_or_else(too_many)?),
        false => None,
    };
    let max = if is_long { max.saturating_mul(SUBSCRIPTION) } else { max };
    let body = read_body_within(&context, body, max).await?;
    calls::dispatch(&context, &executor, encoding, media, &body).await
}

async fn operator(
    State(context): State<Arc<ApiContext>>,
    Extension(executor): Extension<Executor>,
    Extension(in_progress): Extension<Arc<InProgress>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let codec = Call::codec(request_encoding(&headers)?);
    let media = response_media(&headers)?;
    let body = read_body(&context, body).await?;
    nested::dispatch(&context, &executor, &in_progress, media, Call::read(codec, &body)?).await
}
