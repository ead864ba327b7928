//! Requests, with redirects that are checked.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::uri::{Authority, Uri};
use ureq::http::{HeaderName, HeaderValue, Request, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;

use super::pace::{Paced, TooSlow};
use super::redact;
use super::redirect::{self, Reach};
use super::resolve::{Checked, Resolved, refused};

/// What requests may do.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// Timeout of name resolution, of connecting, of each read and write, and of all headers of a response.
    pub(crate) stall: Duration,
    /// Bytes of a body that have to arrive in this time, unless it ends.
    pub(crate) min_bytes: u64,
    /// How many redirects of a server are followed.
    pub(crate) redirects: u64,
    /// Hosts that redirects may lead to, whatever their addresses: names, `*.name`, addresses.
    pub(crate) hosts: Vec<String>,
    /// Whether no other host is requested.
    pub(crate) only_hosts: bool,
    /// The setting of these hosts, for messages.
    pub(crate) hosts_setting: &'static str,
}

/// An HTTP client, which uses its connections again.
pub(crate) struct Client {
    plain: Config,
    /// With the certificate authorities of this machine, which are only read if they are needed: that takes longer than a request
    /// to a server nearby. `None` if there are none.
    secure: OnceLock<Option<Config>>,
    rules: Rules,
    servers: Mutex<HashMap<ServerKey, Server>>,
}

/// Connections to a server that are kept while nobody uses them.
const MAX_IDLE: usize = 8;

/// What has connections of its own: a server, and how close its addresses may be.
type ServerKey = (bool, Authority, Option<Reach>);

/// A server that was requested.
#[derive(Clone)]
struct Server {
    agent: Agent,
    resolved: Resolved,
}

/// Servers whose connections are kept. A server that redirects to others could make this grow forever.
const MAX_SERVERS: usize = 64;

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("no data from the server for {stall:?}")]
    Stalled { stall: Duration },
    #[error(transparent)]
    TooSlow(TooSlow),
    #[error("this machine has no certificate authorities; install `ca-certificates`")]
    NoRoots,
    #[error("it is not a valid URL")]
    InvalidUrl,
    #[error("the host `{host}` is not among {setting}")]
    NotListed { host: String, setting: &'static str },
    #[error("too many redirects: the maximum is {limit}")]
    TooManyRedirects { limit: u64 },
    #[error("the server redirects with a `Location` that is missing or not a valid URL")]
    InvalidLocation,
    #[error("the server redirects to `{to}`, which is neither `http` nor `https`")]
    RedirectScheme { to: String },
    #[error("the server redirects from `https` to the insecure URL `{to}`")]
    InsecureRedirect { to: String },
    #[error(
        "the server redirects to `{to}`, which is at an address of {reach}, although it is itself in {from}; if that \
         is intended, add the host to {setting}"
    )]
    CloserRedirect { to: String, reach: Reach, from: Reach, setting: &'static str },
    #[error("the server redirects to `{to}`")]
    Redirected { to: String, source: Box<HttpError> },
    #[error("cannot download it")]
    Failed { source: ureq::Error },
}

/// A method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method<'a> {
    Get,
    Head,
    /// With the fields of a form.
    PostForm(&'a str),
}

/// Headers of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Headers {
    /// Sent to whomever a server redirects to.
    pub(crate) plain: Vec<(HeaderName, HeaderValue)>,
    /// Sent to the server that is asked first, and to no other.
    pub(crate) authorization: Option<HeaderValue>,
}

/// A response that is no redirect.
pub(crate) struct Answer {
    pub(crate) response: ureq::http::Response<ureq::Body>,
    /// The server that it comes from.
    pub(crate) origin: Origin,
    /// Its URL for messages, if it is not the one that was asked first.
    pub(crate) redirected_to: Option<String>,
    min_bytes: u64,
    stall: Duration,
}

/// A server that responds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    reach: Reach,
    secure: bool,
}

impl Client {
    /// A client that trusts the certificate authorities of this machine.
    pub(crate) fn new(rules: Rules) -> Self {
        let plain = config(&rules, TlsConfig::default());
        Self { plain, secure: OnceLock::new(), rules, servers: Mutex::default() }
    }

