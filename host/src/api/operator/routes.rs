//! Routes, and the checks that all requests share.

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use cofferdam_core::model::view::KeepersView;
use cofferdam_plugin_model::units;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;

use super::accept::Accepted;
use super::error::ApiError;
use super::media::{request_encoding, response_media};
use super::redirect::{PATHS, redirect};
use super::types::{Call, Health, Keepers};
use super::{attach, browse, calls, encode, get as endpoints, reply};
use crate::api::context::ApiContext;
use crate::telemetry::{self, Format, Snapshot};

type Context = State<Arc<ApiContext>>;

/// Media type of the text format of Prometheus.
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Media type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(in crate::api) fn router(context: Arc<ApiContext>) -> Router {
    let redirects = PATHS.into_iter().fold(Router::new(), |router, path| router.route(path, any(redirect)));
    redirects
        .route("/api/v1", post(call))
        .route("/containers", get(containers))
        .route("/state", get(state))
        .route("/health", get(health))
        .route("/version", get(|| async { reply::json(&encode::version()) }))
        .route("/flags", get(flags))
        .route("/monitor/statistics", get(statistics))
        .route("/containerizer/debug", get(pending))
        .route("/logging/toggle", get(logging).post(logging))
        .route("/files/browse", get(browse::browse))
        .route("/files/read", get(browse::read))
        .route("/files/download", get(browse::download))
        .route("/files/debug", get(browse::debug))
        .route("/metrics", get(metrics))
        .route("/metrics/snapshot", get(metrics_snapshot))
        .fallback(|| async { ApiError::message(StatusCode::NOT_FOUND, "there is no such endpoint") })
        .layer(middleware::from_fn_with_state(Arc::clone(&context), reject_while_stopping))
        .with_state(context)
}

/// Answers every request with 403, for a peer without permission.
pub(in crate::api) fn forbidden(error: &(dyn Error + 'static)) -> Router {
    let text = error.to_string();
    Router::new().fallback(move || async move { ApiError::message(StatusCode::FORBIDDEN, text) })
}

pub(in crate::api) async fn reject_while_stopping(
    State(context): Context,
    request: Request,
    next: Next,
) -> Response {
    if context.is_stopping() { ApiError::stopping().into_response() } else { next.run(request).await }
}

async fn call(State(context): Context, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    if attach::is_stream(&headers) {
        return attach::input(&context, &headers, body).await;
    }
    let codec = Call::codec(request_encoding(&headers)?);
    let media = response_media(&headers)?;
    let body = read_body(&context, body).await?;
    let call = Call::read(codec, &body)?;
    if !call.is_lasting() {
        return calls::dispatch(&context, media, call).await;
    }
    let lasting = context.begin_lasting().ok_or_else(too_many_lasting)?;
    let response = calls::dispatch(&context, media, call).await?;
    Ok(response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _until_complete = &lasting;
            error
        }))
    }))
}

/// There are too many requests that last.
fn too_many_lasting() -> ApiError {
    let text = "too many requests wait for containers, or have streams; try again later";
    ApiError::message(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// Reads the body within the configured size and time.
pub(in crate::api) async fn read_body(context: &ApiContext, body: Body) -> Result<Vec<u8>, ApiError> {
    read_body_within(context, body, context.config.api.max_body).await
}

/// Reads the body within a size and the configured time.
pub(in crate::api) async fn read_body_within(
    context: &ApiContext,
    body: Body,
    max: usize,
) -> Result<Vec<u8>, ApiError> {
    let limits = &context.config.api;
    // Its head says so.
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(limits.max_body));
    }
    let body = Limited::new(body, max).collect();
    match tokio::time::timeout(limits.idle_timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limits.max_body)),
        Ok(Err(error)) => Err(ApiError::new(StatusCode::BAD_REQUEST, error.as_ref())),
        Err(_) => Err(ApiError::message(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request did not arrive within `api.idle_timeout`, {:?}", limits.idle_timeout),
        )),
    }
}

/// A request that is too long.
pub(in crate::api) fn too_large(max_body: usize) -> ApiError {
    let text = format!("the request exceeds `api.max_body`, {max_body} bytes");
    ApiError::message(StatusCode::PAYLOAD_TOO_LARGE, text)
}

