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

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::counters::FetchCounters;
use super::{FetchError, FetchStats, Program};
use crate::blocking::WorkPool;
use crate::ledger::{LedgerError, Lock};
use crate::model::FetchProgress;
use download::Download;
use files::Files;
use index::{Content, Index};

/// Maximum number of entries.
const MAX_ENTRIES: usize = 10_000;

/// How long a container that ends waits for the end of a download that is cancelled with it.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

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
    active: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    downloads: HashMap<String, Active>,
    /// Tells a download from an earlier one of the same key.
    next: u64,
}

/// A download that containers wait for.
#[derive(Debug)]
struct Active {
    number: u64,
    waiting: usize,
    cancel: watch::Sender<bool>,
    progress: watch::Receiver<FetchProgress>,
    outcome: watch::Receiver<Option<Outcome>>,
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
    number: u64,
    progress: watch::Receiver<FetchProgress>,
    outcome: watch::Receiver<Option<Outcome>>,
    is_released: bool,
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
        Ok(Self { index: Arc::new(index), pool, active: Mutex::default() })
    }

    /// Begins a download, or waits for one that is in progress. Must be called in a tokio runtime.
    pub(super) fn wait(self: &Arc<Self>, wanted: Wanted, program: &Program) -> Waiting {
        let key = wanted.key();
        let mut table = self.active.lock();
        let (number, progress, outcome) = match table.downloads.get_mut(&key) {
            Some(active) => {
                active.waiting += 1;
                (active.number, active.progress.clone(), active.outcome.clone())
            }
            None => self.begin(&mut table, &key, wanted, program.clone()),
        };
        drop(table);
        Waiting { cache: Arc::clone(self), key, number, progress, outcome, is_released: false }
    }

    /// Begins a download that one container waits for.
    fn begin(
        self: &Arc<Self>,
        table: &mut Table,
        key: &str,
        wanted: Wanted,
        program: Program,
    ) -> (u64, watch::Receiver<FetchProgress>, watch::Receiver<Option<Outcome>>) {
        let number = table.next;
        table.next += 1;
        let (cancel, cancelled) = watch::channel(false);
        let (report, progress) = watch::channel(FetchProgress::default());
        let (end, outcome) = watch::channel(None);
        let active =
            Active { number, waiting: 1, cancel, progress: progress.clone(), outcome: outcome.clone() };
        table.downloads.insert(key.to_owned(), active);
        let (cache, key) = (Arc::clone(self), key.to_owned());
        let download = Download {
            index: Arc::clone(&self.index),
            pool: self.pool.clone(),
            key: key.clone(),
            wanted,
            program,
        };
        tokio::spawn(async move {
            let outcome = download.run(&report, cancelled).await.map_err(Arc::new);
            cache.forget(&key, number);
            // Before anybody knows: whoever has waited for the end of an agent finds its cache unlocked.
            drop(cache);
            end.send_replace(Some(outcome));
        });
        (number, progress, outcome)
    }

    /// Forgets a download that has ended, so that whoever needs the file from now on has it validated.
    fn forget(&self, key: &str, number: u64) {
        let mut table = self.active.lock();
        if table.downloads.get(key).is_some_and(|active| active.number == number) {
            table.downloads.remove(key);
        }
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
        mut each: impl FnMut(FetchProgress),
    ) -> Result<Option<Lease>, FetchError> {
        loop {
            let progress = *self.progress.borrow_and_update();
            each(progress);
            let changed = tokio::select! {
                biased;
                _ = self.outcome.wait_for(Option::is_some) => break,
                changed = self.progress.changed() => changed,
            };
            // Its task has ended.
            if changed.is_err() {
                break;
            }
        }
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let outcome = outcome.map_err(|_| FetchError::Interrupted)?.clone().ok_or(FetchError::Interrupted)?;
        let content = outcome.map_err(FetchError::Shared)?;
        Ok(content.map(|content| Lease {
            cache: Arc::clone(&self.cache),
            key: self.key.clone(),
            content: Some(content),
        }))
    }

    /// Does not wait any longer. If nobody else does, this returns when nothing of the download goes on, or after a while.
    pub(super) async fn leave(mut self) {
        if self.release() {
            let ended = self.outcome.wait_for(Option::is_some);
            drop(tokio::time::timeout(CANCEL_TIMEOUT, ended).await);
        }
    }

    /// Stops counting this container, once. Returns whether the download is cancelled, as it was the last one.
    fn release(&mut self) -> bool {
        if std::mem::replace(&mut self.is_released, true) {
            return false;
        }
        let mut table = self.cache.active.lock();
        let Some(active) = table.downloads.get_mut(&self.key).filter(|active| active.number == self.number)
        else {
            return false;
        };
        active.waiting -= 1;
        if active.waiting > 0 {
            return false;
        }
        active.cancel.send_replace(true);
        table.downloads.remove(&self.key);
        true
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.release();
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
