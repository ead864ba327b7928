//! How a task is killed: a request to end, and force after a grace period.

use std::time::{Duration, Instant};

use crate::message::after;

/// The grace period of tasks without a kill policy, as in Mesos.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(3);

/// Why a task is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The agent asked for it, or another task of the group has failed.
    Requested,
    /// Too many health checks have failed.
    Unhealthy,
    /// It ran longer than it may.
    CompletionTime,
}

/// A task that is being killed.
#[derive(Debug)]
pub(crate) struct Kill {
    pub(crate) cause: Cause,
    begun: Instant,
    /// When it is killed by force; `None` is never.
    deadline: Option<Instant>,
    is_forced: bool,
}

impl Kill {
    pub(crate) fn new(cause: Cause, grace: Duration, now: Instant) -> Self {
        Self { cause, begun: now, deadline: after(now, grace), is_forced: false }
    }

    /// Another kill of the same task, whose grace period counts from the first one.
    pub(crate) fn adjust(&mut self, grace: Duration) {
        if !self.is_forced {
            self.deadline = after(self.begun, grace);
        }
    }

    /// Whether it is time for force, once.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let is_due = !self.is_forced && self.deadline.is_some_and(|deadline| deadline <= now);
        self.is_forced |= is_due;
        is_due
    }

    /// Whether force was used.
    pub(crate) fn is_forced(&self) -> bool {
        self.is_forced
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.is_forced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_kill_changes_the_grace_period_of_the_first() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut kill = Kill::new(Cause::Requested, 10 * second, now);
        assert!(!kill.expire(now + 9 * second));
        kill.adjust(5 * second);
        assert_eq!(kill.deadline(), Some(now + 5 * second));
        assert!(kill.expire(now + 9 * second));
        assert!(!kill.expire(now + 10 * second), "once");
        kill.adjust(20 * second);
        assert_eq!(kill.deadline(), None);
    }

    #[test]
    fn an_endless_grace_period_is_no_error() {
        let kill = Kill::new(Cause::Requested, Duration::MAX, Instant::now());
        assert_eq!(kill.deadline(), None);
    }
}
