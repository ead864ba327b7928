//! What the fetcher counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start of an agent.
#[derive(Debug, Default)]
pub(super) struct FetchCounters {
    pub(super) succeeded: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) bypasses: AtomicU64,
    pub(super) evictions: AtomicU64,
}

/// What the fetcher has done since the start of the agent, and how much is in its cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Containers of which all files were fetched.
    pub succeeded: u64,
    /// Containers of which a file could not be fetched.
    pub failed: u64,
    /// Files that the cache had, and that were the same where they come from.
    pub hits: u64,
    /// Files that were fetched for the cache.
    pub misses: u64,
    /// Files that were to be cached and were fetched without the cache, such as those that do not fit into it.
    pub bypasses: u64,
    /// Files that were removed from the cache for others.
    pub evictions: u64,
    /// Maximum size of the cache in bytes; 0 without one.
    pub cache_size: u64,
    /// Bytes of the files in the cache, and of those that are being fetched for it.
    pub cache_used: u64,
    /// Files in the cache.
    pub cache_files: u64,
}

impl FetchCounters {
    pub(super) fn read(&self) -> FetchStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchStats {
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            hits: read(&self.hits),
            misses: read(&self.misses),
            bypasses: read(&self.bypasses),
            evictions: read(&self.evictions),
            ..FetchStats::default()
        }
    }
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
