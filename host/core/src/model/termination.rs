//! How a container ended.

use std::collections::BTreeMap;
use std::fmt;

use cofferdam_plugin_model::Value;
use serde::{Deserialize, Serialize};

/// How a container ended, as it is kept and reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Termination {
    /// The raw wait status of its command, as `waitpid` gives it; `None` when it never ran.
    pub status: Option<i32>,
    /// Why it ended, if not by itself.
    pub reason: Option<Reason>,
    /// A sentence for people.
    pub message: Option<String>,
    /// What it used too much of, in the resources' units.
    pub limited: BTreeMap<String, Value>,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// Why a container ended, if not by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// Somebody asked for it.
    Killed,
    /// It could not be launched.
    LaunchFailed,
    /// An isolator said that it went over a limit; the Mesos name of the reason.
    Limitation(String),
    /// The container that it was nested in ended.
    ParentEnded,
    /// The agent found it after a restart in a state in which it could not go on.
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

/// A raw wait status, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ended {
    /// Takes a raw wait status apart.
    #[must_use]
    pub fn from_raw(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited(status >> 8 & 0xff),
            signal => Self::Signaled(signal),
        }
    }

    /// What a shell would make of it: the exit status, or 128 and the signal.
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
    /// The raw status, taken apart.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.status.map(Ended::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_status_is_read_as_the_kernel_means_it() {
        assert_eq!(Ended::from_raw(0), Ended::Exited(0));
        assert_eq!(Ended::from_raw(7 << 8), Ended::Exited(7));
        assert_eq!(Ended::from_raw(9).shell_code(), 137);
        assert_eq!(Ended::from_raw(11 | 0x80), Ended::Signaled(11));
        assert_eq!(Ended::from_raw(9).to_string(), "killed by SIGKILL");
    }
}
