//! Downloads by HTTP.

use std::io::{self, Read};

use ureq::http::StatusCode;

use crate::http::{self, Headers, HttpError, Method, Rules};
use cofferdam_core::config::FetchLimits;

/// An HTTP client.
pub(super) struct Client {
    client: http::Client,
    max_size: u64,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("the server responds with `{status}`, expected `200 OK`")]
    Status { status: StatusCode },
    #[error(
        "the server sends {size} bytes; `max_size` of `[fetch]` is {limit} bytes for all files of a container"
    )]
    TooLarge { size: u64, limit: u64 },
    #[error("the server redirects to `{to}`")]
    Redirected { to: String, source: Box<DownloadError> },
    #[error("too many redirects: `max_redirects` of `[fetch]` is {limit}")]
    TooManyRedirects { limit: u64 },
    #[error(transparent)]
    Http(HttpError),
}

impl From<HttpError> for DownloadError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::TooManyRedirects { limit } => Self::TooManyRedirects { limit },
            error => Self::Http(error),
        }
    }
}

impl Client {
    /// A client that trusts the certificate authorities of this machine.
    pub(super) fn new(limits: &FetchLimits) -> Self {
        let rules = Rules {
            stall: limits.stall,
            // A launch can be cancelled.
            min_bytes: 0,
            redirects: limits.redirects,
            hosts: limits.hosts.clone(),
            only_hosts: !limits.hosts.is_empty(),
            hosts_setting: "`hosts` of `[fetch]`",
        };
        Self { client: http::Client::new(rules), max_size: limits.bytes }
    }

    /// Requests a URL and returns the body. Follows redirects; each target is checked before it is requested.
    pub(super) fn get(&self, url: &str) -> Result<impl Read + use<>, DownloadError> {
        let answer = self.client.get(Method::Get, url, &Headers::default())?;
        let size = answer.response.body().content_length().unwrap_or(0);
        let error = match answer.response.status() {
            StatusCode::OK if size > self.max_size => DownloadError::TooLarge { size, limit: self.max_size },
            StatusCode::OK => return Ok(answer.into_reader()),
            status => DownloadError::Status { status },
        };
        Err(match answer.redirected_to {
            Some(to) => DownloadError::Redirected { to, source: error.into() },
            None => error,
        })
    }

    /// The error for a failed read of a body.
    pub(super) fn body_error(&self, error: io::Error) -> DownloadError {
        self.client.body_error(error).into()
    }
}
