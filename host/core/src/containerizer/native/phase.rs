//! Phases of a native container, and the events of its launch that lead from one to the next. Any phase can be followed by
//! that of its end.
//!
//! ```text
//! Starting ─▶ Provisioning ─▶ Preparing ─▶ Isolating ─▶ Fetching ─▶ Running
//!     │             │             │            │            │          │
//!     └─────────────┴─────────────┴────────────┴────────────┴──────────┴──▶ Destroying ─▶ Ended
//! ```

use crate::model::Phase;

/// Events in the launch of a native container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Its intent is recorded and its directories exist.
    Begun,
    /// Its root file system was found.
    Provisioned,
    /// The plugins have prepared it and its first process was created.
    Prepared,
    /// The isolators have isolated its first process.
    Isolated,
    /// Its files were fetched and its command was started.
    Started,
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{event:?}` cannot happen to a container that is {phase}")]
pub(super) struct OutOfOrder {
    phase: Phase,
    event: Event,
}

/// The phase that follows an event.
pub(super) fn after(phase: Phase, event: Event) -> Result<Phase, OutOfOrder> {
    match (phase, event) {
        (Phase::Starting, Event::Begun) => Ok(Phase::Provisioning),
        (Phase::Provisioning, Event::Provisioned) => Ok(Phase::Preparing),
        (Phase::Preparing, Event::Prepared) => Ok(Phase::Isolating),
        (Phase::Isolating, Event::Isolated) => Ok(Phase::Fetching),
        (Phase::Fetching, Event::Started) => Ok(Phase::Running),
        (phase, event) => Err(OutOfOrder { phase, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCH: [Event; 5] =
        [Event::Begun, Event::Provisioned, Event::Prepared, Event::Isolated, Event::Started];

    /// The phases of a native container, in order.
    const NATIVE: [Phase; 6] = [
        Phase::Starting,
        Phase::Provisioning,
        Phase::Preparing,
        Phase::Isolating,
        Phase::Fetching,
        Phase::Running,
    ];

    #[test]
    fn a_launch_goes_through_the_phases_in_order() {
        let mut phase = Phase::Starting;
        for (event, next) in LAUNCH.into_iter().zip(NATIVE.into_iter().skip(1)) {
            phase = after(phase, event).unwrap();
            assert_eq!(phase, next);
        }
        assert_eq!(phase, Phase::Running);
    }

    #[test]
    fn every_phase_of_a_launch_has_one_successor() {
        for phase in NATIVE.into_iter().chain([Phase::Destroying, Phase::Ended]) {
            let successors = LAUNCH.into_iter().filter(|&event| after(phase, event).is_ok()).count();
            assert_eq!(successors, usize::from(phase < Phase::Running), "{phase}");
        }
    }
}
