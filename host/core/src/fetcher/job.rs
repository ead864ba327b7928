//! What the agent and the process that fetches say to each other.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Uri;

/// All that a container needs, and whose it will be.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchJob {
    pub sandbox: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub uris: Vec<Uri>,
    pub limits: Limits,
}

/// How far fetching may go for one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a server may be silent, and how long finding it and connecting may each take.
    pub stall: Duration,
    /// How many bytes may be written in all, archives and their contents each counted.
    pub bytes: u64,
    /// How many members an archive may have.
    pub members: u64,
}

/// Why a container's files could not be brought in, as the process that tried puts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FetchFailure {
    /// Nothing was tried.
    #[error("cannot begin to fetch")]
    Begin {
        /// Why.
        #[source]
        reason: Reason,
    },
    /// A file could not be brought in.
    #[error("cannot bring in `{uri}`")]
    File {
        /// The file; of a URL, neither user nor query, which may hold secrets.
        uri: String,
        /// Why.
        #[source]
        reason: Reason,
    },
}

/// An error of another process: its sentence, without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
#[serde(transparent)]
pub struct Reason(String);

/// What is wrong with a job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("cannot read the job from the standard input")]
    Read { source: io::Error },
    #[error("the standard input does not hold a job")]
    Parse { source: serde_json::Error },
}

impl Default for Limits {
    fn default() -> Self {
        Self { stall: Duration::from_secs(60), bytes: 64 << 30, members: 1_000_000 }
    }
}

impl FetchJob {
    /// The job in one line, its end included.
    pub fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads a job, and nothing that comes after it.
    pub fn read(mut input: impl BufRead) -> Result<Self, JobError> {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line).map_err(|source| JobError::Read { source })?;
        serde_json::from_slice(&line).map_err(|source| JobError::Parse { source })
    }
}

impl FetchFailure {
    /// Writes it down for the agent.
    ///
    /// # Errors
    /// When nobody reads it any more.
    pub fn tell(&self, mut output: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut output, self)?;
        output.flush()
    }
}

impl Reason {
    /// The sentence of an error and its causes.
    pub fn of(error: &dyn Error) -> Self {
        Self(printable(&crate::error_chain::describe(error)))
    }
}

/// A text as it may be shown: strangers chose parts of it, and a log has lines and a terminal has commands.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_back_as_written_and_not_beyond() {
        let uri = Uri {
            value: "http://host/a\nb".into(),
            executable: true,
            extract: false,
            output_file: Some("x/y".into()),
            sha256: None,
        };
        let limits = Limits { stall: Duration::from_millis(1500), bytes: u64::MAX, members: 3 };
        let job = FetchJob { sandbox: "/s".into(), uid: 1, gid: 2, uris: vec![uri], limits };
        let mut bytes = job.to_line().unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        bytes.extend_from_slice(b"rest");
        let mut input = bytes.as_slice();
        assert_eq!(FetchJob::read(&mut input).unwrap(), job);
        assert_eq!(input, b"rest");
        assert!(matches!(FetchJob::read(&b"{}"[..]), Err(JobError::Parse { .. })));
    }

    #[test]
    fn nothing_that_strangers_write_can_draw_on_a_terminal() {
        assert_eq!(printable("a\u{1b}[2J\nü"), "a\\u{1b}[2J\\nü");
    }
}
