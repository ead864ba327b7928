//! Fetches a container's files into its sandbox, in processes of their own.
//!
//! ```text
//! agent                                   cofferdam fetch, as the container's user
//!   │── stdin: the job, one line of JSON ──▶│  opens files of the cache
//!   │   (stays open until the job is done   │  becomes the user
//!   │    or cancelled)                      │  parses and validates all URIs
//!   │                                       │  fetches one after the other, in the order of the list
//!   │◀── stderr: a log line per file ───────│
//!   │◀── stdout: messages, as lines of JSON │
//!   │◀── exit status ───────────────────────│
//! ```
//!
//! Servers and archives are untrusted, so they are read without the agent's privileges and outside of its memory.
//!
//! What a request wants cached is received first, each file by a process of its own that containers of the same user
//! share; see `cache`. Meanwhile, another process checks the whole list.

mod cache;
mod child;
mod counters;
mod job;

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use crate::blocking::WorkPool;
use crate::config::{FetchCacheConfig, FetchLimits};
use crate::model::{FetchProgress, Uri};
use cache::{Cache, Lease, Wanted};
use child::Child;
use counters::{FetchCounters, count};

pub use cache::CacheError;
pub use counters::FetchStats;
pub use job::{
    CachedFile, FetchFailure, FetchJob, FetchMessage, JobError, Known, PlaceJob, Reason, StoreJob, Stored,
    Version, escape_control,
};

/// Fetches files into sandboxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    program: Program,
    cache: Option<Arc<Cache>>,
}

/// How processes are started.
#[derive(Debug, Clone)]
struct Program {
    /// Program and arguments.
    command: Option<Arc<[PathBuf]>>,
    limits: FetchLimits,
    credentials: Option<Arc<Path>>,
    counters: Arc<FetchCounters>,
}

/// The files of a container.
#[derive(Debug, Clone, Copy)]
pub struct FetchRequest<'a> {
    /// The files.
    pub uris: &'a [Uri],
    /// Where they are placed.
    pub sandbox: &'a Path,
    /// The user with whose privileges they are fetched.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Paths in the sandbox. Nothing is placed at, in or over them.
    pub reserved: &'a [PathBuf],
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
    /// The fetcher process exited successfully without a file for the cache.
    #[error("the fetcher process ended without a result")]
    Silent,
    /// A thread or a task of the agent panicked.
    #[error("fetching was interrupted by an internal error")]
    Interrupted,
    /// A download that other containers waited for as well has failed.
    #[error(transparent)]
    Shared(Arc<FetchError>),
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
        match self {
            Self::Shared(error) => error.is_invalid(),
            error => matches!(error, Self::NotConfigured | Self::Failed(FetchFailure::Invalid { .. })),
        }
    }
}

impl Fetcher {
    /// A fetcher that runs this command line for every job. Without one, it refuses to fetch.
    #[must_use]
    pub fn new(command: Option<Vec<PathBuf>>) -> Self {
        let program = Program {
            command: command.map(Arc::from),
            limits: FetchLimits::default(),
            credentials: None,
            counters: Arc::default(),
        };
        Self { program, cache: None }
    }

    /// The same fetcher with other limits.
    #[must_use]
    pub fn limited(self, limits: FetchLimits) -> Self {
        Self { program: Program { limits, ..self.program }, ..self }
    }

    /// The same fetcher with a file of credentials for servers.
    #[must_use]
    pub fn with_credentials(self, file: Option<&Path>) -> Self {
        Self { program: Program { credentials: file.map(Arc::from), ..self.program }, ..self }
    }

