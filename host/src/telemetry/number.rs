//! Counts and durations as the floating-point numbers of metrics.

use std::time::Duration;

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
pub(super) fn count(value: u64) -> f64 {
    value as f64
}

pub(super) fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}
