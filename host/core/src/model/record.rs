//! The record of a container: a part that is common to all containerizers, and a part of its containerizer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_plugin_model::{ContainerId, Limitation, Resources, Value};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::view::Logs;
use super::{Phase, Reason, Request, Termination};

/// The record of a container. `P` is the type of the containerizer's part; with JSON, a record of any containerizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record<P = Json> {
    /// Id of the container.
    pub id: ContainerId,
    /// Name of its containerizer.
    pub containerizer: String,
    /// The launch request.
    pub request: Request,
    /// Phase at the time of writing. Only `STARTING`, `PREPARING`, `RUNNING`, `DESTROYING` and `ENDED` are
    /// written: between these, what recovery has to undo does not change.
    pub phase: Phase,
    /// Boot in which the container was launched.
    pub boot_id: String,
    /// When the launch began, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// Current resources.
    pub resources: Resources,
    /// Target of an update that is in progress.
    #[serde(default)]
    pub updating: Option<Resources>,
    /// Directory of the container's files and logs.
    #[serde(default)]
    pub sandbox: PathBuf,
    /// Numeric user of the command.
    #[serde(default)]
    pub uid: u32,
    /// Numeric group of the command.
    #[serde(default)]
    pub gid: u32,
    /// Its supplementary groups, without those that plugins add.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Files that the output is written to.
    #[serde(default)]
    pub logs: Logs,
    /// The container's first process.
    #[serde(default)]
    pub process: Option<ProcessId>,
    /// Why the container is being destroyed.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// How the container ended.
    #[serde(default)]
    pub termination: Option<Termination>,
    /// The part of the containerizer.
    pub part: P,
}

/// Identifies a process across reuse of its pid, within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid in the agent's pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

/// Why a container is being destroyed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// `None` if its command exited by itself.
    pub reason: Option<Reason>,
    /// The reason as a sentence.
    pub message: Option<String>,
    /// Usage at the time, for the resources whose limit was exceeded.
    pub limited: BTreeMap<String, Value>,
}

impl Cause {
    /// The command exited by itself.
    #[must_use]
    pub fn exited() -> Self {
        Self::default()
    }

    /// A plugin reported a limitation.
    #[must_use]
    pub fn limitation(limitation: Limitation) -> Self {
        Self {
            reason: Some(Reason::Limitation(limitation.reason)),
            message: Some(limitation.message),
            limited: limitation.resources,
        }
    }

    /// A cause with a reason and a message.
    #[must_use]
    pub fn because(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason: Some(reason), message: Some(message.into()), ..Self::default() }
    }
}

impl<P> Record<P> {
    /// The record of a container of which nothing exists yet.
    #[must_use]
    pub fn new(containerizer: &str, request: Request, boot_id: String, part: P) -> Self {
        Self {
            id: request.id.clone(),
            containerizer: containerizer.to_owned(),
            phase: Phase::Starting,
            boot_id,
            created_unix_ms: now_unix_ms(),
            resources: request.resources.clone(),
            updating: None,
            sandbox: PathBuf::new(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            logs: Logs::default(),
            process: None,
            cause: None,
            termination: None,
            request,
            part,
        }
    }

    /// Replaces the containerizer's part.
    ///
    /// # Errors
    /// Those of `convert`.
    pub fn try_map_part<Q, E>(self, convert: impl FnOnce(P) -> Result<Q, E>) -> Result<Record<Q>, E> {
        Ok(Record {
            part: convert(self.part)?,
            id: self.id,
            containerizer: self.containerizer,
            request: self.request,
            phase: self.phase,
            boot_id: self.boot_id,
            created_unix_ms: self.created_unix_ms,
            resources: self.resources,
            updating: self.updating,
            sandbox: self.sandbox,
            uid: self.uid,
            gid: self.gid,
            groups: self.groups,
            logs: self.logs,
            process: self.process,
            cause: self.cause,
            termination: self.termination,
        })
    }
}

/// Now, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
