//! When the agent stops waiting for a call.

use std::time::{Duration, Instant, SystemTime};

/// When the agent stops waiting for a call. A call that returns later has failed; what it did is undone by `cleanup`,
/// which is called after it has returned.
///
/// Pass [`Deadline::remaining`] to whatever the plugin waits for, so that it fails in time with an error of its own.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Limit>);

#[derive(Debug, Clone, Copy)]
struct Limit {
    at: SystemTime,
    /// The same moment, unaffected by changes of the system time.
    instant: Instant,
}

impl Deadline {
    /// From milliseconds since the Unix epoch; 0 is never.
    pub(crate) fn from_unix_ms(ms: u64) -> Self {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)).filter(|_| ms > 0);
        Self(at.and_then(|at| {
            let remaining = at.duration_since(SystemTime::now()).unwrap_or_default();
            Some(Limit { at, instant: Instant::now().checked_add(remaining)? })
        }))
    }

    /// The moment in system time; `None` if the agent waits forever.
    #[must_use]
    pub fn at(self) -> Option<SystemTime> {
        self.0.map(|limit| limit.at)
    }

    /// The time left: zero if the deadline has passed, [`Duration::MAX`] if the agent waits forever.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.map_or(Duration::MAX, |limit| limit.instant.saturating_duration_since(Instant::now()))
    }

    /// Whether the deadline has passed. Long loops should stop then.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_that_the_agent_waits_forever() {
        let never = Deadline::from_unix_ms(0);
        assert_eq!((never.at(), never.remaining()), (None, Duration::MAX));
        assert!(!never.has_passed());
    }

    #[test]
    fn a_deadline_is_a_moment_and_the_time_until_then() {
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