    /// The configuration for a server.
    fn config(&self, is_secure: bool) -> Result<&Config, HttpError> {
        // A proxy may be reached by TLS.
        if !is_secure && self.plain.proxy().is_none() {
            return Ok(&self.plain);
        }
        let secure = self.secure.get_or_init(|| {
            let roots = rustls_native_certs::load_native_certs().certs;
            let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
            let has_roots = !roots.is_empty();
            let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
            has_roots.then(|| config(&self.rules, tls))
        });
        match secure {
            Some(secure) => Ok(secure),
            None if is_secure => Err(HttpError::NoRoots),
            None => Ok(&self.plain),
        }
    }

    /// Sends a request and follows redirects; each target is checked before it is requested.
    pub(crate) fn get(&self, method: Method<'_>, url: &str, headers: &Headers) -> Result<Answer, HttpError> {
        let mut url = url.to_owned();
        let mut headers = headers.clone();
        let mut from = None;
        for _ in 0..=self.rules.redirects {
            let mut answer = self.send(method, &url, &headers, from).map_err(|error| match from {
                Some(_) if !error.names_target() => {
                    HttpError::Redirected { to: redact(&url), source: error.into() }
                }
                _ => error,
            })?;
            let is_redirect = matches!(
                answer.response.status(),
                StatusCode::MOVED_PERMANENTLY
                    | StatusCode::FOUND
                    | StatusCode::SEE_OTHER
                    | StatusCode::TEMPORARY_REDIRECT
                    | StatusCode::PERMANENT_REDIRECT
            );
            if !is_redirect {
                answer.redirected_to = from.map(|_| redact(&url));
                return Ok(answer);
            }
            let location = answer.response.headers().get(header::LOCATION);
            let location =
                location.and_then(|value| value.to_str().ok()).ok_or(HttpError::InvalidLocation)?;
            let target = redirect::resolve(&url, location).ok_or(HttpError::InvalidLocation)?;
            if !is_same_server(&url, &target) {
                headers.authorization = None;
            }
            from = Some(answer.origin);
            url = target;
        }
        Err(HttpError::TooManyRedirects { limit: self.rules.redirects })
    }

    /// Sends one request. `from` is the server that has named the URL, which is checked then.
    pub(crate) fn send(
        &self,
        method: Method<'_>,
        url: &str,
        headers: &Headers,
        from: Option<Origin>,
    ) -> Result<Answer, HttpError> {
        let setting = self.rules.hosts_setting;
        let to = || redact(url);
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(HttpError::RedirectScheme { to: to() });
        }
        if from.is_some_and(|from| from.secure) && !is_secure(url) {
            return Err(HttpError::InsecureRedirect { to: to() });
        }
        let config = self.config(is_secure(url))?;
        let uri: Uri = url.parse().map_err(|_| HttpError::InvalidUrl)?;
        let authority = uri.authority().ok_or(HttpError::InvalidUrl)?.clone();
        let is_listed = redirect::is_listed(authority.host(), &self.rules.hosts);
        if !is_listed && self.rules.only_hosts {
            return Err(HttpError::NotListed { host: authority.host().to_owned(), setting });
        }
        let nearest = from.filter(|_| !is_listed).map(|from| from.reach);
        let closer = |(reach, from)| HttpError::CloserRedirect { to: to(), reach, from, setting };
        let literal = Reach::of_literal(authority.host());
        if let Some(refused) = refused(literal, nearest) {
            return Err(closer(refused));
        }
        let Server { agent, resolved } = self.server(config, is_secure(url), authority, nearest);
        let (name, body) = match method {
            Method::Get => ("GET", None),
            Method::Head => ("HEAD", None),
            Method::PostForm(fields) => ("POST", Some(fields)),
        };
        let mut request = Request::builder().method(name).uri(uri);
        for (name, value) in &headers.plain {
            request = request.header(name, value);
        }
        if let Some(value) = &headers.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let invalid = |_| HttpError::InvalidUrl;
        let response = match body {
            None => agent.run(request.body(()).map_err(invalid)?),
            Some(fields) => {
                let form = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                agent.run(form.body(fields).map_err(invalid)?)
            }
        };
        let found = resolved.get();
        let response = response.map_err(|error| match found.refused {
            Some(refused) => closer(refused),
            None => self.error(error),
        })?;
        // A proxy resolves names; those that it is asked for are those of any network.
        let reach = found.reach.or(literal).unwrap_or(Reach::Public);
        let origin = Origin { reach, secure: is_secure(url) };
        let Rules { min_bytes, stall, .. } = self.rules;
        Ok(Answer { response, origin, redirected_to: None, min_bytes, stall })
    }

    /// The connections to a server, with a resolver of their own.
    fn server(
        &self,
        config: &Config,
        is_secure: bool,
        authority: Authority,
        nearest: Option<Reach>,
    ) -> Server {
        let mut servers = self.servers.lock();
        let key = (is_secure, authority, nearest);
        if let Some(server) = servers.get(&key) {
            return server.clone();
        }
        if servers.len() == MAX_SERVERS {
            servers.clear();
        }
        let checked = Checked::new(key.1.clone(), nearest);
        let resolved = checked.result();
        let agent = Agent::with_parts(config.clone(), DefaultConnector::new(), checked);
        servers.entry(key).or_insert(Server { agent, resolved }).clone()
    }

    /// The error for a failed read of a body.
    pub(crate) fn body_error(&self, error: io::Error) -> HttpError {
        match error.downcast() {
            Ok(slow) => HttpError::TooSlow(slow),
            Err(error) => self.error(error.into()),
        }
    }

    fn error(&self, error: ureq::Error) -> HttpError {
        match error {
            ureq::Error::Timeout(_) | ureq::Error::BodyStalled => {
                HttpError::Stalled { stall: self.rules.stall }
            }
            // Both contain the URL, which may contain secrets.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => HttpError::InvalidUrl,
            source => HttpError::Failed { source },
        }
    }
}

