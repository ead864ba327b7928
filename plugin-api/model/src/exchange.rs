//! What is said in each call, and what is answered.

use std::collections::BTreeMap;
use std::path::PathBuf;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{ContainerDetails, ContainerId, LaunchInfo, Resources};

/// Said once, when a plugin is made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateRequest {
    /// The plugin's own table of the configuration file.
    pub config: Json,
    /// The name the plugin goes by in this agent.
    pub name: String,
    /// The agent's version.
    pub agent: String,
    /// A folder of the plugin's own that is gone after a reboot; the plugin makes it if it needs it.
    pub runtime_directory: PathBuf,
    /// A folder of the plugin's own that survives a reboot; the plugin makes it if it needs it.
    pub work_directory: PathBuf,
}

/// Said once after a plugin was made: what is there already.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecoverRequest {
    /// Containers that run and that the plugin has prepared, perhaps in an earlier version of itself.
    pub containers: Vec<Recovered>,
    /// Containers that will be cleaned up, sooner or later. They may still run: the agent has yet to end them, or
    /// they were launched without the plugin. Whatever else the plugin finds of its own on the host belongs to
    /// nobody, and is the plugin's to remove.
    pub orphans: Vec<ContainerId>,
}

/// A container that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recovered {
    /// Its id.
    pub id: ContainerId,
    /// What is known of it, with the state that the plugin left with the agent.
    #[serde(default)]
    pub details: ContainerDetails,
    /// What it was given.
    #[serde(default)]
    pub resources: Resources,
    /// The version of the plugin that wrote the state; `None` when it left none.
    #[serde(default)]
    pub written_by: Option<Version>,
}

/// What a plugin makes of the containers it was told of. One that is not mentioned is accepted as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecoverReply {
    /// By container.
    pub verdicts: BTreeMap<ContainerId, Verdict>,
}

/// What a plugin makes of one container it was told of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// It is served, and this is to be kept for it from now on.
    Migrated {
        /// The new state.
        state: Json,
    },
    /// This version of the plugin cannot serve it. Nothing was changed; the container goes on unharmed.
    Refused {
        /// Why, and what would help.
        reason: String,
    },
    /// Something a newer plugin knows.
    #[serde(other)]
    Unknown,
}

/// The answer of an isolator's `prepare`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareReply {
    /// What the plugin wishes for the launch.
    pub launch: LaunchInfo,
    /// What the agent is to keep for the plugin; on disk before the container runs.
    pub state: Json,
}

/// A container's resources change.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateRequest {
    /// What is known of the container.
    pub details: ContainerDetails,
    /// What it is to have from now on.
    pub resources: Resources,
}

/// The answer of `update`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateReply {
    /// What the agent is to keep from now on; `None` leaves it as it is.
    pub state: Option<Json>,
}

/// A container went over a limit and must end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limitation {
    /// One of the Mesos reasons, such as `REASON_CONTAINER_LIMITATION_MEMORY`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// How much of which resource was in use, in the resources' units.
    pub resources: BTreeMap<String, f64>,
}

/// How much a container uses: the fields of the Mesos `ResourceStatistics`, by name and in its units.
///
/// Names end in their unit (`_secs`, `_bytes`); the rest are counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usage(pub BTreeMap<String, f64>);

impl Usage {
    /// Adds one figure.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }
}

/// What a plugin says of a container's present state: the fields of the Mesos `ContainerStatus`, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Status(pub BTreeMap<String, Json>);

impl Status {
    /// Adds one field.
    #[must_use]
    pub fn with(mut self, name: &str, value: Json) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }
}

/// The answer of a logger's `prepare`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggerReply {
    /// Where the container reads from.
    pub stdin: Stream,
    /// Where its standard output goes.
    pub stdout: Stream,
    /// Where its standard error goes.
    pub stderr: Stream,
    /// What the agent is to keep for the plugin; on disk before the container runs.
    pub state: Json,
}

/// One end of a container's input or output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stream {
    /// `/dev/null`.
    #[default]
    Null,
    /// A file of the host: opened for reading as input, made if missing and appended to as output. Made
    /// files belong to the container's user.
    Path {
        /// Absolute.
        path: PathBuf,
    },
    /// A descriptor that travels with the answer; the agent owns it from then on.
    Descriptor {
        /// Its place among the descriptors of the answer.
        index: usize,
    },
    /// Something a newer plugin knows.
    #[serde(other)]
    Unknown,
}
