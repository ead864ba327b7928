//! Phases of a container.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Phase of a container. Which phases a container goes through depends on its containerizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// The launch is recorded; nothing of the container exists.
    Starting,
    /// Its root file system is being located.
    Provisioning,
    /// Plugins are being called to prepare it; then its first process is created, which waits.
    Preparing,
    /// Isolators isolate its first process.
    Isolating,
    /// Its files are being fetched.
    Fetching,
    /// Its image is being pulled.
    Pulling,
    /// Its volumes and its root file system are being mounted.
    Mounting,
    /// Its command is running.
    Running,
    /// It is being killed and cleaned up.
    Destroying,
    /// Only its record and its sandbox are left.
    Ended,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 10] = [
        Self::Starting,
        Self::Provisioning,
        Self::Preparing,
        Self::Isolating,
        Self::Fetching,
        Self::Pulling,
        Self::Mounting,
        Self::Running,
        Self::Destroying,
        Self::Ended,
    ];

    /// Whether anything but the record and the sandbox may exist.
    #[must_use]
    pub fn is_live(self) -> bool {
        self != Self::Ended
    }

    /// Name in the API, in records and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Provisioning => "PROVISIONING",
            Self::Preparing => "PREPARING",
            Self::Isolating => "ISOLATING",
            Self::Fetching => "FETCHING",
            Self::Pulling => "PULLING",
            Self::Mounting => "MOUNTING",
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
