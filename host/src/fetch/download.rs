//! Downloads by HTTP.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::uri::{Authority, Uri};
use ureq::http::{StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::item::redact;
use super::redirect::{self, Reach};
use cofferdam_core::config::FetchLimits;

/// An HTTP client.
pub(super) struct Client {
    config: Config,
    stall: Duration,
    max_redirects: u64,
    max_size: u64,
    hosts: Vec<String>,
    has_roots: bool,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("the server responds with `{status}`, expected `200 OK`")]
    Status { status: StatusCode },
    #[error("no data from the server for {stall:?}")]
    Stalled { stall: Duration },
    #[error("this machine has no certificate authorities; install `ca-certificates`")]
    NoRoots,
    #[error("it is not a valid URL")]
    InvalidUrl,
    #[error("the host `{host}` is not among `hosts` of `[fetch]`")]
    NotListed { host: String },
    #[error(
        "the server sends {size} bytes; `max_size` of `[fetch]` is {limit} bytes for all files of a container"
    )]
    TooLarge { size: u64, limit: u64 },
    #[error("too many redirects: `max_redirects` of `[fetch]` is {limit}")]
    TooManyRedirects { limit: u64 },
    #[error("the server redirects with a `Location` that is missing or not a valid URL")]
    InvalidLocation,
    #[error("the server redirects to `{to}`, which is neither `http` nor `https`")]
    RedirectScheme { to: String },
    #[error("the server redirects from `https` to the insecure URL `{to}`")]
    InsecureRedirect { to: String },
    #[error(
        "the server redirects to `{to}`, which is at an address of {reach}, although it is itself in {from}; if that \
         is intended, add the host to `hosts` of `[fetch]`"
    )]
    CloserRedirect { to: String, reach: Reach, from: Reach },
    #[error("the server redirects to `{to}`")]
    Redirected { to: String, source: Box<DownloadError> },
    #[error("cannot download it")]
    Failed { source: ureq::Error },
}

impl Client {
    /// A client that trusts the certificate authorities of this machine.
    pub(super) fn new(limits: &FetchLimits) -> Self {
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let has_roots = !roots.is_empty();
        let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
        let stall = Some(limits.stall);
        let config = Config::builder()
            .tls_config(tls)
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            // They are followed here.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_resolve(stall)
            .timeout_connect(stall)
            .timeout_per_read(stall)
            .timeout_per_write(stall)
            .build();
        Self {
            config,
            stall: limits.stall,
            max_redirects: limits.redirects,
            max_size: limits.bytes,
            hosts: limits.hosts.clone(),
            has_roots,
        }
    }

    /// Requests a URL and returns the body. Follows redirects; each target is checked before it is requested.
    pub(super) fn get(&self, url: &str) -> Result<impl Read + use<>, DownloadError> {
        let mut url = url.to_owned();
        let mut from = None;
        for _ in 0..=self.max_redirects {
            let hop = self.request(&url, from).map_err(|error| match from {
                Some(_) if !error.names_target() => {
                    DownloadError::Redirected { to: redact(&url), source: error.into() }
                }
                _ => error,
            })?;
            match hop {
                Hop::Body(body) => return Ok(body.into_reader()),
                Hop::Redirect { location, reach } => {
                    let target = redirect::resolve(&url, &location).ok_or(DownloadError::InvalidLocation)?;
                    from = Some(From { reach, secure: is_secure(&url) });
                    url = target;
                }
            }
        }
        Err(DownloadError::TooManyRedirects { limit: self.max_redirects })
    }

