//! When an executor connects to its agent, and when it stops trying.

use std::time::{Duration, Instant};

use crate::environment::Recovery;
use crate::message::after;

/// The first pause between two attempts; each is twice as long as the one before.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// The state of the connection to the agent. It has no clock and no connection: it is asked and informed.
#[derive(Debug)]
pub(crate) struct Session {
    recovery: Recovery,
    backoff_max: Duration,
    was_subscribed: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next attempt is at `attempt`.
    Disconnected {
        since: Instant,
        attempt: Instant,
        backoff: Duration,
    },
    /// An attempt is being made.
    Connecting {
        since: Instant,
        backoff: Duration,
    },
    Subscribed {
        since: Instant,
    },
    /// The agent did not come back in time.
    Abandoned,
}

impl Session {
    pub(crate) fn new(recovery: Recovery, backoff_max: Duration, now: Instant) -> Self {
        let state = State::Disconnected { since: now, attempt: now, backoff: FIRST_BACKOFF };
        Self { recovery, backoff_max, was_subscribed: false, state }
    }

    /// Begins an attempt if it is time.
    pub(crate) fn begin_attempt(&mut self, now: Instant) -> bool {
        match self.state {
            State::Disconnected { since, attempt, backoff } if attempt <= now => {
                self.state = State::Connecting { since, backoff };
                true
            }
            _ => false,
        }
    }

    /// The agent has accepted the subscription.
    pub(crate) fn subscribed(&mut self, now: Instant) {
        self.was_subscribed = true;
        self.state = State::Subscribed { since: now };
    }

    /// The connection was lost, or the attempt has failed. `jitter` is a random number.
    pub(crate) fn lost(&mut self, now: Instant, jitter: u8) {
        let (since, backoff) = match self.state {
            State::Abandoned => return,
            State::Subscribed { .. } => (now, FIRST_BACKOFF),
            State::Disconnected { since, backoff, .. } | State::Connecting { since, backoff } => {
                (since, backoff)
            }
        };
        let backoff = backoff.min(self.backoff_max);
        // Executors whose agent has restarted shall not all come at the same time.
        let pause = backoff / 2 + backoff * u32::from(jitter) / 512;
        let attempt = after(now, pause).unwrap_or(now);
        self.state = State::Disconnected { since, attempt, backoff: backoff * 2 };
        self.expire(now);
    }

    /// The agent does not know the executor any more.
    pub(crate) fn abandon(&mut self) {
        self.state = State::Abandoned;
    }

    /// Whether the agent is to be regarded as gone for good.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state == State::Abandoned
    }

    /// Since when the executor is subscribed.
    pub(crate) fn subscribed_since(&self) -> Option<Instant> {
        match self.state {
            State::Subscribed { since } => Some(since),
            _ => None,
        }
    }

    /// To be called at [`Session::deadline`].
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.limit().is_some_and(|limit| limit <= now) {
            self.state = State::Abandoned;
        }
    }

    /// When something is to be done next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Disconnected { attempt, .. } => {
                Some(self.limit().map_or(attempt, |limit| limit.min(attempt)))
            }
            State::Connecting { .. } => self.limit(),
            State::Subscribed { .. } | State::Abandoned => None,
        }
    }

    fn limit(&self) -> Option<Instant> {
        let timeout =
            if self.was_subscribed { self.recovery.resubscription } else { self.recovery.registration };
        match self.state {
            State::Disconnected { since, .. } | State::Connecting { since, .. } => after(since, timeout),
            State::Subscribed { .. } | State::Abandoned => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECOVERY: Recovery =
        Recovery { registration: Duration::from_secs(60), resubscription: Duration::from_secs(60) };

    fn session(recovery: Recovery, now: Instant) -> Session {
        Session::new(recovery, Duration::from_secs(2), now)
    }

    #[test]
    fn without_recovery_the_first_loss_is_the_last() {
        let now = Instant::now();
        let mut session = session(Recovery { resubscription: Duration::ZERO, ..RECOVERY }, now);
        assert!(session.begin_attempt(now));
        session.lost(now, 0);
        assert!(!session.is_abandoned(), "it was never subscribed");
        let attempt = session.deadline().unwrap();
        assert!(session.begin_attempt(attempt));
        session.subscribed(attempt);
        session.lost(attempt, 0);
        assert!(session.is_abandoned());
        assert_eq!(session.deadline(), None);
    }

    #[test]
    fn an_attempt_without_answer_is_limited() {
        let now = Instant::now();
        let mut session = session(RECOVERY, now);
        assert!(session.begin_attempt(now));
        assert!(!session.begin_attempt(now), "one at a time");
        assert_eq!(session.deadline(), Some(now + Duration::from_secs(60)));
        session.expire(now + Duration::from_secs(59));
        assert!(!session.is_abandoned());
        session.expire(now + Duration::from_secs(60));
        assert!(session.is_abandoned());
    }

    proptest! {
        /// Whatever the random numbers are: pauses are bounded, and attempts end with the recovery timeout.
        #[test]
        fn attempts_are_paced_and_end(jitters in proptest::collection::vec(any::<u8>(), 200)) {
            let start = Instant::now();
            let mut session = session(RECOVERY, start);
            session.begin_attempt(start);
            session.subscribed(start);
            let (mut now, mut attempts) = (start, 0);
            session.lost(now, 0);
            for jitter in jitters {
                let next = session.deadline().unwrap();
                prop_assert!(next > now && next <= now + Duration::from_secs(2));
                now = next;
                session.expire(now);
                if session.is_abandoned() {
                    break;
                }
                prop_assert!(session.begin_attempt(now));
                attempts += 1;
                session.lost(now, jitter);
            }
            prop_assert!(session.is_abandoned());
            prop_assert_eq!(now, start + Duration::from_secs(60));
            prop_assert!((30..80).contains(&attempts), "{attempts} attempts");
        }
    }
}
