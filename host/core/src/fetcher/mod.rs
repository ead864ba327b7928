//! Brings a container's files into its sandbox, by a process of its own.
//!
//! ```text
//! agent                                   cofferdam fetch, as the container's user
//!   │── stdin: the job, one line of JSON ──▶│  becomes the user, then looks at the job
//!   │   (stays open: its end means that     │  every URI is understood before the first is fetched
//!   │    nobody waits any more)             │  one after the other, in the order of the list
//!   │◀── stderr: a line per file ───────────│
//!   │◀── stdout: the failure, as JSON ──────│
//!   │◀── exit status ───────────────────────│
//! ```
//!
//! Servers and archives are strangers, so what reads them has neither the agent's rights nor its memory.

mod job;
mod running;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::model::Uri;
use running::Running;

pub use job::{FetchFailure, FetchJob, JobError, Limits, Reason, printable};

/// Brings files into sandboxes.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// Program and arguments.
    command: Option<Vec<PathBuf>>,
    limits: Limits,
}

/// Why the files of a container are not all there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No fetcher is configured.
    #[error("this agent has no fetcher, so containers cannot have URIs")]
    NotConfigured,
    /// The process that fetches could not be started.
    #[error("cannot start `{}` to fetch files", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The job cannot be written down, as when the sandbox's path is not UTF-8.
    #[error("cannot describe what to fetch")]
    Describe {
        /// Why.
        source: serde_json::Error,
    },
    /// The process that fetches said what was wrong.
    #[error(transparent)]
    Failed(#[from] FetchFailure),
    /// The process that fetches ended without saying what was wrong.
    #[error("the process that fetches files ended with {status}; its last words were `{words}`")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to its standard error.
        words: String,
    },
    /// The kernel does not say how the process that fetches ended.
    #[error("cannot wait for the process that fetches files")]
    Wait {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody wants the files any more.
    #[error("fetching was interrupted")]
    Stopped,
}

impl Fetcher {
    /// A fetcher that runs this command line for every job. Without one, it refuses to fetch.
    #[must_use]
    pub fn new(command: Option<Vec<PathBuf>>) -> Self {
        Self { command, limits: Limits::default() }
    }

    /// The same fetcher with other limits.
    #[must_use]
    pub fn limited(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Brings all files into `sandbox`, one after the other, with the rights of this user and group and no others.
    ///
    /// When `stop` completes, or the future is dropped, whatever fetches is killed; in the first case it is gone
    /// when this returns.
    ///
    /// # Errors
    /// The first file that could not be brought in; those before it are there.
    pub async fn fetch<C>(
        &self,
        uris: &[Uri],
        sandbox: &Path,
        uid: u32,
        gid: u32,
        stop: impl Future<Output = C>,
    ) -> Result<(), FetchError> {
        if uris.is_empty() {
            return Ok(());
        }
        let job =
            FetchJob { sandbox: sandbox.to_owned(), uid, gid, uris: uris.to_vec(), limits: self.limits };
        let job = job.to_line().map_err(|source| FetchError::Describe { source })?;
        let command = self.command.as_deref().and_then(<[_]>::split_first);
        let (program, arguments) = command.ok_or(FetchError::NotConfigured)?;
        let mut running = Running::spawn(program, arguments)?;
        tokio::select! {
            biased;
            _ = stop => {
                running.end().await?;
                Err(FetchError::Stopped)
            }
            outcome = running.outcome(&job) => outcome,
        }
    }
}
