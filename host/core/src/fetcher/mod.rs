//! Fetches a container's files into its sandbox, in a process of its own.
//!
//! ```text
//! agent                                   cofferdam fetch, as the container's user
//!   │── stdin: the job, one line of JSON ──▶│  becomes the user
//!   │   (stays open until the job is done   │  parses and validates all URIs
//!   │    or cancelled)                      │  fetches one after the other, in the order of the list
//!   │◀── stderr: a log line per file ───────│
//!   │◀── stdout: the failure, as JSON ──────│
//!   │◀── exit status ───────────────────────│
//! ```
//!
//! Servers and archives are untrusted, so they are read without the agent's privileges and outside of its memory.

mod child;
mod job;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::config::FetchLimits;
use crate::model::Uri;
use child::Child;

pub use job::{FetchFailure, FetchJob, JobError, Reason, escape_control};

/// Fetches files into sandboxes.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// Program and arguments.
    command: Option<Vec<PathBuf>>,
    limits: FetchLimits,
}

/// Why not all files of a container were fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No fetcher is configured.
    #[error("this agent has no fetcher; launch the container without URIs")]
    NotConfigured,
    /// The fetcher process could not be started.
    #[error("cannot start the fetcher process `{}`", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The job cannot be serialized, as when the sandbox's path is not UTF-8.
    #[error("cannot serialize the job of the fetcher process")]
    Serialize {
        /// Why.
        source: serde_json::Error,
    },
    /// The fetcher process reported a failure.
    #[error(transparent)]
    Failed(#[from] FetchFailure),
    /// The fetcher process exited without reporting a failure.
    #[error("the fetcher process ended with {status}; the end of its standard error: `{stderr}`")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error.
        stderr: String,
    },
    /// waitpid(2) failed.
    #[error("cannot wait for the fetcher process")]
    Wait {
        /// Why.
        source: io::Error,
    },
    /// `stop` completed first.
    #[error("fetching was cancelled")]
    Stopped,
}

impl FetchError {
    /// Whether the error is in the request.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::NotConfigured | Self::Failed(FetchFailure::Invalid { .. }))
    }
}

impl Fetcher {
    /// A fetcher that runs this command line for every job. Without one, it refuses to fetch.
    #[must_use]
    pub fn new(command: Option<Vec<PathBuf>>) -> Self {
        Self { command, limits: FetchLimits::default() }
    }

    /// The same fetcher with other limits.
    #[must_use]
    pub fn limited(self, limits: FetchLimits) -> Self {
        Self { limits, ..self }
    }

    /// Fetches all files into `sandbox`, one after the other, with the privileges of this user and group. Nothing is
    /// placed at, in or over the `reserved` paths in it.
    ///
    /// When `stop` completes or the future is dropped, the fetcher process and its children are killed; in the first
    /// case this returns after the process has been reaped.
    ///
    /// # Errors
    /// [`FetchError`], for the first file that could not be fetched. Those before it are in the sandbox.
    pub async fn fetch<C>(
        &self,
        uris: &[Uri],
        sandbox: &Path,
        uid: u32,
        gid: u32,
        reserved: &[PathBuf],
        stop: impl Future<Output = C>,
    ) -> Result<(), FetchError> {
        if uris.is_empty() {
            return Ok(());
        }
        let job = FetchJob {
            sandbox: sandbox.to_owned(),
            uid,
            gid,
            uris: uris.to_vec(),
            reserved: reserved.to_vec(),
            limits: self.limits.clone(),
        };
        let job = job.to_line().map_err(|source| FetchError::Serialize { source })?;
        let command = self.command.as_deref().and_then(<[_]>::split_first);
        let (program, arguments) = command.ok_or(FetchError::NotConfigured)?;
        let mut child = Child::spawn(program, arguments)?;
        tokio::select! {
            biased;
            _ = stop => {
                child.end().await?;
                Err(FetchError::Stopped)
            }
            outcome = child.run(&job) => outcome,
        }
    }
}
