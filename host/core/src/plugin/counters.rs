//! Call counters of a plugin, per method.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::view::CallCount;

#[derive(Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) nanos: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> CallCount {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CallCount {
            calls: read(&self.calls),
            failures: read(&self.failures),
            timeouts: read(&self.timeouts),
            panics: read(&self.panics),
            micros: read(&self.nanos) / 1000,
        }
    }
}
