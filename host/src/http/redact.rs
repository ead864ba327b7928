//! URLs for messages.

use cofferdam_core::fetcher::escape_control;

/// A URI without the user and query of a URL, which may contain secrets.
pub(crate) fn redact(uri: &str) -> String {
    let uri = uri.trim_start();
    let Some((scheme, rest)) = uri.split_once("://").filter(|_| !uri.starts_with('/')) else {
        return escape_control(uri);
    };
    let (rest, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?…"),
        None => (rest, ""),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    escape_control(&format!("{scheme}://{host}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redacted_uris_contain_no_secrets() {
        assert_eq!(redact("https://user:pass@host/a?token=b"), "https://host/a?…");
        assert_eq!(redact("http://host/a@b"), "http://host/a@b");
        assert_eq!(redact("/a/b?c@d\n"), "/a/b?c@d\\n");
    }
}
