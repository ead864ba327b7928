//! What the agent reports: plain data for the API, the CLI and programs that embed the agent.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::model::{ContainerClass, ContainerId, Phase, Request, Resources, Termination};

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Id of the container.
    pub id: ContainerId,
    /// Purpose of the container.
    pub class: ContainerClass,
    /// Current phase.
    pub phase: Phase,
    /// Pid of its first process in the agent's pid namespace, while there is one.
    pub pid: Option<i32>,
    /// Its command in one line.
    pub command: String,
    /// Time at which its launch began, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// How it ended; `None` until then.
    pub termination: Option<Termination>,
    /// Current resources and limits.
    pub resources: Resources,
    /// What prevents its cleanup, one sentence per step or plugin; empty otherwise.
    pub cleanup_errors: Vec<String>,
    /// How far the pull of its image is, while it waits for that.
    #[serde(default)]
    pub pull: Option<PullProgress>,
    /// How far the fetch of its files is, while it waits for that.
    #[serde(default)]
    pub fetch: Option<FetchProgress>,
}

/// How far the pull of an image is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Layers of the image. 0 as long as they are not known.
    pub layers: u64,
    /// Layers that are in the store.
    pub pulled_layers: u64,
    /// Bytes of the layers that were not in the store, compressed.
    pub bytes: u64,
    /// Bytes of these that were received.
    pub received: u64,
}

impl PullProgress {
    /// How many tenths of it are done, by its bytes.
    #[must_use]
    pub fn tenths(&self) -> u64 {
        match self.bytes {
            0 => 10 * u64::from(self.pulled_layers == self.layers),
            bytes => u64::try_from(u128::from(self.received) * 10 / u128::from(bytes)).unwrap_or(10).min(10),
        }
    }
}

/// How far the fetch of a container's files is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchProgress {
    /// Files to fetch.
    pub files: u64,
    /// Files that were fetched.
    pub fetched_files: u64,
    /// Size in bytes of the file that is being received, as it was announced. 0 if it is not known.
    pub bytes: u64,
    /// Bytes of that file that were received.
    pub received: u64,
}

/// Files from this size on are large: how far they are is told for each of them.
const LARGE: u64 = 1 << 20;

/// How much of a file is told at a time if its size is not known.
const UNKNOWN_STEP: u64 = 16 << 20;

impl FetchProgress {
    /// What differs when people may want to know about it: another tenth of the files, or of a large one.
    #[must_use]
    pub fn step(&self) -> (u64, Option<(u64, u64)>) {
        let Self { files, fetched_files, bytes, received } = *self;
        let tenths = |part: u64, all: u64| {
            u64::try_from(u128::from(part) * 10 / u128::from(all.max(1))).unwrap_or(10).min(10)
        };
        let is_large = bytes.max(received) >= LARGE;
        let of_file = if bytes == 0 { received / UNKNOWN_STEP } else { tenths(received, bytes) };
        (tenths(fetched_files, files), is_large.then_some((fetched_files, of_file)))
    }
}

/// All details of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Its summary.
    #[serde(flatten)]
    pub summary: Summary,
    /// The launch request.
    pub request: Request,
    /// Numeric user of its command.
    pub uid: u32,
    /// Directory of its files and logs.
    pub sandbox: PathBuf,
    /// Files that its output is written to.
    pub logs: Logs,
    /// The merged launch plan: each entry with the plugin that requested it.
    pub plan: Vec<PlanEntry>,
    /// The plugins that participate in it, in chain order.
    pub plugins: Vec<ParticipantView>,
}

/// Files that a container's output is written to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Its standard output.
    pub stdout: Option<PathBuf>,
    /// Its standard error.
    pub stderr: Option<PathBuf>,
    /// The file that the agent opened for standard output, if it opened one.
    #[serde(default)]
    pub stdout_file: Option<FileId>,
    /// The file that the agent opened for standard error, if it opened one.
    #[serde(default)]
    pub stderr_file: Option<FileId>,
    /// Whether the logger stores the times of the output, in files beside these.
    #[serde(default)]
    pub times: bool,
}

/// Identifies a file, whatever its path is: `device:inode`. The container may put another one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FileId {
    /// Number of the device.
    pub device: u64,
    /// Number of the inode on it.
    pub inode: u64,
}

