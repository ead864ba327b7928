//! How far a container is, and what may happen next.
//!
//! ```text
//! Starting ─▶ Provisioning ─▶ Preparing ─▶ Isolating ─▶ Fetching ─▶ Running
//!     │             │             │            │            │          │
//!     └─────────────┴─────────────┴────────────┴────────────┴──────────┴──▶ Destroying ─▶ Ended
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Its intent is on record; nothing of it exists.
    Starting,
    /// Its root file system is being found.
    Provisioning,
    /// The chain is being asked what it needs; then its first process is made, which waits.
    Preparing,
    /// The isolators get hold of its first process.
    Isolating,
    /// Its files are being brought in.
    Fetching,
    /// Its command runs.
    Running,
    /// It is being ended and undone.
    Destroying,
    /// Nothing is left of it but its record and its sandbox.
    Ended,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The launch began.
    Began,
    /// Its root file system was found.
    Provisioned,
    /// The chain is ready and its first process waits.
    Prepared,
    /// The isolators have hold of it.
    Isolated,
    /// Its files are there and its command was started.
    Started,
    /// It must end, or has.
    Ending,
    /// Everything was undone.
    Cleaned,
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a container that is {phase} cannot see `{event:?}`")]
pub struct OutOfOrder {
    /// How far the container was.
    pub phase: Phase,
    /// What was to happen.
    pub event: Event,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Provisioning,
        Self::Preparing,
        Self::Isolating,
        Self::Fetching,
        Self::Running,
        Self::Destroying,
        Self::Ended,
    ];

    /// The phase after an event.
    ///
    /// # Errors
    /// [`OutOfOrder`] when it cannot happen in this phase.
    pub fn after(self, event: Event) -> Result<Self, OutOfOrder> {
        use Event as E;
        match (self, event) {
            (Self::Starting, E::Began) => Ok(Self::Provisioning),
            (Self::Provisioning, E::Provisioned) => Ok(Self::Preparing),
            (Self::Preparing, E::Prepared) => Ok(Self::Isolating),
            (Self::Isolating, E::Isolated) => Ok(Self::Fetching),
            (Self::Fetching, E::Started) => Ok(Self::Running),
            (Self::Destroying, E::Cleaned) => Ok(Self::Ended),

            // Every life has one way out, and asking twice is not an error.
            (Self::Ended, E::Ending) => Ok(Self::Ended),
            (_, E::Ending) => Ok(Self::Destroying),

            (phase, event) => Err(OutOfOrder { phase, event }),
        }
    }

    /// Whether the container may still be there in some way.
    #[must_use]
    pub fn is_live(self) -> bool {
        self != Self::Ended
    }

    /// The name in the API, in records and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Provisioning => "PROVISIONING",
            Self::Preparing => "PREPARING",
            Self::Isolating => "ISOLATING",
            Self::Fetching => "FETCHING",
            Self::Running => "RUNNING",
            Self::Destroying => "DESTROYING",
            Self::Ended => "ENDED",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 7] = [
        Event::Began,
        Event::Provisioned,
        Event::Prepared,
        Event::Isolated,
        Event::Started,
        Event::Ending,
        Event::Cleaned,
    ];

    #[test]
    fn the_way_up_is_one_straight_line() {
        let mut phase = Phase::Starting;
        for (event, next) in EVENTS.into_iter().zip(Phase::ALL.into_iter().skip(1)) {
            if event == Event::Ending {
                break;
            }
            phase = phase.after(event).unwrap();
            assert_eq!(phase, next);
        }
        assert_eq!(phase, Phase::Running);
    }

    #[test]
    fn every_phase_can_end_and_only_one_event_leads_on_from_it() {
        for phase in Phase::ALL {
            let leads_on: Vec<Event> =
                EVENTS.into_iter().filter(|&e| e != Event::Ending && phase.after(e).is_ok()).collect();
            let expected = usize::from(!matches!(phase, Phase::Running | Phase::Ended));
            assert_eq!(leads_on.len(), expected, "{phase} goes on with {leads_on:?}");
            let down = phase.after(Event::Ending).unwrap();
            assert!(matches!(down, Phase::Destroying | Phase::Ended));
        }
    }
}
