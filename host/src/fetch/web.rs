//! Downloads over HTTP.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// How often a server may send elsewhere.
const REDIRECTS: u32 = 10;

/// A client of web servers.
pub(super) struct Web {
    agent: ureq::Agent,
    stall: Duration,
    trusts_nobody: bool,
}

/// Why a download did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebError {
    #[error("the server answers `{status}` where `200 OK` was expected")]
    Status { status: ureq::http::StatusCode },
    #[error("the server, or the way to it, was silent for {stall:?}")]
    Stalled { stall: Duration },
    #[error("this machine has no list of certificate authorities to trust; install `ca-certificates`")]
    TrustsNobody,
    #[error("it is not a valid URL")]
    Invalid,
    #[error("the server redirects from `https` to a URL that anybody on the way can read and change")]
    Downgrade,
    #[error("cannot download it")]
    Failed { source: ureq::Error },
}

impl Web {
    /// A client that trusts whom the machine trusts, and is patient for so long.
    pub(super) fn new(stall: Duration) -> Self {
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let trusts_nobody = roots.is_empty();
        let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .max_redirects(REDIRECTS)
            .http_status_as_error(false)
            .timeout_resolve(Some(stall))
            .timeout_connect(Some(stall))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .build();
        Self { agent: config.into(), stall, trusts_nobody }
    }

    /// Asks for a file and follows redirects, from `https` only to `https`. Returns its content, as it comes.
    pub(super) fn get(&self, url: &str) -> Result<impl Read + use<>, WebError> {
        let secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        if secure && self.trusts_nobody {
            return Err(WebError::TrustsNobody);
        }
        let response = self
            .agent
            .get(url)
            .config()
            .https_only(secure)
            .build()
            .call()
            .map_err(|error| self.understand(error))?;
        match response.status() {
            ureq::http::StatusCode::OK => Ok(response.into_body().into_reader()),
            status => Err(WebError::Status { status }),
        }
    }

    /// What it means that a content breaks off.
    pub(super) fn broke_off(&self, error: io::Error) -> WebError {
        self.understand(error.into())
    }

    fn understand(&self, error: ureq::Error) -> WebError {
        match error {
            ureq::Error::Timeout(_) | ureq::Error::BodyStalled => WebError::Stalled { stall: self.stall },
            // Both quote the URL, which may hold secrets.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => WebError::Invalid,
            ureq::Error::RequireHttpsOnly(_) => WebError::Downgrade,
            source => WebError::Failed { source },
        }
    }
}
