//! How the limit of descriptors (`RLIMIT_NOFILE`) is divided: whatever many of something can need has a share, so that
//! nothing else fails for lack of a descriptor.

use std::num::NonZeroUsize;

use rustix::process::{Resource, getrlimit};

/// Threads for blocking work, not counting those of abandoned jobs.
const MAX_THREADS: usize = 64;

/// Threads that remove large trees, of which each has some directories open.
const MAX_REMOVALS: usize = 4;

/// The most descriptors that a thread needs: for its namespaces, and for the container that it is working for.
const PER_THREAD: usize = 16;

/// Containers whose descriptors stay in the table of the process for a while.
const MAX_RECENT: usize = 128;

/// The most descriptors of such a container.
const PER_RECENT: usize = 4;

/// The shares of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Threads for blocking work.
    pub(crate) threads: NonZeroUsize,
    /// Threads that remove large trees.
    pub(crate) removals: NonZeroUsize,
    /// Containers whose descriptors stay in the table of the process for a while.
    pub(crate) recent: usize,
}

impl Shares {
    /// The shares of the current limit of this process. What is left is for the embedder, connections among it.
    pub(crate) fn current() -> Self {
        Self::of(getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize))
    }

    fn of(limit: usize) -> Self {
        let threads = (limit / 2 / PER_THREAD).clamp(1, MAX_THREADS);
        let removals = (limit / 8 / PER_THREAD).clamp(1, MAX_REMOVALS);
        let recent = (limit / 8 / PER_RECENT).clamp(1, MAX_RECENT);
        let at_least_one = |count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Self { threads: at_least_one(threads), removals: at_least_one(removals), recent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_any_limit_is_left() {
        for limit in [128, 256, 1024, 4096, 1 << 20, usize::MAX] {
            let Shares { threads, removals, recent } = Shares::of(limit);
            let used = (threads.get() + removals.get()) * PER_THREAD + recent * PER_RECENT;
            assert!(used <= limit / 8 * 7, "{limit}");
        }
        let shares = |threads, removals, recent| Shares {
            threads: NonZeroUsize::new(threads).unwrap(),
            removals: NonZeroUsize::new(removals).unwrap(),
            recent,
        };
        assert_eq!(Shares::of(20_000), shares(64, 4, 128));
        assert_eq!(Shares::of(256), shares(8, 2, 8));
    }
}