impl FileId {
    /// The file of this metadata.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

impl From<FileId> for String {
    fn from(file: FileId) -> Self {
        file.to_string()
    }
}

impl TryFrom<String> for FileId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(device, inode)| {
            Some(Self { device: device.parse().ok()?, inode: inode.parse().ok()? })
        });
        numbers.ok_or_else(|| {
            format!("`{text}` is not a file; expected its device and inode, such as `2049:12`")
        })
    }
}

/// One field of a launch plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Name of the field: `environment.PATH`, `operations`, `clone_namespaces`, ….
    pub field: String,
    /// Its value, in one line.
    pub value: String,
    /// The plugin that requested it, or `request` or `agent`.
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

/// Resource usage of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageView {
    /// Time of the measurement, in seconds since the Unix epoch.
    pub timestamp: f64,
    /// Figures by their names in Mesos' `ResourceStatistics`.
    pub statistics: BTreeMap<String, Json>,
    /// The plugin that reported each figure.
    pub owners: BTreeMap<String, String>,
    /// Plugins whose call failed, with the error.
    pub failed: BTreeMap<String, String>,
}

/// Status of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Fields by their names in Mesos' `ContainerStatus`.
    pub status: BTreeMap<String, Json>,
    /// The plugin that reported each field.
    pub owners: BTreeMap<String, String>,
    /// Plugins whose call failed, with the error.
    pub failed: BTreeMap<String, String>,
}

/// What to report about containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WantedReports {
    /// Their resource usage.
    pub usage: bool,
    /// Their status.
    pub status: bool,
    /// How long to wait for the reports. What is not known then is left out. Without it, until the plugins' timeouts.
    pub within: Option<Duration>,
}

impl WantedReports {
    /// Everything.
    pub const ALL: Self = Self { usage: true, status: true, within: None };
    /// Resource usage.
    pub const USAGE: Self = Self { usage: true, status: false, within: None };
    /// Status.
    pub const STATUS: Self = Self { usage: false, status: true, within: None };
}

/// What is reported about a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its resource usage, if it was requested and the container is running.
    pub usage: Option<UsageView>,
    /// Its status, on the same conditions.
    pub status: Option<StatusView>,
}

/// A call that was in progress when the agent died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptedCall {
    /// The plugin.
    pub plugin: String,
    /// The method.
    pub method: String,
    /// The container; empty if the call was not about one.
    pub container: String,
    /// When it began, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

/// A loaded plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginView {
    /// Its name.
    pub name: String,
    /// `isolator` or `logger`.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// Version of the plugin API it was built against.
    pub api: String,
    /// Its purpose in one sentence.
    pub description: String,
    /// The file it was loaded from.
    pub file: PathBuf,
    /// SHA-256 of the file when it was loaded.
    pub sha256: String,
    /// The methods it implements.
    pub methods: Vec<String>,
    /// Whether it participates in nested containers.
    pub nesting: bool,
    /// Whether it participates in standalone containers.
    pub standalone: bool,
    /// `ok`, `quarantined` or `out of service`.
    pub health: String,
    /// The reason, if `health` is not `ok`.
    pub health_reason: Option<String>,
    /// Calls during which the previous agent died; the plugin may have ended it.
    #[serde(default)]
    pub interrupted_calls: Vec<InterruptedCall>,
    /// Calls by method.
    pub calls: BTreeMap<String, CallCount>,
    /// What it has lost, if it is a logger.
    #[serde(default)]
    pub lost_output: Option<LostOutputView>,
}

/// Bytes of output of containers that a logger has counted as lost since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostOutputView {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

/// A call of a plugin about a container that is in progress.
#[derive(Debug, Clone, PartialEq)]
pub struct CallInProgress {
    /// The plugin.
    pub plugin: String,
    /// The method.
    pub method: String,
    /// Id of the container.
    pub container: String,
    /// For how long, in seconds.
    pub seconds: f64,
}

/// Counters of the calls of a method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// All calls.
    pub calls: u64,
    /// Calls that returned an error.
    pub failures: u64,
    /// Calls that timed out.
    pub timeouts: u64,
    /// Calls that panicked.
    pub panics: u64,
    /// Total time of all calls, in microseconds.
    pub micros: u64,
}

impl UsageView {
    /// The figure `name`, if it is a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.statistics.get(name)?.as_f64()
    }
}

/// What is known of the keepers, the processes that create those of containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepersView {
    /// Pid of the keeper of new containers. `None` if it was killed; the next launch starts another one.
    pub pid: Option<i32>,
    /// Number of keepers that serve only containers of earlier agents.
    pub older: u64,
    /// How many keepers were killed, or did not answer, since the agent started.
    pub lost: u64,
}
