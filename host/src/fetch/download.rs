//! Downloads by HTTP. One that is interrupted is continued where it was, if its server can do that.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderName, HeaderValue, StatusCode, header};

use super::copy::{Copier, CopyError};
use super::credentials::Credentials;
use super::target::Target;
use crate::http::{self, Answer, Headers, HttpError, Method, Rules};
use cofferdam_core::config::FetchLimits;
use cofferdam_core::error_chain::describe;
use cofferdam_core::fetcher::{Known, Version, escape_control};

/// Permissions of files whose source has none.
pub(super) const DEFAULT_MODE: u32 = 0o644;

/// Attempts without progress, and the pause before the second one, which doubles.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Bytes after which a connection counts as one that works.
const MIN_PROGRESS: u64 = 16 << 10;

/// Connections for a file. Otherwise, a server that closes each of them would keep this busy forever.
const MAX_CONNECTIONS: u32 = 1000;

/// Length of a header that is used to validate a file later.
const MAX_VALIDATOR: usize = 1024;

/// An HTTP client.
pub(super) struct Client {
    client: http::Client,
    credentials: Credentials,
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
    #[error("the server has sent {received} of {size} bytes")]
    Short { received: u64, size: u64 },
    #[error("the server does not continue with byte {position}, although it says that it can")]
    Range { position: u64 },
    #[error(transparent)]
    Copy(CopyError),
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

/// What a download has received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Downloaded {
    /// The file is still the one that is known.
    Unchanged,
    /// All of it.
    Complete {
        /// How to find out later whether it has changed.
        version: Option<Version>,
    },
}

/// How an attempt has failed.
enum Failure {
    /// Another one may succeed.
    Interrupted(DownloadError),
    Final(DownloadError),
}

/// A download.
struct Download<'a, 'b> {
    client: &'a Client,
    url: &'a str,
    known: Option<&'a Known>,
    copier: &'a mut Copier,
    target: &'a mut Target<'b>,
    /// Of what was received so far.
    version: Option<Version>,
    /// What to compare by a server that continues: a strong `ETag`, or a `Last-Modified` that is one.
    if_range: Option<HeaderValue>,
    size: Option<u64>,
}

impl Client {
    /// A client that trusts the certificate authorities of this machine.
    pub(super) fn new(limits: &FetchLimits, credentials: Credentials) -> Self {
        let rules = Rules {
            stall: limits.stall,
            // A launch can be cancelled.
            min_bytes: 0,
            redirects: limits.redirects,
            hosts: limits.hosts.clone(),
            only_hosts: !limits.hosts.is_empty(),
            hosts_setting: "`hosts` of `[fetch]`",
        };
        Self { client: http::Client::new(rules), credentials, max_size: limits.bytes }
    }

    /// Downloads a URL into a file, unless it is still what is known of it. Follows redirects; each target is checked before
    /// it is requested.
    pub(super) fn download(
        &self,
        url: &str,
        known: Option<&Known>,
        copier: &mut Copier,
        target: &mut Target<'_>,
    ) -> Result<Downloaded, DownloadError> {
        let download =
            Download { client: self, url, known, copier, target, version: None, if_range: None, size: None };
        download.run()
    }
}

