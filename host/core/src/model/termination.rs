//! How a container ended.

use std::collections::BTreeMap;
use std::fmt;

use cofferdam_plugin_model::Value;
use serde::{Deserialize, Serialize};

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Termination {
    /// Raw wait status of its command, from waitpid(2); `None` if it never ran.
    pub status: Option<i32>,
    /// Why it ended, unless its command exited by itself.
    pub reason: Option<Reason>,
    /// The reason as a sentence.
    pub message: Option<String>,
    /// Usage of the resources whose limit was exceeded, in their units.
    pub limited: BTreeMap<String, Value>,
    /// Time of the end, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// Why a container ended, unless its command exited by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// A client requested it.
    Killed,
    /// It could not be launched.
    LaunchFailed,
    /// An isolator reported a limitation; the Mesos name of the reason.
    Limitation(String),
    /// Its parent container ended.
    ParentEnded,
    /// After a restart, the agent could not recover it.
    Unrecoverable,
    /// The machine was restarted.
    Rebooted,
}

impl Reason {
    /// The name in the Mesos API.
    #[must_use]
    pub fn mesos_name(&self) -> &str {
        match self {
            Self::Killed => "REASON_CONTAINER_KILLED",
            Self::LaunchFailed => "REASON_CONTAINER_LAUNCH_FAILED",
            Self::Limitation(reason) => reason,
            Self::ParentEnded => "REASON_CONTAINER_PARENT_ENDED",
            Self::Unrecoverable => "REASON_CONTAINER_UNRECOVERABLE",
            Self::Rebooted => "REASON_AGENT_REBOOTED",
        }
    }
}

/// A decoded wait status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Exited with this status.
    Exited(i32),
    /// Killed by this signal.
    Signaled(i32),
}

impl Ended {
    /// Decodes a raw wait status.
    #[must_use]
    pub fn from_raw(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited(status >> 8 & 0xff),
            signal => Self::Signaled(signal),
        }
    }

    /// The status that a shell reports: the exit status, or 128 plus the signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Signaled(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
        }
    }
}

impl Termination {
    /// The decoded wait status.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.status.map(Ended::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_decoded() {
        assert_eq!(Ended::from_raw(0), Ended::Exited(0));
        assert_eq!(Ended::from_raw(7 << 8), Ended::Exited(7));
        assert_eq!(Ended::from_raw(9).shell_code(), 137);
        assert_eq!(Ended::from_raw(11 | 0x80), Ended::Signaled(11));
        assert_eq!(Ended::from_raw(9).to_string(), "killed by SIGKILL");
    }
}
