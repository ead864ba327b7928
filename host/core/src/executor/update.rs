//! Status updates of tasks.

use std::fmt;

use cofferdam_plugin_model::ContainerId;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use super::ids::TaskId;

/// State of a task, by its name in Mesos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskState {
    /// Accepted; its executor has not reported anything about it.
    TaskStaging,
    /// The executor prepares it.
    TaskStarting,
    /// It runs.
    TaskRunning,
    /// It is being killed.
    TaskKilling,
    /// It ended successfully.
    TaskFinished,
    /// It failed.
    TaskFailed,
    /// It was killed on request.
    TaskKilled,
    /// Its description is invalid.
    TaskError,
    /// It is lost; for frameworks that do not distinguish the three states below.
    TaskLost,
    /// It was never launched.
    TaskDropped,
    /// It was running, and is not any more.
    TaskGone,
}

impl TaskState {
    /// All states.
    pub const ALL: [Self; 11] = [
        Self::TaskStaging,
        Self::TaskStarting,
        Self::TaskRunning,
        Self::TaskKilling,
        Self::TaskFinished,
        Self::TaskFailed,
        Self::TaskKilled,
        Self::TaskError,
        Self::TaskLost,
        Self::TaskDropped,
        Self::TaskGone,
    ];

    /// Whether no other state follows.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::TaskStaging | Self::TaskStarting | Self::TaskRunning | Self::TaskKilling)
    }

    /// Its name in Mesos.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TaskStaging => "TASK_STAGING",
            Self::TaskStarting => "TASK_STARTING",
            Self::TaskRunning => "TASK_RUNNING",
            Self::TaskKilling => "TASK_KILLING",
            Self::TaskFinished => "TASK_FINISHED",
            Self::TaskFailed => "TASK_FAILED",
            Self::TaskKilled => "TASK_KILLED",
            Self::TaskError => "TASK_ERROR",
            Self::TaskLost => "TASK_LOST",
            Self::TaskDropped => "TASK_DROPPED",
            Self::TaskGone => "TASK_GONE",
        }
    }
}

/// Identifies an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpdateId([u8; 16]);

impl UpdateId {
    /// The id that an executor has chosen. `None` if it does not have 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id of the update with which the agent ends a task. It is always the same, so that an agent that dies before the
    /// update is on disk, and the next one, send the same update.
    pub(super) fn of_end(container: &ContainerId, task: &TaskId) -> Self {
        let mut hash = Sha256::new();
        for part in [container.as_str(), "\0", task.as_str()] {
            hash.update(part.as_bytes());
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Self(bytes)
    }
}

impl fmt::Display for UpdateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl From<UpdateId> for String {
    fn from(id: UpdateId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for UpdateId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| Self::from_bytes(&bytes))
            .ok_or_else(|| format!("`{text}` is not the id of an update: 32 digits"))
    }
}

/// Who has sent an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The executor of the task.
    Executor,
    /// The agent.
    Agent,
}

/// A status update of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// The task.
    pub task: TaskId,
    /// Its new state.
    pub state: TaskState,
    /// Id of the update.
    pub id: UpdateId,
    /// Who has sent it.
    pub source: Source,
    /// When, in seconds since the Unix epoch.
    pub timestamp: f64,
    /// Why, by its name in Mesos: `REASON_EXECUTOR_TERMINATED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Explanation for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Other fields of `TaskStatus` as they were sent, in the API's JSON.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Json>,
}

impl Update {
    /// Its size as JSON, in bytes.
    pub(super) fn size(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |json| json.len())
    }
}

/// The state that the agent gives a task, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The state.
    pub state: TaskState,
    /// The reason, by its name in Mesos.
    pub reason: String,
    /// Explanation for people.
    pub message: String,
}

impl Verdict {
    pub(super) fn new(state: TaskState, reason: &str, message: impl Into<String>) -> Self {
        Self { state, reason: reason.to_owned(), message: message.into() }
    }

    /// The update that ends a task of the executor in a container.
    pub(super) fn ends(&self, container: &ContainerId, task: &TaskId, timestamp: f64) -> Update {
        Update {
            task: task.clone(),
            state: self.state,
            id: UpdateId::of_end(container, task),
            source: Source::Agent,
            timestamp,
            reason: Some(self.reason.clone()),
            message: Some(self.message.clone()),
            details: Map::new(),
        }
    }
}