impl Download<'_, '_> {
    fn run(mut self) -> Result<Downloaded, DownloadError> {
        let (mut failures, mut most) = (0, 0);
        for connection in 1.. {
            let error = match self.attempt() {
                Ok(downloaded) => return Ok(downloaded),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Interrupted(error)) => error,
            };
            // A server that begins again makes no progress before it has sent more than at any time before.
            let received = self.target.received();
            failures = if received >= most + MIN_PROGRESS { 1 } else { failures + 1 };
            let is_stalled = matches!(error, DownloadError::Http(HttpError::Stalled { .. }));
            if (is_stalled && received <= most) || failures == ATTEMPTS || connection == MAX_CONNECTIONS {
                return Err(error);
            }
            most = most.max(received);
            let pause = PAUSE * 2_u32.pow(failures - 1);
            let reason = describe(&error);
            let line = format!("interrupted after {received} bytes: {reason}; next attempt in {pause:?}");
            // The log is optional.
            drop(writeln!(io::stderr(), "{}", escape_control(&line)));
            thread::sleep(pause);
        }
        Err(DownloadError::Short { received: self.target.received(), size: self.size.unwrap_or(0) })
    }

    /// Receives what one connection has to give.
    fn attempt(&mut self) -> Result<Downloaded, Failure> {
        let position = self.target.received();
        let is_continued = position > 0 && self.if_range.is_some();
        if position > 0 && !is_continued {
            self.restart()?;
        }
        let authorization = self.client.credentials.authorization(self.url);
        let mut headers = Headers { authorization, ..Headers::default() };
        if let (true, Some(if_range)) = (is_continued, &self.if_range) {
            if let Ok(range) = HeaderValue::from_str(&format!("bytes={position}-")) {
                headers.plain.extend([(header::RANGE, range), (header::IF_RANGE, if_range.clone())]);
            }
        } else if let (0, Some(known)) = (position, self.known) {
            headers.plain.extend(conditions(&known.version));
        }
        let sent = self.client.client.get(Method::Get, self.url, &headers);
        let answer = sent.map_err(|error| match (&error, position) {
            // Where nothing has worked yet, nothing is repeated.
            (HttpError::Failed { .. } | HttpError::Stalled { .. }, 1..) => Failure::Interrupted(error.into()),
            _ => Failure::Final(error.into()),
        })?;
        match answer.response.status() {
            StatusCode::OK => self.receive_all(answer),
            StatusCode::NOT_MODIFIED if position == 0 && self.known.is_some() => Ok(Downloaded::Unchanged),
            StatusCode::PARTIAL_CONTENT if is_continued && self.continues(&answer, position) => {
                self.receive(answer)
            }
            // It has another file meanwhile, or cannot continue.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if is_continued => {
                self.restart()?;
                Err(Failure::Interrupted(DownloadError::Range { position }))
            }
            status => {
                let error = redirected(&answer, DownloadError::Status { status });
                let is_temporary = status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
                Err(match position > 0 && is_temporary {
                    true => Failure::Interrupted(error),
                    false => Failure::Final(error),
                })
            }
        }
    }

    /// Receives a file from its beginning.
    fn receive_all(&mut self, answer: Answer) -> Result<Downloaded, Failure> {
        if self.target.received() > 0 {
            self.restart()?;
        }
        let size = answer.response.body().content_length();
        self.version = version(&answer);
        self.if_range = self.version.as_ref().and_then(|version| if_range(&answer, version));
        self.size = size;
        // Also by a server that does not know conditional requests.
        if let (Some(known), Some(version)) = (self.known, &self.version)
            && (&known.version, Some(known.size)) == (version, size)
        {
            return Ok(Downloaded::Unchanged);
        }
        if let Some(size) = size.filter(|size| *size > self.client.max_size) {
            let error = DownloadError::TooLarge { size, limit: self.client.max_size };
            return Err(Failure::Final(redirected(&answer, error)));
        }
        self.target.begin(size);
        self.receive(answer)
    }

    /// Receives a body up to its end.
    fn receive(&mut self, answer: Answer) -> Result<Downloaded, Failure> {
        match self.copier.copy(answer.into_reader(), &mut *self.target) {
            Ok(_) => {}
            Err(CopyError::Read { source }) => {
                return Err(Failure::Interrupted(self.client.client.body_error(source).into()));
            }
            Err(error) => return Err(Failure::Final(DownloadError::Copy(error))),
        }
        let received = self.target.received();
        match self.size.filter(|size| *size != received) {
            Some(size) => Err(Failure::Interrupted(DownloadError::Short { received, size })),
            None => Ok(Downloaded::Complete { version: self.version.take() }),
        }
    }

    fn restart(&mut self) -> Result<(), Failure> {
        let discarded = self
            .target
            .restart()
            .map_err(|source| Failure::Final(DownloadError::Copy(CopyError::Write { source })))?;
        self.copier.give_back(discarded);
        Ok(())
    }

    /// Whether a partial response has the rest of the same file.
    fn continues(&mut self, answer: &Answer, position: u64) -> bool {
        let is_same = match (&self.version, answer.header(&header::ETAG)) {
            (Some(Version::Http { etag: Some(known), .. }), Some(etag)) => known == etag,
            _ => true,
        };
        let range = answer.header(&header::CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
        let begins = range.and_then(|range| {
            let (range, size) = range.split_once('/')?;
            Some((range.split_once('-')?.0.parse::<u64>().ok()?, size.parse::<u64>().ok()))
        });
        let Some((begin, size)) = begins else { return false };
        // Without one of them, it could not be told whether this is all of the rest.
        let Some(all) = self.size.or(size) else { return false };
        let continues = is_same && begin == position && size.is_none_or(|size| size == all);
        if continues {
            self.size = Some(all);
        }
        continues
    }
}

/// An error, with the URL that the server has redirected to.
fn redirected(answer: &Answer, error: DownloadError) -> DownloadError {
    match &answer.redirected_to {
        Some(to) => DownloadError::Redirected { to: to.clone(), source: error.into() },
        None => error,
    }
}

/// What tells later whether a file has changed. A date that is that of the response does not, without an `ETag`: the file could
/// be changed again within the same second.
fn version(answer: &Answer) -> Option<Version> {
    let text = |name: &HeaderName| {
        let value = answer.header(name).filter(|value| value.len() <= MAX_VALIDATOR);
        value.filter(|value| !value.is_empty()).map(str::to_owned)
    };
    let (etag, last_modified) = (text(&header::ETAG), text(&header::LAST_MODIFIED));
    let is_just_now = last_modified.as_deref().is_some_and(|date| answer.header(&header::DATE) == Some(date));
    let tells = etag.is_some() || (last_modified.is_some() && !is_just_now);
    tells.then_some(Version::Http { etag, last_modified })
}

/// What a server compares before it continues. It has to change with every byte (RFC 9110, section 13.1.5): a weak `ETag` does
/// not, nor does a date that is that of the response, as the file could be changed again within the same second.
fn if_range(answer: &Answer, version: &Version) -> Option<HeaderValue> {
    let text = match version {
        Version::Http { etag: Some(etag), .. } => Some(etag).filter(|etag| etag.starts_with('"')),
        Version::Http { last_modified: Some(date), .. } => {
            let sent = answer.header(&header::DATE)?;
            Some(date).filter(|date| *date != sent)
        }
        _ => None,
    };
    HeaderValue::from_str(text?).ok()
}

/// The headers of a request for a file, unless it is unchanged.
fn conditions(version: &Version) -> Vec<(HeaderName, HeaderValue)> {
    let Version::Http { etag, last_modified } = version else { return Vec::new() };
    let conditions = [(header::IF_NONE_MATCH, etag), (header::IF_MODIFIED_SINCE, last_modified)];
    let conditions = conditions
        .into_iter()
        .filter_map(|(name, value)| Some((name, HeaderValue::from_str(value.as_deref()?).ok()?)));
    conditions.collect()
}
