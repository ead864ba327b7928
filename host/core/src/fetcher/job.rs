//! Messages between the agent and the fetcher process.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::FetchLimits;
use crate::model::{FetchProgress, Uri};

/// What a fetcher process does.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchJob {
    /// Fetches the files of a container.
    Place(PlaceJob),
    /// Checks these files, without fetching any.
    Check(PlaceJob),
    /// Fetches a file for the cache.
    Store(StoreJob),
}

/// The files of a container, and their owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceJob {
    pub sandbox: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub uris: Vec<Uri>,
    /// Those of the URIs, by their position, of which the cache has the content.
    pub cached: BTreeMap<usize, CachedFile>,
    /// Paths in the sandbox at which nothing may be placed, such as the container's logs.
    pub reserved: Vec<PathBuf>,
    pub limits: FetchLimits,
    /// File with credentials for servers, which the process reads before it becomes the container's user.
    pub credentials: Option<PathBuf>,
}

/// A file of the cache. Only the agent can read it: the process opens it before it becomes the container's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedFile {
    pub path: PathBuf,
    /// Permissions of the file that it is a copy of.
    pub mode: u32,
}

/// A file for the cache, fetched with the privileges of the user that it is for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreJob {
    /// An empty file, which the process opens before it becomes that user.
    pub into: PathBuf,
    pub uid: u32,
    pub gid: u32,
    /// Where it comes from. Containers that wait for it may treat it in different ways, of which this process knows none.
    pub source: String,
    /// What the cache has. Nothing is received if it is still the same.
    pub known: Option<Known>,
    pub limits: FetchLimits,
    /// File with credentials for servers, which the process reads before it becomes that user.
    pub credentials: Option<PathBuf>,
}

/// The content that the cache has of a URI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub version: Version,
    /// Its size in bytes.
    pub size: u64,
}

/// What tells whether the content of a URI has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// Headers of a response, of which there is at least one.
    Http {
        /// `ETag`.
        etag: Option<String>,
        /// `Last-Modified`.
        last_modified: Option<String>,
    },
    /// A file of this machine.
    Local {
        /// Device and inode.
        file: (u64, u64),
        /// Its modification, in seconds and nanoseconds since the Unix epoch.
        modified: (i64, i64),
        /// The change of its inode, which nobody can set.
        changed: (i64, i64),
    },
}

/// What a fetcher process reports, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchMessage {
    /// How far it is. The first one of a file comes before any of its bytes is written.
    Progress(FetchProgress),
    /// A file for the cache was received.
    Stored(Stored),
    /// What the cache has of a URI is still the same.
    Unchanged,
    /// The file cannot be written to the cache, as when the disk is full.
    NotWritten(Reason),
    /// The process ends.
    Failed(FetchFailure),
}

/// A file that was received for the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// How to find out later whether it has changed. `None`: that is not possible.
    pub version: Option<Version>,
    /// Permissions of the file that it is a copy of.
    pub mode: u32,
}

/// A failure, as the fetcher process reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FetchFailure {
    /// Before the first file.
    #[error("cannot start fetching")]
    Start {
        /// Why.
        #[source]
        reason: Reason,
    },
    /// The request is invalid; nothing was fetched.
    #[error("cannot fetch `{uri}`")]
    Invalid {
        /// The URI, without the user and query of a URL, which may contain secrets.
        uri: String,
        /// Why.
        #[source]
        reason: Reason,
    },
    /// Of one file.
    #[error("cannot fetch `{uri}`")]
    File {
        /// The URI, without the user and query of a URL, which may contain secrets.
        uri: String,
        /// Why.
        #[source]
        reason: Reason,
        /// Whether its content has another hash than it should, or is not the archive that it should be.
        #[serde(default)]
        is_damaged: bool,
    },
}

/// An error of the fetcher process and its causes as text, with control characters escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
#[serde(transparent)]
pub struct Reason(String);

/// Why a job cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("cannot read the job from standard input")]
    Read { source: io::Error },
    #[error("the job on standard input is malformed")]
    Parse { source: serde_json::Error },
}

impl FetchJob {
    /// Serializes the job as a line of JSON, with the newline.
    pub fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads one line.
    pub fn read(mut input: impl BufRead) -> Result<Self, JobError> {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line).map_err(|source| JobError::Read { source })?;
        serde_json::from_slice(&line).map_err(|source| JobError::Parse { source })
    }
}

impl FetchMessage {
    /// Writes the message as a line of JSON.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn write(&self, mut output: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    }
}

impl Reason {
    /// An error and its causes.
    pub fn of(error: &dyn Error) -> Self {
        Self(escape_control(&crate::error_chain::describe(error)))
    }
}

/// Escapes control characters, so that untrusted text cannot break log lines or control a terminal.
pub fn escape_control(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_a_round_trip() {
        let uri = Uri {
            value: "http://host/a\nb".into(),
            executable: true,
            extract: false,
            cache: true,
            output_file: Some("x/y".into()),
            sha256: None,
        };
        let limits = FetchLimits { bytes: u64::MAX, hosts: vec!["host".into()], ..FetchLimits::default() };
        let reserved = vec!["stdout".into()];
        let cached = [(0, CachedFile { path: "/c".into(), mode: 0o644 })].into();
        let sandbox = "/s".into();
        let credentials = Some("/n".into());
        let job =
            PlaceJob { sandbox, uid: 1, gid: 2, uris: vec![uri], cached, reserved, limits, credentials };
        let job = FetchJob::Place(job);
        let mut bytes = job.to_line().unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        bytes.extend_from_slice(b"rest");
        let mut input = bytes.as_slice();
        assert_eq!(FetchJob::read(&mut input).unwrap(), job);
        assert_eq!(input, b"rest");
        assert!(matches!(FetchJob::read(&b"{}"[..]), Err(JobError::Parse { .. })));
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape_control("a\u{1b}[2J\nü"), "a\\u{1b}[2J\\nü");
    }
}