#[derive(Deserialize)]
struct ContainersQuery {
    container_id: Option<String>,
}

async fn containers(
    State(context): Context,
    Query(query): Query<ContainersQuery>,
) -> Result<Response, ApiError> {
    Ok(reply::json(&endpoints::containers(&context, query.container_id.as_deref()).await?))
}

/// Without a keeper the agent is healthy too: the next launch starts one.
async fn health(State(context): Context) -> Response {
    let KeepersView { pid, older, lost } = context.agent.keepers();
    reply::json(&Health {
        healthy: true,
        keepers: Some(Keepers { pid, older, lost }),
        socket: context.socket_problem(),
    })
}

async fn state(State(context): Context) -> Response {
    reply::json(&endpoints::state(&context))
}

async fn flags(State(context): Context) -> Response {
    reply::json(&endpoints::flags(&context))
}

async fn statistics(State(context): Context) -> Response {
    reply::json(&endpoints::statistics(&context).await)
}

async fn pending(State(context): Context) -> Response {
    reply::json(&endpoints::pending(&context))
}

/// In the format that the client prefers; in the older text format for one that does not say.
async fn metrics(State(context): Context, headers: HeaderMap) -> Response {
    let snapshot = Snapshot::take_with_usage(&context.agent, context.running_since).await;
    let (format, content_type) = match accepts_open_metrics(&headers) {
        true => (Format::OpenMetrics, OPEN_METRICS),
        false => (Format::Text, METRICS_TEXT),
    };
    ([(header::CONTENT_TYPE, content_type)], telemetry::encode(snapshot, format)).into_response()
}

/// Whether a client names the OpenMetrics format, and does not prefer the older one.
fn accepts_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = Accepted::of(headers);
    let named = accepted.named("application/openmetrics-text", Some("1.0.0"));
    named.is_some_and(|weight| weight > 0.0 && weight >= accepted.weight("text/plain", Some("0.0.4")))
}

#[derive(Deserialize)]
struct LoggingQuery {
    level: Option<String>,
    duration: Option<String>,
}

/// Sets how much is logged, for some time; without a query, says how much it is.
async fn logging(State(context): Context, Query(query): Query<LoggingQuery>) -> Result<Response, ApiError> {
    let (level, duration) = match (query.level, query.duration) {
        (None, None) => return Ok(format!("{}\n", context.verbosity.level()).into_response()),
        (Some(level), Some(duration)) => (level, duration),
        _ => {
            return Err(ApiError::bad_request(
                "`level=…` and `duration=…` must both be in the query, or neither",
            ));
        }
    };
    let invalid = |name: &str, value: &str, expected: &str| {
        ApiError::bad_request(format!("`{name}={}` is invalid; expected {expected}", value.escape_debug()))
    };
    let number = level.parse().map_err(|_| invalid("level", &level, "a number that is not negative"))?;
    let time = units::duration(&duration)
        .ok_or_else(|| invalid("duration", &duration, "a duration such as `5mins`"))?;
    context.verbosity.set(number, time)?;
    Ok(reply::empty())
}

#[derive(Deserialize)]
struct SnapshotQuery {
    timeout: Option<String>,
}

async fn metrics_snapshot(
    State(context): Context,
    Query(query): Query<SnapshotQuery>,
) -> Result<Response, ApiError> {
    // No metric is slow to collect, so the timeout is only validated.
    if let Some(timeout) = query.timeout.filter(|timeout| units::duration(timeout).is_none()) {
        return Err(ApiError::bad_request(format!(
            "`timeout={timeout}` is invalid; expected a duration such as `5secs`"
        )));
    }
    Ok(reply::json(&context.metrics().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn metrics_have_the_format_that_the_client_prefers() {
        let accepts = |values: &[&'static str]| accepts_open_metrics(&headers(header::ACCEPT, values));
        assert!(accepts(&[
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
        ]));
        for other in [
            &[][..],
            &["*/*"],
            &["text/plain;version=0.0.4", "text/html"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;version=2.0.0"],
            &["application/openmetrics-text;q=0.2, text/plain;q=0.7"],
        ] {
            assert!(!accepts(other), "{other:?}");
        }
    }
}
