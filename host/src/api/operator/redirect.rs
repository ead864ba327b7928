//! `/redirect`, at which clients of Mesos ask for the leading master before they call anything. This agent has no master and takes
//! the calls itself, so it sends them to itself.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Paths of the endpoint, with and without the name of the master's process, and with what follows to be requested.
pub(super) const PATHS: [&str; 4] =
    ["/redirect", "/redirect/{*path}", "/master/redirect", "/master/redirect/{*path}"];

/// Redirects to the same path without the name of the endpoint, with the same method and body.
pub(super) async fn redirect(uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let location = location(&uri, &headers).ok_or_else(|| {
        ApiError::bad_request("the header `Host` must be the address to which the client is to be redirected")
    })?;
    Ok((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response())
}

/// As in Mesos, without a scheme: it stays the same.
fn location(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host: Authority = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    if host.as_str().contains('@') {
        return None;
    }
    let path = uri.path();
    let path = path.strip_prefix("/master").unwrap_or(path).strip_prefix("/redirect")?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("//{host}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_requested_of_the_same_address() {
        let of = |uri: &'static str, host: &'static str| {
            let headers = HeaderMap::from_iter([(header::HOST, header::HeaderValue::from_static(host))]);
            location(&Uri::from_static(uri), &headers)
        };
        for (uri, expected) in [
            ("/redirect", "//localhost:5051"),
            ("/master/redirect", "//localhost:5051"),
            ("/redirect/api/v1", "//localhost:5051/api/v1"),
            ("/master/redirect/files/read?path=/a&offset=1", "//localhost:5051/files/read?path=/a&offset=1"),
            ("/redirect//other.example/x", "//localhost:5051//other.example/x"),
        ] {
            assert_eq!(of(uri, "localhost:5051").as_deref(), Some(expected), "{uri}");
        }
        for host in ["", "user@localhost", "a b", "localhost/x"] {
            assert_eq!(of("/redirect", host), None, "{host}");
        }
        assert_eq!(location(&Uri::from_static("/redirect"), &HeaderMap::new()), None);
    }
}
