//! Requests to one repository of a registry.

use std::cell::Cell;
use std::io::Read;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use cofferdam_core::fetcher::escape_control;
use cofferdam_core::provisioner::Digest;
use cofferdam_core::provisioner::document::{Descriptor, MAX_DOCUMENT, media_type};
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use ureq::http::{HeaderName, HeaderValue, StatusCode, header};

use super::credentials::Credentials;
use super::error::{PullError, Result, is_of_tls};
use super::login;
use super::secret::Secret;
use crate::http::{Answer, Client, Headers, Method};
use crate::image::Progress;
use crate::image::add::verify;
use crate::image::error::ImageError;

/// Attempts of a request that may succeed later, and the pause before the second one, which doubles.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Length of what is read of the body of an error, and of what is shown of it.
const MAX_ERROR: u64 = 16 << 10;
const MAX_MESSAGE: usize = 300;

/// What manifests may be.
const MANIFESTS: [&str; 4] =
    [media_type::OCI_INDEX, media_type::DOCKER_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST];

/// The digest of a manifest in a response, which nothing but a comparison relies on.
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A document that is requested.
#[derive(Debug, Clone, Copy)]
pub(super) enum Document<'a> {
    /// What a tag stands for.
    Tag(&'a str),
    /// A manifest or index of which only the digest is known.
    Pinned(Digest),
    /// One that an index refers to.
    Manifest(&'a Descriptor),
    Blob(&'a Descriptor),
}

/// One repository of one registry.
pub(super) struct Repository<'a> {
    client: &'a Client,
    credentials: &'a Credentials,
    /// The secret for the registry, once it was needed.
    secret: OnceLock<Option<Secret>>,
    /// What it was last accepted with.
    authorization: Mutex<Option<HeaderValue>>,
    host: String,
    repository: String,
    base: String,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Repository<'a> {
    pub(super) fn new(
        client: &'a Client,
        credentials: &'a Credentials,
        scheme: &str,
        host: &str,
        repository: &str,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        Self {
            client,
            credentials,
            secret: OnceLock::new(),
            authorization: Mutex::new(None),
            host: host.to_owned(),
            repository: repository.to_owned(),
            base: format!("{scheme}://{host}/v2/{repository}"),
            progress,
        }
    }

    /// The digest of the manifest that a tag stands for, if the registry says so.
    pub(super) fn digest_of(&self, tag: &str) -> Option<Digest> {
        let what = format!("tag `{tag}`");
        let answer = self.request(Method::Head, &format!("manifests/{tag}"), accept(), &what).ok()?;
        answer.header(&DIGEST)?.parse().ok()
    }

    /// Requests a document and verifies it.
    pub(super) fn document(&self, document: Document<'_>) -> Result<Vec<u8>> {
        let (path, headers) = match document {
            Document::Tag(tag) => (format!("manifests/{tag}"), accept()),
            Document::Pinned(digest) => (format!("manifests/{digest}"), accept()),
            Document::Manifest(descriptor) => (format!("manifests/{}", descriptor.digest), accept()),
            Document::Blob(descriptor) => (format!("blobs/{}", descriptor.digest), Vec::new()),
        };
        let what = document.describe();
        let limit = match document {
            Document::Manifest(descriptor) | Document::Blob(descriptor) => descriptor.size,
            Document::Tag(_) | Document::Pinned(_) => MAX_DOCUMENT,
        };
        if limit > MAX_DOCUMENT {
            return Err(PullError::TooLong { what, limit: MAX_DOCUMENT });
        }
        self.with_retries(|| {
            let answer = self.request(Method::Get, &path, headers.clone(), &what)?;
            let claimed = answer.header(&DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
            let mut bytes = Vec::new();
            let read = answer.into_reader().take(limit + 1).read_to_end(&mut bytes);
            read.map_err(|error| self.interrupted(&what, error))?;
            if bytes.len() as u64 > limit {
                return Err(PullError::TooLong { what: what.clone(), limit });
            }
            match document {
                Document::Manifest(descriptor) | Document::Blob(descriptor) => {
                    verify(&what, &bytes, descriptor)?
                }
                Document::Pinned(digest) => verify_digest(&what, &bytes, Some(digest))?,
                // It may have been damaged on its way.
                Document::Tag(_) => verify_digest(&what, &bytes, claimed)?,
            }
            Ok(bytes)
        })
    }

    /// Requests a blob from a position on. Returns its content, and the position where that begins: the beginning, if the
    /// server cannot do better.
    pub(super) fn blob(
        &self,
        digest: &Digest,
        position: u64,
        what: &str,
    ) -> Result<(impl Read + use<'a>, u64)> {
        let path = format!("blobs/{digest}");
        if let Ok(range) = HeaderValue::from_str(&format!("bytes={position}-"))
            && position > 0
        {
            let answer = self.request(Method::Get, &path, vec![(header::RANGE, range)], what);
            match answer.map(|answer| (beginning(&answer), answer)) {
                Ok((Some(begin), answer)) if [0, position].contains(&begin) => {
                    return Ok((answer.into_reader(), begin));
                }
                // A server that cannot do that can perhaps send the whole.
                Ok(_) | Err(PullError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let answer = self.request(Method::Get, &path, Vec::new(), what)?;
        match beginning(&answer) {
            Some(0) => Ok((answer.into_reader(), 0)),
            _ => Err(PullError::Range { what: what.to_owned() }),
        }
    }

    /// The error for a failed read of a body.
    pub(super) fn interrupted(&self, what: &str, error: std::io::Error) -> PullError {
        PullError::Interrupted { what: what.to_owned(), source: self.client.body_error(error) }
    }

    /// Repeats a request that may succeed later.
    fn with_retries<T>(&self, request: impl Fn() -> Result<T>) -> Result<T> {
        let failures = Cell::new(0);
        loop {
            match request() {
                Err(error) => {
                    failures.set(failures.get() + 1);
                    thread::sleep(self.pause(error, failures.get())?);
                }
                done => return done,
            }
        }
    }

    /// How long to wait after an error until the next attempt; the error itself if there is none.
    pub(super) fn pause(&self, error: PullError, failures: u32) -> Result<Duration> {
        let Some(wanted) = error.retry_after().filter(|_| failures < ATTEMPTS) else { return Err(error) };
        let wait = wanted.unwrap_or(PAUSE * 2_u32.pow(failures.saturating_sub(1)));
        if wait > MAX_PAUSE {
            return Err(error);
        }
        let reason = cofferdam_core::error_chain::describe(&error);
        (self.progress)(Progress::Retry { reason, wait });
        Ok(wait)
    }

    /// Sends a request, and answers the challenge of the registry. The status of the response is one of success.
    fn request(
        &self,
        method: Method<'_>,
        path: &str,
        plain: Vec<(HeaderName, HeaderValue)>,
        what: &str,
    ) -> Result<Answer> {
        let url = format!("{}/{path}", self.base);
        let mut headers = Headers { plain, authorization: self.authorization().clone() };
        let mut answer = self.send(method, &url, &headers, what)?;
        // The token may have expired, and there may be another one meanwhile.
        let is_refused = |answer: &Answer| {
            answer.response.status() == StatusCode::UNAUTHORIZED && answer.redirected_to.is_none()
        };
        if is_refused(&answer)
            && let Some(header) = login::authorize(self.client, &answer, self.secret()?, &self.repository)?
        {
            *self.authorization() = Some(header.clone());
            headers.authorization = Some(header);
            answer.discard(MAX_ERROR);
            answer = self.send(method, &url, &headers, what)?;
        }
        self.check(answer, what)
    }

    fn send(&self, method: Method<'_>, url: &str, headers: &Headers, what: &str) -> Result<Answer> {
        let sent = self.client.get(method, url, headers);
        sent.map_err(|source| match is_of_tls(&source) {
            true => PullError::Tls { host: self.host.clone(), source },
            false => PullError::Request { what: what.to_owned(), source },
        })
    }

    fn check(&self, answer: Answer, what: &str) -> Result<Answer> {
        let status = answer.response.status();
        if [StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&status) {
            return Ok(answer);
        }
        let wait = answer.header(&header::RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok());
        let wait = wait.map(Duration::from_secs);
        let is_redirected = answer.redirected_to.is_some();
        let (what, message) = (what.to_owned(), message(answer));
        Err(match status {
            StatusCode::NOT_FOUND => PullError::NotFound { what, message },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !is_redirected => match self.secret()? {
                Some(_) => PullError::Refused { what, message },
                None => PullError::NoCredentials { what, message },
            },
            status => PullError::Status { what, status, message, wait },
        })
    }

    fn secret(&self) -> Result<Option<&Secret>> {
        if let Some(secret) = self.secret.get() {
            return Ok(secret.as_ref());
        }
        let found = self.credentials.find(&self.host)?;
        Ok(self.secret.get_or_init(|| found).as_ref())
    }

    fn authorization(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.authorization.lock()
    }
}

impl Document<'_> {
    fn describe(self) -> String {
        match self {
            Self::Tag(tag) => format!("tag `{tag}`"),
            Self::Pinned(digest) => format!("manifest `{digest}`"),
            Self::Manifest(descriptor) => format!("manifest `{}`", descriptor.digest),
            Self::Blob(descriptor) => format!("blob `{}`", descriptor.digest),
        }
    }
}

/// The position in a blob where the content of an answer begins.
fn beginning(answer: &Answer) -> Option<u64> {
    if answer.response.status() != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    let range = answer.header(&header::CONTENT_RANGE)?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

fn accept() -> Vec<(HeaderName, HeaderValue)> {
    MANIFESTS.iter().map(|kind| (header::ACCEPT, HeaderValue::from_static(kind))).collect()
}

fn verify_digest(what: &str, bytes: &[u8], expected: Option<Digest>) -> Result<()> {
    let (size, digest) = (bytes.len() as u64, Digest::of(bytes));
    match expected {
        Some(expected) if expected != digest => {
            Err(ImageError::Mismatch { file: what.to_owned(), actual: size, digest, size, expected }.into())
        }
        _ => Ok(()),
    }
}

/// What a registry says of an error, for the end of a message.
fn message(answer: Answer) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut text = Vec::new();
    // Without it, there is still the status.
    drop(answer.into_reader().take(MAX_ERROR).read_to_end(&mut text));
    let errors: Option<Errors> = serde_json::from_slice(&text).ok();
    let first = errors.and_then(|errors| errors.errors.into_iter().next());
    first.map_or_else(String::new, |Error { code, message }| {
        let text: String = format!("{code}: {message}").chars().take(MAX_MESSAGE).collect();
        format!(" ({})", escape_control(&text))
    })
}
