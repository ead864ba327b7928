//! Pulls for the agent, each in a process of its own.
//!
//! ```text
//! agent (puller)                          cofferdam pull-for-agent (child)
//!   │── stdin: the job, one line of JSON ──▶│  pulls the image into the store
//!   │   (stays open until the pull is done  │
//!   │    or cancelled)                      │
//!   │◀── stdout: progress, a line for each ─│  ◀── summary: of all layers together
//!   │◀── stdout: the failure, as JSON ──────│
//!   │◀── exit status ───────────────────────│
//! ```
//!
//! Registries and archives are not trusted, so they are read outside of the agent's memory, and a pull can be ended at any
//! time by killing its process: what it has not completed is no part of the store.

mod child;
mod puller;
mod summary;

use std::path::PathBuf;

use cofferdam_core::config::RegistryConfig;
use cofferdam_core::model::PullProgress;
use serde::{Deserialize, Serialize};

pub(crate) use child::main;
pub(crate) use puller::PullProcess;

/// What is pulled, and how.
#[derive(Serialize, Deserialize)]
struct Job {
    store: PathBuf,
    source: JobSource,
    registry: RegistryConfig,
    credentials: Vec<PathBuf>,
    own_credentials: Option<String>,
}

/// Where the image is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum JobSource {
    /// The name of an image of a registry.
    Registry(String),
    /// A file or a directory, and the directories that it has to be in.
    Local { path: PathBuf, permitted: Vec<PathBuf> },
}

/// What the process reports, one line of JSON each.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Progress(PullProgress),
    Failed { reason: String, is_invalid: bool },
}
