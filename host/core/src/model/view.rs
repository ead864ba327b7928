//! What the agent shows of itself: plain data for the API, the CLI and whoever embeds it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::model::{ContainerClass, ContainerId, Phase, Request, Resources, Termination};

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id.
    pub id: ContainerId,
    /// What it is for.
    pub class: ContainerClass,
    /// How far it is.
    pub phase: Phase,
    /// Its first process as the host sees it, while there is one.
    pub pid: Option<i32>,
    /// What it runs, in one line.
    pub command: String,
    /// When its launch began, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// How it ended, once it has.
    pub termination: Option<Termination>,
    /// What it may use.
    pub resources: Resources,
    /// What prevents its cleanup, one sentence per step or plugin; empty otherwise.
    pub cleanup_errors: Vec<String>,
}

/// Everything that is known of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// As in a list.
    #[serde(flatten)]
    pub summary: Summary,
    /// What was asked for.
    pub request: Request,
    /// The directory with its files and logs.
    pub sandbox: PathBuf,
    /// Where its output went, if to files.
    pub logs: Logs,
    /// The merged launch plan: each entry with the plugin that asked for it.
    pub plan: Vec<PlanEntry>,
    /// The plugins that participate in it, in chain order.
    pub plugins: Vec<ParticipantView>,
}

/// Where a container's output goes, if to files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Its standard output.
    pub stdout: Option<PathBuf>,
    /// Its standard error.
    pub stderr: Option<PathBuf>,
}

/// One field of a launch plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Which field: `environment.PATH`, `operations`, `clone_namespaces`, ….
    pub field: String,
    /// Its value, in one line.
    pub value: String,
    /// The plugin that asked for it, or `request` or `agent`.
    pub owner: String,
}

/// Participation of a plugin in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParticipantView {
    /// The plugin.
    pub plugin: String,
    /// The version that wrote the state.
    pub version: Option<String>,
    /// The plugin's state for the container.
    pub state: Json,
    /// Why the plugin does not serve the container, if it does not.
    pub unavailable: Option<String>,
}

/// How much a container uses, and what could not be found out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageView {
    /// When it was read, in seconds since the Unix epoch.
    pub timestamp: f64,
    /// By name, as the Mesos `ResourceStatistics` has them.
    pub statistics: BTreeMap<String, Json>,
    /// Which plugin gave each figure.
    pub owners: BTreeMap<String, String>,
    /// Plugins that failed to answer, with why.
    pub failed: BTreeMap<String, String>,
}

/// How a container is, and what could not be found out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// By name, as the Mesos `ContainerStatus` has them.
    pub status: BTreeMap<String, Json>,
    /// Which plugin gave each field.
    pub owners: BTreeMap<String, String>,
    /// Plugins that failed to answer, with why.
    pub failed: BTreeMap<String, String>,
}

/// A plugin as the agent has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginView {
    /// Its name.
    pub name: String,
    /// `isolator` or `logger`.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// The plugin API it was built against.
    pub api: String,
    /// One sentence on what it is for.
    pub description: String,
    /// The file it came from.
    pub file: PathBuf,
    /// The SHA-256 of that file when it was loaded.
    pub sha256: String,
    /// The methods it implements.
    pub methods: Vec<String>,
    /// Whether it takes part in nested containers.
    pub nesting: bool,
    /// Whether it takes part in standalone containers.
    pub standalone: bool,
    /// `ok`, `quarantined` or `out of service`.
    pub health: String,
    /// Why, if it is not `ok`.
    pub health_reason: Option<String>,
    /// Calls by method.
    pub calls: BTreeMap<String, CallCount>,
}

/// How the calls of one method went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// All of them.
    pub calls: u64,
    /// Those that answered with an error.
    pub failures: u64,
    /// Those that timed out.
    pub timeouts: u64,
    /// Those that panicked.
    pub panics: u64,
    /// Time spent in all of them, in microseconds.
    pub micros: u64,
}

impl UsageView {
    /// The number of that name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.statistics.get(name)?.as_f64()
    }
}