    /// Sends one request. `from` is the server that redirects to this one.
    fn request(&self, url: &str, from: Option<From>) -> Result<Hop, DownloadError> {
        let to = || redact(url);
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(DownloadError::RedirectScheme { to: to() });
        }
        if from.is_some_and(|from| from.secure) && !is_secure(url) {
            return Err(DownloadError::InsecureRedirect { to: to() });
        }
        if is_secure(url) && !self.has_roots {
            return Err(DownloadError::NoRoots);
        }
        let uri: Uri = url.parse().map_err(|_| DownloadError::InvalidUrl)?;
        let authority = uri.authority().ok_or(DownloadError::InvalidUrl)?.clone();
        let is_listed = redirect::is_listed(authority.host(), &self.hosts);
        if !is_listed && !self.hosts.is_empty() {
            return Err(DownloadError::NotListed { host: authority.host().to_owned() });
        }
        let nearest = from.filter(|_| !is_listed).map(|from| from.reach);
        let checked = Checked { authority, nearest, found: Arc::default() };
        let found = Arc::clone(&checked.found);
        let literal = Reach::of_literal(checked.authority.host());
        if let Some((reach, from)) = checked.refused(literal) {
            return Err(DownloadError::CloserRedirect { to: to(), reach, from });
        }
        // Every target has its own resolver, so nothing of a connection is shared.
        let agent = ureq::Agent::with_parts(self.config.clone(), DefaultConnector::new(), checked);
        let response = agent.get(uri).call();
        let found = found.lock().unwrap_or_else(PoisonError::into_inner);
        let response = response.map_err(|error| match &found.refused {
            Some((reach, from)) => DownloadError::CloserRedirect { to: to(), reach: *reach, from: *from },
            None => self.error(error),
        })?;
        // A proxy resolves names; those that it is asked for are those of any network.
        let reach = found.reach.or(literal).unwrap_or(Reach::Public);
        match response.status() {
            StatusCode::OK => match response.body().content_length() {
                Some(size) if size > self.max_size => {
                    Err(DownloadError::TooLarge { size, limit: self.max_size })
                }
                _ => Ok(Hop::Body(response.into_body())),
            },
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => {
                let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                let location = location.ok_or(DownloadError::InvalidLocation)?.to_owned();
                Ok(Hop::Redirect { location, reach })
            }
            status => Err(DownloadError::Status { status }),
        }
    }

    /// The error for a failed read of a body.
    pub(super) fn body_error(&self, error: io::Error) -> DownloadError {
        self.error(error.into())
    }

    fn error(&self, error: ureq::Error) -> DownloadError {
        match error {
            ureq::Error::Timeout(_) | ureq::Error::BodyStalled => {
                DownloadError::Stalled { stall: self.stall }
            }
            // Both contain the URL, which may contain secrets.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => DownloadError::InvalidUrl,
            source => DownloadError::Failed { source },
        }
    }
}

impl DownloadError {
    /// Whether the text of the error says where a redirect leads.
    fn names_target(&self) -> bool {
        matches!(
            self,
            Self::RedirectScheme { .. } | Self::InsecureRedirect { .. } | Self::CloserRedirect { .. }
        )
    }
}

/// What a server responds with.
enum Hop {
    Body(ureq::Body),
    Redirect { location: String, reach: Reach },
}

/// A server that redirects.
#[derive(Clone, Copy)]
struct From {
    reach: Reach,
    secure: bool,
}

fn is_secure(url: &str) -> bool {
    url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// Resolves the host of one URL, and refuses it if an address is closer than allowed. What is connected to are the
/// addresses that were checked.
#[derive(Debug)]
struct Checked {
    authority: Authority,
    nearest: Option<Reach>,
    found: Arc<Mutex<Found>>,
}

/// What a host was resolved to.
#[derive(Debug, Default)]
struct Found {
    /// Of the closest address.
    reach: Option<Reach>,
    refused: Option<(Reach, Reach)>,
}

impl Checked {
    /// The address that is too close, and what it is redirected from.
    fn refused(&self, reach: Option<Reach>) -> Option<(Reach, Reach)> {
        reach.zip(self.nearest).filter(|(reach, nearest)| reach < nearest)
    }
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = DefaultResolver::default().resolve(uri, config, timeout)?;
        // Otherwise it is that of a proxy.
        if uri.authority() == Some(&self.authority) {
            let reach = addresses.iter().map(|address| Reach::of(address.ip())).min();
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.reach = reach;
            found.refused = self.refused(reach);
            if found.refused.is_some() {
                return Err(ureq::Error::HostNotFound);
            }
        }
        Ok(addresses)
    }
}
