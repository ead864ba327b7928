//! What is said when something goes wrong, and the one place where exit statuses are decided.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use super::Outcome;
use super::client::ClientError;
use super::hint::hint;
use crate::api::BindError;
use crate::config::{ConfigError, Findings};

/// Anything that has no status of its own.
const FAILED: u8 = 1;

/// Why a verb has no result.
#[derive(Debug)]
pub(super) struct Failure {
    error: Box<dyn Error + Send + Sync>,
    status: u8,
}

impl Failure {
    /// A failure of the program's surroundings.
    pub(super) fn system(what: impl fmt::Display, source: io::Error) -> Self {
        Self::of(Told { what: what.to_string(), source: Some(source.into()) })
    }

    /// Something that makes no sense.
    pub(super) fn told(what: impl fmt::Display) -> Self {
        Self::of(Told { what: what.to_string(), source: None })
    }

    pub(super) fn of(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), status: FAILED }
    }

    /// With another exit status.
    pub(super) fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    /// The error itself.
    pub(super) fn error(&self) -> &(dyn Error + 'static) {
        self.error.as_ref()
    }
}

/// A failure in words of its own.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Told {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::of(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::of(error)
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self::of(error)
    }
}

/// Only output fails with a bare I/O error; everything else says what it was about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::of(error)
    }
}

/// Says what went wrong, if anything did, and decides the exit status.
pub(super) fn exit(outcome: Outcome) -> ExitCode {
    let failure = match outcome {
        Ok(status) => return ExitCode::from(status),
        Err(failure) => failure,
    };
    if is_broken_pipe(failure.error()) {
        // Whoever read our output has had enough.
        return ExitCode::SUCCESS;
    }
    // If even this cannot be written there is nobody left to tell.
    drop(io::stderr().write_all(lines(failure.error()).as_bytes()));
    ExitCode::from(failure.status)
}

/// An error, its causes and what to do about it, each on a line of its own.
pub(super) fn lines(error: &(dyn Error + 'static)) -> String {
    // The findings of a configuration are laid out already, hints included.
    if let Some(ConfigError::Findings(findings)) = error.downcast_ref::<ConfigError>() {
        return format!("{findings}\n");
    }
    if let Some(findings) = error.downcast_ref::<Findings>() {
        return format!("{findings}\n");
    }
    let mut lines = String::new();
    let mut said = String::new();
    for cause in chain(error) {
        let words = cause.to_string();
        // Some errors repeat their cause; nobody needs to read it twice.
        if words.is_empty() || said.ends_with(&words) {
            continue;
        }
        let prefix = if lines.is_empty() { "error:" } else { "  because" };
        lines.push_str(&format!("{prefix} {}\n", words.replace('\n', "\n    ")));
        said = words;
    }
    if let Some(advice) = chain(error).find_map(hint) {
        lines.push_str(&format!("hint: {advice}\n"));
    }
    lines
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    // Of output only: inside another error it is a connection that broke.
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_line() {
        let failure =
            Failure::system("cannot launch container `web`", io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(
            lines(failure.error()),
            "error: cannot launch container `web`\n  because entity not found\n"
        );
    }

    #[test]
    fn a_reader_that_leaves_is_no_error_but_a_connection_that_breaks_is() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(Failure::from(pipe()).error()));
        assert!(!is_broken_pipe(Failure::system("cannot talk to the agent", pipe()).error()));
    }
}
