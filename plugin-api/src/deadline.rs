//! Deadlines of calls.

use std::time::{Duration, Instant, SystemTime};

/// Time at which the agent stops waiting for a call. A call that returns later has failed. After it has returned, the
/// agent calls `cleanup`, which undoes its effects.
///
/// Use [`Deadline::remaining`] as the timeout of operations that may block, so that the call fails in time with an
/// error that names the operation.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Limit>);

#[derive(Debug, Clone, Copy)]
struct Limit {
    at: SystemTime,
    /// The same time on the monotonic clock, which changes of the system time do not affect.
    instant: Instant,
}

impl Deadline {
    /// From milliseconds since the Unix epoch; 0 for no deadline.
    pub(crate) fn from_unix_ms(ms: u64) -> Self {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)).filter(|_| ms > 0);
        Self(at.and_then(|at| {
            let remaining = at.duration_since(SystemTime::now()).unwrap_or_default();
            Some(Limit { at, instant: Instant::now().checked_add(remaining)? })
        }))
    }

    /// The deadline in system time; `None` if there is none.
    #[must_use]
    pub fn at(self) -> Option<SystemTime> {
        self.0.map(|limit| limit.at)
    }

    /// The remaining time: zero if the deadline has passed, [`Duration::MAX`] if there is none.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.map_or(Duration::MAX, |limit| limit.instant.saturating_duration_since(Instant::now()))
    }

    /// Whether the deadline has passed. Long loops should check this and return an error.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_no_deadline() {
        let never = Deadline::from_unix_ms(0);
        assert_eq!((never.at(), never.remaining()), (None, Duration::MAX));
        assert!(!never.has_passed());
    }

    #[test]
    fn remaining_is_the_time_until_the_deadline() {
        let hour = Duration::from_secs(3600);
        let at = SystemTime::now() + hour;
        let ms = u64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let deadline = Deadline::from_unix_ms(ms);
        assert_eq!(deadline.at().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        assert!(deadline.remaining() <= hour && deadline.remaining() > hour / 2);
        let past = Deadline::from_unix_ms(1);
        assert_eq!(past.remaining(), Duration::ZERO);
        assert!(past.has_passed());
    }
}
