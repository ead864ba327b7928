//! Receives a file for the cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::copy::{Copier, CopyError};
use super::credentials::Credentials;
use super::download::{Client, DEFAULT_MODE, DownloadError, Downloaded};
use super::failure::{file_failure, invalid};
use super::item::Source;
use super::local::{self, LocalError};
use super::report::Report;
use super::target::Target;
use crate::http::redact;
use cofferdam_core::fetcher::{FetchFailure, FetchMessage, Known, Reason, StoreJob, Stored};

/// Why a file could not be received.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot inspect it")]
    Inspect { source: io::Error },
}

/// Receives a file, or finds that it is still what is known of it, and reports that.
pub(super) fn store(
    job: &StoreJob,
    mut into: File,
    credentials: Credentials,
    mut report: Report,
) -> Result<(), FetchFailure> {
    let name = redact(&job.source);
    let source = Source::parse(&job.source).map_err(|error| invalid(&name, &error))?;
    let message = match receive(job, &source, credentials, &mut into, &mut report) {
        Ok(Some(stored)) => FetchMessage::Stored(stored),
        Ok(None) => FetchMessage::Unchanged,
        // The sandbox may have the space that the cache does not have.
        Err(
            StoreError::Copy(CopyError::Write { source })
            | StoreError::Download(DownloadError::Copy(CopyError::Write { source })),
        ) => FetchMessage::NotWritten(Reason::of(&source)),
        Err(error) => return Err(file_failure(&name, &error, false)),
    };
    report.send(&message);
    Ok(())
}

/// Returns `None` if the file is unchanged.
fn receive(
    job: &StoreJob,
    source: &Source,
    credentials: Credentials,
    into: &mut File,
    report: &mut Report,
) -> Result<Option<Stored>, StoreError> {
    let mut copier = Copier::new(job.limits.bytes);
    // The hash is verified where the file is used, as one and the same may be expected to have several.
    let mut target = Target::new(into, None, report);
    match source {
        Source::Url(url) => {
            let client = Client::new(&job.limits, credentials);
            match client.download(url, job.known.as_ref(), &mut copier, &mut target)? {
                Downloaded::Unchanged => Ok(None),
                Downloaded::Complete { version } => Ok(Some(Stored { version, mode: DEFAULT_MODE })),
            }
        }
        Source::Local(path) => {
            let (source, metadata) = local::open(path)?;
            local::settle(&metadata);
            let version = local::version(&metadata);
            let known = job.known.as_ref().map(|Known { version, size }| (version, *size));
            if known == Some((&version, metadata.len())) {
                return Ok(None);
            }
            target.begin(Some(metadata.len()));
            copier.copy(&source, &mut target)?;
            let after = source.metadata().map_err(|source| StoreError::Inspect { source })?;
            // What was changed while it was read is like neither of its versions.
            let version = Some(version)
                .filter(|version| *version == local::version(&after) && target.received() == metadata.len());
            Ok(Some(Stored { version, mode: metadata.mode() & 0o777 }))
        }
    }
}
