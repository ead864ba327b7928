//! Requests and replies of the methods.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Cgroups, ContainerDetails, ContainerId, LaunchInfo, Resources};

/// Request of `create`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateRequest {
    /// The plugin's own table of the configuration.
    pub config: Json,
    /// The plugin's name in the chain.
    pub name: String,
    /// What the agent is and provides.
    pub agent: AgentInfo,
    /// Directory of the plugin's own that is gone after a reboot; the plugin creates it if it needs it.
    pub runtime_directory: PathBuf,
    /// Directory of the plugin's own that survives a reboot; the plugin creates it if it needs it.
    pub work_directory: PathBuf,
}

/// What an agent is and provides.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentInfo {
    /// Version of the agent.
    pub version: String,
    /// Features of the plugin API that it supports, see [`FEATURES`](crate::FEATURES).
    pub features: BTreeSet<String>,
    /// Its launcher: `linux` or `posix`.
    pub launcher: String,
    /// The mounted cgroup hierarchies; `path` is the parent of all container cgroups.
    pub cgroups: Cgroups,
    /// Resources of the node.
    pub resources: Resources,
    /// Names of the isolators, in chain order.
    pub chain: Vec<String>,
}

/// Request of `recover`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecoverRequest {
    /// Running containers that the plugin has prepared, perhaps in an earlier version.
    pub containers: Vec<Recovered>,
    /// Containers that will be cleaned up sooner or later. They may still be running: the agent has yet to destroy
    /// them, or they were launched without the plugin. Everything else of the plugin's own on the host belongs to
    /// no container, and is the plugin's to remove.
    pub orphans: Vec<ContainerId>,
}

/// A running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recovered {
    /// The container.
    pub id: ContainerId,
    /// What is known of it, with the plugin's state.
    #[serde(default)]
    pub details: ContainerDetails,
    /// The version of the plugin that wrote the state; `None` if there is no state.
    #[serde(default)]
    pub written_by: Option<Version>,
}

/// Reply of `recover`. A container that is not mentioned is accepted as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecoverReply {
    /// Verdicts by container.
    pub verdicts: BTreeMap<ContainerId, Verdict>,
}

/// Verdict of a plugin on a container that it recovered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Verdict {
    /// The plugin serves it, with a new state.
    Migrated {
        /// The new state.
        state: Json,
    },
    /// This version of the plugin cannot serve it, and has changed nothing. The container continues.
    Refused {
        /// Why, and what would help.
        reason: String,
    },
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// Reply of an isolator's `prepare`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareReply {
    /// What the plugin requests for the launch.
    pub launch: LaunchInfo,
    /// The plugin's state for the container, on disk before the container runs; unchanged if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Json>,
}

/// Reply of `isolate` and `update`, and payload of every failure of a call about one container: the only thing it may
/// change is the state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateReply {
    /// The plugin's new state for the container; unchanged if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Json>,
}

/// Request of `update`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateRequest {
    /// What is known of the container; `resources` are the old ones.
    pub details: ContainerDetails,
    /// The new resources.
    pub resources: Resources,
}

/// Reply of `limitation`: a container exceeded a limit and must end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limitation {
    /// A Mesos reason, such as `REASON_CONTAINER_LIMITATION_MEMORY`.
    pub reason: String,
    /// The reason as a sentence.
    pub message: String,
    /// Usage of the resources whose limit was exceeded, by name: scalars, ranges or sets.
    pub resources: BTreeMap<String, crate::Value>,
    /// The container of the same tree that must end, if it is not the one that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
}

/// Resource usage of a container: fields of the Mesos `ResourceStatistics` by name, in its units. Values are numbers,
/// or structured where Mesos has messages (`disk_statistics`, `net_snmp_statistics`, …).
///
/// Names of numbers end in their unit (`_secs`, `_bytes`); others are counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usage(pub BTreeMap<String, Json>);

impl Usage {
    /// Adds a number or a structured value. Null, which NaN and infinities become, is left out.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        let value = value.into();
        if !value.is_null() {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// The number of that name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.as_f64()
    }
}

/// Status of a container: fields of the Mesos `ContainerStatus` by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Status(pub BTreeMap<String, Json>);

impl Status {
    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: Json) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }
}

/// Reply of a logger's `prepare`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoggerReply {
    /// Source of the standard input.
    pub stdin: Stream,
    /// Destination of the standard output.
    pub stdout: Stream,
    /// Destination of the standard error.
    pub stderr: Stream,
    /// Files in which the output can be read, if other than those of `stdout` and `stderr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<LogFiles>,
    /// Environment variables for the container's command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The plugin's state for the container, on disk before the container runs; unchanged if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Json>,
}

/// Files in which a container's output can be read. A missing one is being created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogFiles {
    /// Standard output: the current file, absolute. Rotated ones have `.1`, `.2`, … appended, the newest first.
    pub stdout: Option<PathBuf>,
    /// Standard error, likewise.
    pub stderr: Option<PathBuf>,
}

/// Source or destination of a standard stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Stream {
    /// `/dev/null`.
    #[default]
    Null,
    /// A file of the host: read as input, created if missing and appended to as output. Created files belong to the
    /// container's user.
    Path {
        /// Absolute.
        path: PathBuf,
    },
    /// A descriptor of the reply, which the agent owns from then on.
    Descriptor {
        /// Its index in the reply.
        index: usize,
    },
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}
