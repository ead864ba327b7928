//! Paths under which clients know the same endpoints.

use axum::http::uri::PathAndQuery;
use axum::http::{Request, Uri};

/// Names of the agent's process in paths, as they are and percent-encoded.
const AGENT: [&str; 3] = ["/slave(1)", "/slave%281%29", "/slave%281)"];

/// Gives a request the path under which its endpoint is routed.
///
/// Clients of Mesos know each path with the name of the agent's process in front of it, `/slave(1)`, and some of them with
/// `.json` or a slash at its end.
pub(super) fn canonical<B>(mut request: Request<B>) -> Request<B> {
    let path = request.uri().path();
    let canonical = canonical_path(path);
    if canonical != path
        && let Some(uri) = with_path(request.uri(), canonical)
    {
        *request.uri_mut() = uri;
    }
    request
}

fn canonical_path(path: &str) -> &str {
    let below_agent = AGENT.into_iter().find_map(|agent| path.strip_prefix(agent));
    let path = below_agent.filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
    let path = path.trim_end_matches('/');
    match path.strip_suffix(".json").unwrap_or(path) {
        "" => "/",
        "/api/v1/operator" => "/api/v1",
        path => path,
    }
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let path_and_query = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_several_paths() {
        for (path, expected) in [
            ("/api/v1", "/api/v1"),
            ("/api/v1/", "/api/v1"),
            ("/api/v1/operator", "/api/v1"),
            ("/slave(1)/api/v1", "/api/v1"),
            ("/slave(1)/api/v1/executor", "/api/v1/executor"),
            ("/slave%281%29/state", "/state"),
            ("/slave(1)/state.json", "/state"),
            ("/files/read.json?path=/a/&offset=1", "/files/read?path=/a/&offset=1"),
            ("/slave(1)", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/slave(1)x/state", "/slave(1)x/state"),
            ("/slave(2)/state", "/slave(2)/state"),
            ("http://localhost:5051/slave(1)/state?a=b", "http://localhost:5051/state?a=b"),
            ("*", "*"),
        ] {
            let request = Request::builder().uri(path).body(()).unwrap();
            assert_eq!(canonical(request).uri().to_string(), expected, "{path}");
        }
    }
}
