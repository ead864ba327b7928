//! Where requests go, and what is checked of each before its content matters.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cofferdam_plugin_model::units;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::socket::StrangerError;
use super::types::Call;
use super::{Api, calls, pages, show};
use crate::telemetry;

/// The media type of OpenMetrics, in which metrics are written.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(in crate::api) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/api/v1", post(call))
        .route("/containers", get(containers))
        .route("/state", get(state))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/version", get(|| async { json(&show::version()) }))
        .route("/flags", get(flags))
        .route("/monitor/statistics", get(statistics))
        .route("/metrics", get(open_metrics))
        .route("/metrics/snapshot", get(snapshot))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .layer(middleware::from_fn_with_state(Arc::clone(&api), while_serving))
        .with_state(api)
}

/// The same answer to everything, for a peer that may not ask.
pub(in crate::api) fn refusal(error: &StrangerError) -> Router {
    let text = error.to_string();
    Router::new().fallback(move || async move { ApiError::new(StatusCode::FORBIDDEN, text) })
}

async fn while_serving(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if *api.stopping.borrow() { ApiError::stopping().into_response() } else { next.run(request).await }
}

async fn call(State(api): State<Arc<Api>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    check_content_type(&headers)?;
    check_accept(&headers)?;
    let body = read(&api, body).await?;
    calls::answer(&api, Call::from_json(&body)?).await
}

/// The body, if it is not too large and does not take too long.
async fn read(api: &Api, body: Body) -> Result<Vec<u8>, ApiError> {
    let limits = &api.config.api;
    let collected = tokio::time::timeout(limits.idle, Limited::new(body, limits.body).collect());
    match collected.await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request is larger than `api.max_body` allows, {} bytes", limits.body),
        )),
        Ok(Err(error)) => Err(ApiError::of(StatusCode::BAD_REQUEST, error.as_ref())),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request took longer than `api.idle_timeout` allows, {:?}", limits.idle),
        )),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::bad("the header `Content-Type` is missing; send `application/json`"));
    };
    match essence(value.to_str().unwrap_or_default()) {
        media if media.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("`Content-Type: {}` is not supported; send `application/json`", shown(value)),
        )),
    }
}

/// Whether JSON is among what the client takes. Weights do not matter: there is nothing to choose from.
fn check_accept(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    let takes_json = |value: &axum::http::HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.split(',').map(essence).any(|media| {
                ["*/*", "application/*", "application/json"]
                    .iter()
                    .any(|json| media.eq_ignore_ascii_case(json))
            })
        })
    };
    match accepted.peek() {
        None => Ok(()),
        Some(first) => {
            let first = shown(first);
            if accepted.any(takes_json) {
                return Ok(());
            }
            Err(ApiError::new(
                StatusCode::NOT_ACCEPTABLE,
                format!("`Accept: {first}` cannot be met; take `application/json`"),
            ))
        }
    }
}

/// A media type without its parameters.
fn essence(media: &str) -> &str {
    media.split(';').next().unwrap_or_default().trim()
}

fn shown(value: &axum::http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).escape_debug().to_string()
}

#[derive(Deserialize)]
struct ContainersQuery {
    container_id: Option<String>,
}

async fn containers(
    State(api): State<Arc<Api>>,
    Query(query): Query<ContainersQuery>,
) -> Result<Response, ApiError> {
    Ok(json(&pages::containers(&api, query.container_id.as_deref()).await?))
}

async fn state(State(api): State<Arc<Api>>) -> Response {
    json(&pages::state(&api))
}

async fn flags(State(api): State<Arc<Api>>) -> Response {
    json(&pages::flags(&api))
}

async fn statistics(State(api): State<Arc<Api>>) -> Response {
    json(&pages::statistics(&api).await)
}

async fn open_metrics(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], telemetry::encode(api.metrics())).into_response()
}

#[derive(Deserialize)]
struct SnapshotQuery {
    timeout: Option<String>,
}

async fn snapshot(
    State(api): State<Arc<Api>>,
    Query(query): Query<SnapshotQuery>,
) -> Result<Response, ApiError> {
    // All metrics are at hand, so a timeout never cuts anything off; but nonsense is still nonsense.
    if let Some(timeout) = query.timeout.filter(|timeout| units::duration(timeout).is_none()) {
        return Err(ApiError::bad(format!("`timeout` cannot be `{timeout}`; expected one such as `5secs`")));
    }
    Ok(json(&api.metrics().flatten()))
}

pub(super) fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => ApiError::of(StatusCode::INTERNAL_SERVER_ERROR, &error).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_json_is_read() {
        let status = |values: &[&'static str]| {
            check_content_type(&headers(header::CONTENT_TYPE, values))
                .map_err(|error| error.into_response().status().as_u16())
        };
        assert_eq!(status(&["application/json"]), Ok(()));
        assert_eq!(status(&["Application/JSON; charset=utf-8"]), Ok(()));
        assert_eq!(status(&[]), Err(400));
        for other in ["application/x-protobuf", "application/recordio", "text/plain", "application/jsonx", ""]
        {
            assert_eq!(status(&[other]), Err(415), "{other}");
        }
    }

    #[test]
    fn only_json_is_written() {
        let status = |values: &[&'static str]| {
            check_accept(&headers(header::ACCEPT, values))
                .map_err(|error| error.into_response().status().as_u16())
        };
        for fine in
            [&[][..], &["*/*"], &["application/*;q=0.5"], &["text/html, application/json"], &["a/b", "*/*"]]
        {
            assert_eq!(status(fine), Ok(()), "{fine:?}");
        }
        for not in [&["application/x-protobuf"][..], &["text/html, text/plain"], &[""]] {
            assert_eq!(status(not), Err(406), "{not:?}");
        }
    }
}
