//! Messages between the agent and the fetcher process.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::FetchLimits;
use crate::model::Uri;

/// The files to fetch, and their owner.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchJob {
    pub sandbox: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub uris: Vec<Uri>,
    /// Paths in the sandbox at which nothing may be placed, such as the container's logs.
    pub reserved: Vec<PathBuf>,
    pub limits: FetchLimits,
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

impl FetchFailure {
    /// Writes the failure as JSON.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn write(&self, mut output: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut output, self)?;
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
            output_file: Some("x/y".into()),
            sha256: None,
        };
        let limits = FetchLimits { bytes: u64::MAX, hosts: vec!["host".into()], ..FetchLimits::default() };
        let reserved = vec!["stdout".into()];
        let job = FetchJob { sandbox: "/s".into(), uid: 1, gid: 2, uris: vec![uri], reserved, limits };
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