    /// The same fetcher with a cache in a directory, which is created if it is missing and locked until the last clone is
    /// dropped. Blocks.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn cached(self, cache: &FetchCacheConfig, pool: WorkPool) -> Result<Self, CacheError> {
        let cache = Cache::open(&cache.directory, cache.size, &self.program.counters, pool)?;
        Ok(Self { cache: Some(Arc::new(cache)), ..self })
    }

    /// What it has done, and what is in its cache.
    #[must_use]
    pub fn stats(&self) -> FetchStats {
        let mut stats = self.program.counters.read();
        if let Some(cache) = &self.cache {
            cache.fill(&mut stats);
        }
        stats
    }

    /// Fetches all files into the sandbox, one after the other. How far that is is passed to `progress`.
    ///
    /// When `stop` completes or the future is dropped, the fetcher process and its children are killed, as is that of a
    /// download for the cache that no other container waits for; in the first case this returns after the process has been
    /// reaped.
    ///
    /// # Errors
    /// [`FetchError`], for the first file that could not be fetched. Those before it are in the sandbox.
    pub async fn fetch<C>(
        &self,
        request: FetchRequest<'_>,
        progress: impl FnMut(FetchProgress),
        stop: impl Future<Output = C>,
    ) -> Result<(), FetchError> {
        if request.uris.is_empty() {
            return Ok(());
        }
        let outcome = self.fetch_all(request, progress, stop).await;
        match &outcome {
            Ok(()) => count(&self.program.counters.succeeded),
            Err(FetchError::Stopped) => {}
            Err(_) => count(&self.program.counters.failed),
        }
        outcome
    }

    async fn fetch_all<C>(
        &self,
        request: FetchRequest<'_>,
        mut progress: impl FnMut(FetchProgress),
        stop: impl Future<Output = C>,
    ) -> Result<(), FetchError> {
        tokio::pin!(stop);
        let FetchRequest { uris, sandbox, uid, gid, reserved } = request;
        let mut job = PlaceJob {
            sandbox: sandbox.to_owned(),
            uid,
            gid,
            uris: uris.to_vec(),
            cached: BTreeMap::new(),
            reserved: reserved.to_vec(),
            limits: self.program.limits.clone(),
            credentials: self.program.credentials.as_deref().map(Path::to_owned),
        };
        let leases = match &self.cache {
            Some(cache) if uris.iter().any(|uri| uri.cache) => {
                self.lease_checked(cache, request, &job, &mut progress, &mut stop).await?
            }
            _ => BTreeMap::new(),
        };
        job.cached =
            leases.iter().filter_map(|(index, lease)| Some((*index, lease.content()?.file()))).collect();
        let mut child = self.program.start(&FetchJob::Place(job))?;
        // Files are placed in the order of the list.
        let mut placed = 0;
        let work = async {
            while let Some(message) = child.next().await {
                if let FetchMessage::Progress(current) = message {
                    placed = current.fetched_files;
                    let ahead = leases.keys().filter(|index| **index as u64 >= placed).count() as u64;
                    progress(FetchProgress { fetched_files: placed.saturating_add(ahead), ..current });
                }
            }
            child.outcome().await
        };
        let outcome = tokio::select! {
            biased;
            _ = stop => None,
            outcome = work => Some(outcome),
        };
        let Some(outcome) = outcome else {
            child.end().await?;
            return Err(FetchError::Stopped);
        };
        if matches!(outcome, Err(FetchError::Failed(FetchFailure::File { is_damaged: true, .. })))
            && let Some((_, lease)) = leases.into_iter().find(|(index, _)| *index as u64 == placed)
        {
            // It may be damaged in the cache, where it would stay.
            lease.discard();
        }
        outcome
    }

    /// Has the cache provide all that is to be cached, by its position in the list, while a process checks the whole list: what
    /// is invalid in it is reported at once.
    async fn lease_checked<C>(
        &self,
        cache: &Arc<Cache>,
        request: FetchRequest<'_>,
        job: &PlaceJob,
        progress: &mut impl FnMut(FetchProgress),
        stop: &mut (impl Future<Output = C> + Unpin),
    ) -> Result<BTreeMap<usize, Lease>, FetchError> {
        let mut child = self.program.start(&FetchJob::Check(job.clone()))?;
        let outcome = {
            let check = child.outcome();
            tokio::pin!(check);
            let mut is_valid = false;
            let leased = {
                let invalid = async {
                    match (&mut check).await {
                        Err(error) => error,
                        Ok(()) => {
                            is_valid = true;
                            pending().await
                        }
                    }
                };
                let end = async {
                    tokio::select! {
                        biased;
                        _ = &mut *stop => FetchError::Stopped,
                        error = invalid => error,
                    }
                };
                tokio::pin!(end);
                self.lease_all(cache, request, progress, &mut end).await
            };
            match leased {
                Ok(leases) if !is_valid => tokio::select! {
                    biased;
                    _ = stop => Err(FetchError::Stopped),
                    checked = check => checked.map(|()| leases),
                },
                leased => leased,
            }
        };
        child.end().await?;
        outcome
    }

    /// Has the cache provide all that is to be cached, by its position in the list. `end` ends that with an error.
    async fn lease_all(
        &self,
        cache: &Arc<Cache>,
        request: FetchRequest<'_>,
        progress: &mut impl FnMut(FetchProgress),
        end: &mut (impl Future<Output = FetchError> + Unpin),
    ) -> Result<BTreeMap<usize, Lease>, FetchError> {
        let FetchRequest { uris, uid, gid, .. } = request;
        let mut leases = BTreeMap::new();
        let files = uris.len() as u64;
        for (index, uri) in uris.iter().enumerate().filter(|(_, uri)| uri.cache) {
            let mut waiting = cache.wait(Wanted { source: uri.value.clone(), uid, gid }, &self.program);
            let fetched_files = leases.len() as u64;
            let each = |current: FetchProgress| {
                progress(FetchProgress { files, fetched_files, ..current });
            };
            let outcome = tokio::select! {
                biased;
                error = &mut *end => Err(error),
                outcome = waiting.ended(each) => outcome,
            };
            waiting.leave().await;
            if let Some(lease) = outcome? {
                leases.insert(index, lease);
            }
        }
        Ok(leases)
    }
}

impl Program {
    fn start(&self, job: &FetchJob) -> Result<Child, FetchError> {
        let command = self.command.as_deref().and_then(<[_]>::split_first);
        let (program, arguments) = command.ok_or(FetchError::NotConfigured)?;
        Child::spawn(program, arguments, job)
    }
}
