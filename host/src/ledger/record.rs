//! What is kept of a container.
//!
//! The first line is `cofferdam-record <version> <crc32 of the rest>`; the rest is JSON. A newer version
//! adds fields with defaults; when it must do more, the number goes up and the older shape stays readable.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_plugin_model::{Cgroups, ContainerId, Limitation, Resources};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::chain::{LaunchPlan, Party};
use crate::container::{Phase, Reason, Request, Termination};
use crate::view::Logs;

/// The first word of every record.
const MAGIC: &str = "cofferdam-record";

/// The version that is written.
const VERSION: u32 = 1;

/// What is kept of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: ContainerId,
    /// What was asked for.
    pub request: Request,
    /// How far it was when this was written. Only `STARTING`, `PREPARING`, `RUNNING`, `DESTROYING` and
    /// `ENDED` reach the disk: between them, nothing changes in what has to be undone.
    pub phase: Phase,
    /// The boot in which it lives.
    pub boot_id: String,
    /// When its launch began, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// What it may use now.
    pub resources: Resources,
    /// What an update that is not finished is to change that to.
    #[serde(default)]
    pub updating: Option<Resources>,
    /// The directory with its files and logs.
    #[serde(default)]
    pub sandbox: PathBuf,
    /// The directory with what ends with it.
    #[serde(default)]
    pub scratch: PathBuf,
    /// The numeric user and group of its command.
    #[serde(default)]
    pub uid: u32,
    /// See [`Record::uid`].
    #[serde(default)]
    pub gid: u32,
    /// Where its control groups are.
    #[serde(default)]
    pub cgroups: Cgroups,
    /// The plugins that have to do with it, in order.
    #[serde(default)]
    pub parties: Vec<Party>,
    /// What they asked for.
    #[serde(default)]
    pub plan: LaunchPlan,
    /// Where its output goes.
    #[serde(default)]
    pub logs: Logs,
    /// Its first process.
    #[serde(default)]
    pub process: Option<Birthmark>,
    /// Why it is being ended.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// How it ended.
    #[serde(default)]
    pub termination: Option<Termination>,
}

/// What tells a process from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birthmark {
    /// Its number, as the host sees it.
    pub pid: i32,
    /// When it was born, in clock ticks since boot.
    pub start_time: u64,
}

/// Why a container is being ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// `None` when its command ended by itself.
    pub reason: Option<Reason>,
    /// A sentence for people.
    pub message: Option<String>,
    /// What it used too much of.
    pub limited: BTreeMap<String, f64>,
}

impl Cause {
    /// Its command ended by itself.
    #[must_use]
    pub fn by_itself() -> Self {
        Self::default()
    }

    /// A plugin said that it went over a limit.
    #[must_use]
    pub fn over_limit(limitation: Limitation) -> Self {
        Self {
            reason: Some(Reason::Limitation(limitation.reason)),
            message: Some(limitation.message),
            limited: limitation.resources,
        }
    }

    /// For a reason.
    #[must_use]
    pub fn because(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason: Some(reason), message: Some(message.into()), ..Self::default() }
    }
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("the record of container `{id}` cannot be read")]
    Read {
        /// The container.
        id: ContainerId,
        /// Why.
        source: io::Error,
    },
    /// Its first line is not ours.
    #[error("the record of container `{id}` is empty or torn")]
    Torn {
        /// The container.
        id: ContainerId,
    },
    /// It was written by a newer agent.
    #[error(
        "the record of container `{id}` has version {version}, this agent reads up to {VERSION}; upgrade it again"
    )]
    Future {
        /// The container.
        id: ContainerId,
        /// Its version.
        version: u32,
    },
    /// It was changed, or is not all there.
    #[error("the record of container `{id}` does not have the checksum it names")]
    Checksum {
        /// The container.
        id: ContainerId,
    },
    /// Its JSON says something else than it should.
    #[error("the record of container `{id}` cannot be understood")]
    Content {
        /// The container.
        id: ContainerId,
        /// Why.
        source: serde_json::Error,
    },
}

impl RecordError {
    /// Whether the record is no record any more, as after a full disk, and not merely out of reach or newer
    /// than this agent.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            // The agent died between making the folder and writing the record.
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Torn { .. } | Self::Checksum { .. } => true,
            Self::Future { .. } | Self::Content { .. } => false,
        }
    }
}

impl Record {
    /// The record of a container of which nothing exists yet.
    #[must_use]
    pub fn new(request: Request, boot_id: String) -> Self {
        Self {
            id: request.id.clone(),
            phase: Phase::Starting,
            boot_id,
            created_unix_ms: 0,
            resources: request.resources.clone(),
            updating: None,
            sandbox: PathBuf::new(),
            scratch: PathBuf::new(),
            uid: 0,
            gid: 0,
            cgroups: Cgroups::default(),
            parties: Vec::new(),
            plan: LaunchPlan::default(),
            logs: Logs::default(),
            process: None,
            cause: None,
            termination: None,
            request,
        }
    }

    /// An update is finished: what it may use now, and what plugins keep for it since, by plugin.
    pub fn updated(&mut self, resources: Resources, states: BTreeMap<String, Json>) {
        self.resources = resources;
        self.updating = None;
        for (plugin, state) in states {
            if let Some(party) = self.parties.iter_mut().find(|party| party.plugin == plugin) {
                party.state = state;
            }
        }
    }

    /// The file's content.
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let mut bytes = format!("{MAGIC} {VERSION} {:08x}\n", crc32fast::hash(&body)).into_bytes();
        bytes.extend(body);
        Ok(bytes)
    }

    /// Reads a record from its file.
    pub(super) fn read(path: &Path, id: &ContainerId) -> Result<Self, RecordError> {
        let bytes = fs::read(path).map_err(|source| RecordError::Read { id: id.clone(), source })?;
        let torn = || RecordError::Torn { id: id.clone() };
        let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(torn)?;
        let (head, body) = (&bytes[..end], &bytes[end + 1..]);
        let mut words = std::str::from_utf8(head).map_err(|_| torn())?.split(' ');
        let (Some(MAGIC), Some(version), Some(checksum), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(torn());
        };
        let version: u32 = version.parse().map_err(|_| torn())?;
        if version > VERSION {
            return Err(RecordError::Future { id: id.clone(), version });
        }
        if u32::from_str_radix(checksum, 16).ok() != Some(crc32fast::hash(body)) {
            return Err(RecordError::Checksum { id: id.clone() });
        }
        let record: Self =
            serde_json::from_slice(body).map_err(|source| RecordError::Content { id: id.clone(), source })?;
        // A folder that was moved by hand speaks of another container.
        if record.id != *id {
            return Err(torn());
        }
        Ok(record)
    }
}

/// Now, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
