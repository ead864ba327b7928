//! Routes, and who may use them.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::BodyExt;

use super::requests::Requests;
use super::{calls, nested};
use crate::api::context::ApiContext;
use crate::api::operator::error::ApiError;
use crate::api::operator::routes::{check_accept, check_content_type, read_body, reject_while_stopping};
use cofferdam_core::executor::{Executor, Token};

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
        .route("/api/v1/executor", post(executor))
        .route("/api/v1", post(operator))
        .fallback(|| async { ApiError::message(StatusCode::NOT_FOUND, "there is no such endpoint") })
        // Before anything else of a request is read.
        .layer(middleware::from_fn_with_state(api, authenticate))
        .layer(middleware::from_fn_with_state(Arc::clone(&context), reject_while_stopping))
        .with_state(context)
}

/// Finds out which executor it is, and limits its requests.
async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let executor =
        bearer(request.headers()).and_then(|token| api.context.agent.executors().authenticate(&token));
    let Some(executor) = executor else {
        let text = "the header `Authorization: Bearer …` has no token of an executor that has not ended";
        let mut response = ApiError::message(StatusCode::UNAUTHORIZED, text).into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        return response;
    };
    let Some(in_progress) = api.requests.begin(executor.container()) else {
        let text = "too many requests of this executor are in progress; try again later";
        return ApiError::message(StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    request.extensions_mut().insert(executor);
    let response = next.run(request).await;
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _until_complete = &in_progress;
            error
        }))
    })
}

fn bearer(headers: &HeaderMap) -> Option<Token> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Token::presented(token.trim()))
}

async fn executor(
    State(context): State<Arc<ApiContext>>,
    Extension(executor): Extension<Executor>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_content_type(&headers)?;
    check_accept(&headers)?;
    let body = read_body(&context, body).await?;
    calls::dispatch(&context, &executor, &body).await
}

async fn operator(
    State(context): State<Arc<ApiContext>>,
    Extension(executor): Extension<Executor>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_content_type(&headers)?;
    check_accept(&headers)?;
    let body = read_body(&context, body).await?;
    nested::dispatch(&context, &executor, &body).await
}
