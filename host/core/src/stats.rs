//! Counters of the agent itself, as plain numbers. How they are exported is up to the embedder.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the launch duration buckets, in microseconds: 0.5 ms to 16 s, doubling.
pub const LAUNCH_BUCKETS_MICROS: [u64; 16] = {
    let mut bounds = [0; 16];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = 500 << i;
        i += 1;
    }
    bounds
};

/// Launch counters, updated by the agent.
#[derive(Debug, Default)]
pub(crate) struct LaunchCounters {
    started: AtomicU64,
    failed: AtomicU64,
    micros: AtomicU64,
    /// One more than there are bounds: the last one counts what exceeds all of them.
    buckets: [AtomicU64; LAUNCH_BUCKETS_MICROS.len() + 1],
}

/// Launches since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaunchStats {
    /// Launches that succeeded.
    pub started: u64,
    /// Launches that failed.
    pub failed: u64,
    /// Total duration of successful launches, from the request to the running command, in microseconds.
    pub micros: u64,
    /// Successful launches per bucket of [`LAUNCH_BUCKETS_MICROS`], not cumulative; the last entry counts those
    /// above all bounds.
    pub buckets: [u64; LAUNCH_BUCKETS_MICROS.len() + 1],
}

impl LaunchCounters {
    pub(crate) fn count_started(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LAUNCH_BUCKETS_MICROS.partition_point(|&bound| bound < micros);
        self.started.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> LaunchStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LaunchStats {
            started: read(&self.started),
            failed: read(&self.failed),
            micros: read(&self.micros),
            buckets: std::array::from_fn(|i| read(&self.buckets[i])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        let counters = LaunchCounters::default();
        for micros in [0, 500, 501, 16_384_001] {
            counters.count_started(Duration::from_micros(micros));
        }
        let stats = counters.read();
        assert_eq!((stats.started, stats.micros), (4, 16_385_002));
        assert_eq!((stats.buckets[0], stats.buckets[1], stats.buckets[16]), (2, 1, 1));
    }
}
