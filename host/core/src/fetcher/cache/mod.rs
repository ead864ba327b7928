//! The cache of fetched files, shared by all containers of a user.
//!
//! ```text
//! Cache      one download for all that wait for the same file of the same user, cancelled with the last of them
//!   ├──▶ download   a fetcher process, which validates what is there or receives what is not
//!   └──▶ index      entries, their use and their space
//!          └──▶ files    the directory
//! ```
//!
//! A file is received by a process with the privileges of the user that it is for, and an entry is for that user and group
//! alone: so nobody gets by the cache what he may not read himself. Containers get copies.

mod download;
mod files;
mod index;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::counters::FetchCounters;
use super::{FetchError, FetchStats, Program};
use crate::blocking::WorkPool;
use crate::ledger::{LedgerError, Lock};
use crate::model::FetchProgress;
use crate::shared_operation::{self, Operations};
use download::Download;
use files::Files;
use index::{Content, Index};

/// Maximum number of entries.
const MAX_ENTRIES: usize = 10_000;

/// Why a cache cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another agent has it, or the lock fails.
    #[error("cannot use the fetcher's cache `{}`; give each agent one of its own with `cache_dir` of `[fetch]`", path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: LedgerError,
    },
    /// It cannot be created or read.
    #[error("cannot read or create the directory `{}` of the fetcher's cache", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could change it.
    #[error(
        "`{}` of the fetcher's cache must be a directory that only user {uid} may enter (mode 0700); change it, or set \
         `cache_dir` of `[fetch]`",
        path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// The user of the agent.
        uid: u32,
    },
}

/// A cache of fetched files.
pub(super) struct Cache {
    index: Arc<Index>,
    pool: WorkPool,
    active: Arc<Operations<String, FetchProgress, Outcome>>,
}

/// The end of a download. `None`: the file has to be fetched without the cache.
type Outcome = Result<Option<Arc<Content>>, Arc<FetchError>>;

/// What a container wants from the cache.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Where it comes from.
    pub(super) source: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A container that waits for a download. When the last one is dropped, the download is cancelled.
pub(super) struct Waiting {
    cache: Arc<Cache>,
    key: String,
    download: shared_operation::Waiting<String, FetchProgress, Outcome>,
}

/// Content that a container is copying. It stays in the cache meanwhile.
pub(super) struct Lease {
    cache: Arc<Cache>,
    key: String,
    content: Option<Arc<Content>>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the cache in a directory, which is created if it is missing, and locks it. What an agent that died has left
    /// behind is removed. Blocks.
    pub(super) fn open(
        directory: &Path,
        size: u64,
        counters: &Arc<FetchCounters>,
        pool: WorkPool,
    ) -> Result<Self, CacheError> {
        Files::create(directory)?;
        let lock = Lock::take(directory)
            .map_err(|source| CacheError::Lock { path: directory.to_owned(), source })?;
        let index = Index::open(Files::open(directory)?, lock, size, Arc::clone(counters))?;
        Ok(Self { index: Arc::new(index), pool, active: Arc::default() })
    }

    /// Begins a download, or waits for one that is in progress. Must be called in a tokio runtime.
    pub(super) fn wait(self: &Arc<Self>, wanted: Wanted, program: &Program) -> Waiting {
        let key = wanted.key();
        let (index, pool, program) = (Arc::clone(&self.index), self.pool.clone(), program.clone());
        let download = Download { index, pool, key: key.clone(), wanted, program };
        let run = |operation| async move { download.run(operation).await.map_err(Arc::new) };
        let download = self.active.wait(key.clone(), run);
        Waiting { cache: Arc::clone(self), key, download }
    }

    /// Adds what is in the cache.
    pub(super) fn fill(&self, stats: &mut FetchStats) {
        (stats.cache_size, stats.cache_used, stats.cache_files) = self.index.usage();
    }
}

impl Wanted {
    /// What an entry is found by: the hash of its user, group and URI, as a URI may contain secrets.
    fn key(&self) -> String {
        let Self { source, uid, gid } = self;
        HEXLOWER.encode(&Sha256::digest(format!("{uid}:{gid}:{source}")))
    }
}

impl Waiting {
    /// Waits until the download has ended. Each progress until then is passed on. `None`: the file has to be fetched without
    /// the cache.
    pub(super) async fn ended(
        &mut self,
        each: impl FnMut(FetchProgress),
    ) -> Result<Option<Lease>, FetchError> {
        let outcome = self.download.ended(each).await.ok_or(FetchError::Interrupted)?;
        let content = outcome.map_err(FetchError::Shared)?;
        Ok(content.map(|content| Lease {
            cache: Arc::clone(&self.cache),
            key: self.key.clone(),
            content: Some(content),
        }))
    }

    /// Does not wait any longer. If nobody else does, this returns when nothing of the download goes on, or after a while.
    pub(super) async fn leave(self) {
        self.download.leave().await;
    }
}

impl Lease {
    /// The file.
    pub(super) fn content(&self) -> Option<&Arc<Content>> {
        self.content.as_ref()
    }

    /// Forgets the content, as it may be damaged.
    pub(super) fn discard(mut self) {
        if let Some(content) = self.content.take() {
            let (index, key) = (Arc::clone(&self.cache.index), self.key.clone());
            self.cache.pool.spawn(move || index.discard(&key, &content));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // It may be the last one, which removes the file.
        if let Some(content) = self.content.take() {
            self.cache.pool.spawn(move || drop(content));
        }
    }
}
