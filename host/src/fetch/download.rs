//! Downloads by HTTP.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

const MAX_REDIRECTS: u32 = 10;

/// An HTTP client.
pub(super) struct Client {
    agent: ureq::Agent,
    stall: Duration,
    has_roots: bool,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("the server responds with `{status}`, expected `200 OK`")]
    Status { status: ureq::http::StatusCode },
    #[error("no data from the server for {stall:?}")]
    Stalled { stall: Duration },
    #[error("this machine has no certificate authorities; install `ca-certificates`")]
    NoRoots,
    #[error("it is not a valid URL")]
    InvalidUrl,
    #[error("the server redirects from `https` to an insecure URL")]
    InsecureRedirect,
    #[error("cannot download it")]
    Failed { source: ureq::Error },
}

impl Client {
    /// A client that trusts the certificate authorities of this machine. `stall` is the timeout of each step.
    pub(super) fn new(stall: Duration) -> Self {
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let has_roots = !roots.is_empty();
        let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .max_redirects(MAX_REDIRECTS)
            .http_status_as_error(false)
            .timeout_resolve(Some(stall))
            .timeout_connect(Some(stall))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .build();
        Self { agent: config.into(), stall, has_roots }
    }

    /// Requests a URL and returns the body. Follows redirects, but not from `https` to `http`.
    pub(super) fn get(&self, url: &str) -> Result<impl Read + use<>, DownloadError> {
        let secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        if secure && !self.has_roots {
            return Err(DownloadError::NoRoots);
        }
        let request = self.agent.get(url).config().https_only(secure).build();
        let response = request.call().map_err(|error| self.error(error))?;
        match response.status() {
            ureq::http::StatusCode::OK => Ok(response.into_body().into_reader()),
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
            ureq::Error::RequireHttpsOnly(_) => DownloadError::InsecureRedirect,
            source => DownloadError::Failed { source },
        }
    }
}
