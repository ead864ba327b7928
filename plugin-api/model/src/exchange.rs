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
    /// Description of the agent.
    pub agent: AgentInfo,
    /// Directory for this plugin only, which does not survive a reboot; absolute. The plugin creates it if it needs it.
    pub runtime_directory: PathBuf,
    /// Directory for this plugin only, which survives a reboot; absolute. The plugin creates it if it needs it.
    pub work_directory: PathBuf,
    /// The plugin's own file: the private copy that the agent has loaded; absolute. It is there for as long as the agent
    /// runs. Feature `agent.companions`.
    pub file: PathBuf,
}

/// Description of an agent: its version, features and environment.
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
    /// Directory of the cgroup for processes that plugins start and that outlive the agent; absolute, v1 or v2. `None` if
    /// the agent manages no cgroups. Feature `agent.companions`.
    pub companion_cgroup: Option<PathBuf>,
    /// What limits what it can give to containers. A plugin need not be in its process. Feature `agent.process`.
    pub process: AgentProcess,
}

/// The attributes of an agent's process that bound those of its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentProcess {
    /// Its permitted capabilities: bit n for capability n.
    pub permitted_capabilities: u64,
    /// Its bounding capabilities: bit n for capability n.
    pub bounding_capabilities: u64,
    /// Its hard resource limits, by name without `RLIMIT_`, such as `NOFILE`. Those that are unlimited are missing.
    pub hard_limits: BTreeMap<String, u64>,
}

/// Request of `recover`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecoverRequest {
    /// Running containers that the plugin has prepared, possibly in another version.
    pub containers: Vec<Recovered>,
    /// Other containers for which `cleanup` will be called. They may still be running: the agent has not destroyed them
    /// yet, or they were launched without the plugin. Resources of the plugin that belong neither to these nor to
    /// `containers` are left over, and the plugin removes them.
    pub orphans: Vec<ContainerId>,
}

/// A running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recovered {
    /// The container.
    pub id: ContainerId,
    /// Its details, including the plugin's state.
    #[serde(default)]
    pub details: ContainerDetails,
    /// The version of the plugin that wrote the state; `None` if there is no state.
    #[serde(default)]
    pub written_by: Option<Version>,
}

/// Reply of `recover`. A container without a verdict is accepted with its current state.
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
    /// The plugin accepts the container, with a new state.
    Migrated {
        /// The new state.
        state: Json,
    },
    /// This version of the plugin cannot handle the container and has changed nothing. The container keeps running.
    Refused {
        /// Why, and what the operator can do.
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
    /// The requests of the plugin for the launch.
    pub launch: LaunchInfo,
    /// The plugin's state for the container, on disk before the container runs; unchanged if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Json>,
}

/// Reply of `isolate` and `update`, and payload of failures of calls for one container.
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
    /// Details of the container; `resources` are the old ones.
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
    /// The container that must end, if it is not that of the call; of the same tree.
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
    /// Adds a number or a structured value. Null is omitted; NaN and infinities are encoded as null.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        let value = value.into();
        if !value.is_null() {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// The number of that name; `None` if there is none.
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
    /// Files in which the output can be read, if they are not those of `stdout` and `stderr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<LogFiles>,
    /// Environment variables for the container's command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The plugin's state for the container, on disk before the container runs; unchanged if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Json>,
}

/// Files in which a container's output can be read. They need not exist yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogFiles {
    /// Standard output: the current file, absolute. Rotated ones have `.1`, `.2`, … appended, the newest first, and `.gz` if
    /// they are compressed. The gzip header then has an extra field `CF` of 16 bytes: device and inode of the file that was
    /// compressed, little-endian, for readers that have it open.
    pub stdout: Option<PathBuf>,
    /// Standard error, likewise.
    pub stderr: Option<PathBuf>,
    /// Whether the times of the output are in files beside those of the output, whose names end in `.times`. They
    /// consist of pairs of two 64-bit numbers, little-endian: an offset in the file and the nanoseconds since the Unix
    /// epoch at which the bytes from there on were read from the container. Both only grow. Feature `logger.times`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub times: bool,
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
