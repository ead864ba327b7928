//! Errors of pulls. None contains credentials, or a URL with a query.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_core::credentials::InvalidCredentials;
use ureq::http::StatusCode;

use crate::http::HttpError;
use crate::image::error::ImageError;

pub(super) type Result<T> = std::result::Result<T, PullError>;

/// Where credentials are from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Request,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "`{}`", path.display()),
            Self::Request => f.write_str("what the request has as credentials"),
        }
    }
}

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error("cannot pull `{name}` from `{host}`")]
    From { name: String, host: String, source: Box<PullError> },
    #[error("cannot request {what}")]
    Request { what: String, source: HttpError },
    #[error(
        "cannot agree on TLS with `{host}`; if it has none, add it to `insecure` of `[registry]`, or use `--insecure`; if its \
         certificate is of an authority of your own, install that on this machine, or name its file in SSL_CERT_FILE"
    )]
    Tls { host: String, source: HttpError },
    #[error("cannot request {what}: the server responds with `{status}`{message}")]
    Status { what: String, status: StatusCode, message: String, wait: Option<Duration> },
    #[error("the registry has no {what}{message}")]
    NotFound { what: String, message: String },
    #[error(
        "the registry refuses {what} without credentials{message}; log in with `docker login`, or name a file with credentials \
         (`cofferdam image pull --help`)"
    )]
    NoCredentials { what: String, message: String },
    #[error("the registry refuses {what} with the credentials for it{message}")]
    Refused { what: String, message: String },
    #[error(
        "the registry requires authentication, but in no way that is known; expected `Basic` or `Bearer`"
    )]
    Challenge,
    #[error("the authorization server `{url}` of the registry sends no token")]
    NoToken { url: String },
    #[error("{what} has more than {limit} bytes")]
    TooLong { what: String, limit: u64 },
    #[error("{what} is not complete: the server sends {received} of {size} bytes")]
    Short { what: String, received: u64, size: u64 },
    #[error("the connection was interrupted while {what} was downloaded")]
    Interrupted { what: String, source: HttpError },
    #[error("the server sends {what} from another position than requested")]
    Range { what: String },
    #[error(
        "a document of the registry is both an index and a manifest, so it could be either; ask its author to push it again"
    )]
    Ambiguous,
    #[error(
        "the image is in the old format of manifests, schema 1; push it again with a program that is not older than 2016"
    )]
    Schema1,
    #[error("cannot read the credentials in `{}`", path.display())]
    ReadCredentials { path: PathBuf, source: io::Error },
    #[error("{from} is not a file of credentials as written by `docker login`")]
    Credentials { from: Source, source: InvalidCredentials },
    #[error(
        "the credentials of the request name a helper, which is not run; give user name and password, or a token"
    )]
    HelperOfRequest,
    #[error("the credential helper `{program}` {reason}")]
    Helper { program: String, reason: String },
    #[error("cannot run the credential helper `{program}`")]
    RunHelper { program: String, source: io::Error },
    #[error("another layer has failed")]
    Stopped,
    #[error("there is no registry to ask")]
    NoRegistry,
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl PullError {
    /// Whether another registry may have the image.
    pub(super) fn is_of_registry(&self) -> bool {
        match self {
            Self::Image(error) => !error.is_local(),
            Self::ReadCredentials { .. }
            | Self::Credentials { .. }
            | Self::HelperOfRequest
            | Self::Stopped => false,
            _ => true,
        }
    }

    /// Whether another request would help: there is no such image, or not for these credentials. Registries do not tell one
    /// from the other.
    pub(crate) fn is_of_request(&self) -> bool {
        match self {
            Self::From { source, .. } => source.is_of_request(),
            Self::NotFound { .. }
            | Self::NoCredentials { .. }
            | Self::Refused { .. }
            | Self::HelperOfRequest
            | Self::Credentials { from: Source::Request, .. }
            | Self::Image(ImageError::Platform { .. }) => true,
            _ => false,
        }
    }

    /// Whether the same request may succeed later, and after how long if the server says so.
    pub(super) fn retry_after(&self) -> Option<Option<Duration>> {
        match self {
            Self::Request { source, .. } | Self::Interrupted { source, .. } => {
                is_transient(source).then_some(None)
            }
            Self::Status { status, wait, .. } => {
                let is_transient = status.is_server_error()
                    || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(status);
                is_transient.then_some(*wait)
            }
            Self::Short { .. } => Some(None),
            _ => None,
        }
    }
}

fn is_transient(error: &HttpError) -> bool {
    match error {
        HttpError::Stalled { .. } | HttpError::TooSlow(_) => true,
        HttpError::Failed { .. } => !is_of_tls(error),
        HttpError::Redirected { source, .. } => is_transient(source),
        _ => false,
    }
}

/// Whether client and server did not agree on a secure connection.
pub(super) fn is_of_tls(error: &HttpError) -> bool {
    let HttpError::Failed { source } = error else { return false };
    match source {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        // Errors of rustls arrive as this.
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}