fn config(rules: &Rules, tls: TlsConfig) -> Config {
    let stall = Some(rules.stall);
    Config::builder()
        .tls_config(tls)
        .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
        // They are followed by the client.
        .max_redirects(0)
        .http_status_as_error(false)
        .max_idle_connections_per_host(MAX_IDLE)
        .timeout_resolve(stall)
        .timeout_connect(stall)
        .timeout_recv_response(stall)
        .timeout_per_read(stall)
        .timeout_per_write(stall)
        .build()
}

impl Answer {
    /// A header, if it is text.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Reads what is left of a body that nobody needs, up to a limit, so that its connection can be used again.
    pub(crate) fn discard(self, limit: u64) {
        // If that fails, there will be another connection.
        drop(io::copy(&mut self.into_reader().take(limit), &mut io::sink()));
    }

    /// The body. Reading fails if it arrives too slowly.
    pub(crate) fn into_reader(self) -> impl Read + Send + use<> {
        Paced::new(self.response.into_body().into_reader(), self.min_bytes, self.stall)
    }
}

impl HttpError {
    /// Whether the text of the error says where a redirect leads.
    fn names_target(&self) -> bool {
        matches!(
            self,
            Self::RedirectScheme { .. } | Self::InsecureRedirect { .. } | Self::CloserRedirect { .. }
        )
    }
}

fn is_secure(url: &str) -> bool {
    url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// Whether two URLs are of the same scheme, host and port.
fn is_same_server(one: &str, other: &str) -> bool {
    let server = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let port = uri.port_u16().or_else(|| Some(if is_secure(url) { 443 } else { 80 }));
        Some((is_secure(url), uri.host()?.to_ascii_lowercase(), port))
    };
    server(one).is_some_and(|server_of_one| Some(server_of_one) == server(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_apart_by_scheme_host_and_port() {
        for (one, other) in [
            ("https://a/x", "https://A:443/y?z"),
            ("http://a", "http://a:80/"),
            ("https://[::1]:5/x", "HTTPS://[::1]:5/"),
        ] {
            assert!(is_same_server(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("https://a/x", "http://a:443/x"),
            ("https://a", "https://b"),
            ("https://a", "https://a:444"),
            ("https://a", "https://a.b"),
            ("https://a", "https://a@b"),
        ] {
            assert!(!is_same_server(one, other), "{one} {other}");
        }
    }
}
