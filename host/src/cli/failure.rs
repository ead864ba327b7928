//! Errors of commands: how they are printed, and which exit status they have.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use super::client::ClientError;
use super::hints::hint;
use crate::api::BindError;
use crate::config::ConfigError;

/// Exit status of failures that do not set their own.
const FAILED: u8 = 1;

/// Result of a command: its exit status or a failure.
pub(super) type Outcome = Result<u8, Failure>;

/// Why a command failed, with its exit status.
#[derive(Debug)]
pub(super) struct Failure {
    error: Box<dyn Error + Send + Sync>,
    status: u8,
    /// What to do, for errors that have no hint of their own.
    hint: Option<&'static str>,
}

impl Failure {
    /// A failed system call.
    pub(super) fn system(message: impl fmt::Display, source: io::Error) -> Self {
        Self::of(Message { text: message.to_string(), source: Some(source.into()) })
    }

    /// A failure that has no error type of its own.
    pub(super) fn message(message: impl fmt::Display) -> Self {
        Self::of(Message { text: message.to_string(), source: None })
    }

    pub(super) fn of(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), status: FAILED, hint: None }
    }

    pub(super) fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    pub(super) fn with_hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub(super) fn status(&self) -> u8 {
        self.status
    }

    pub(super) fn error(&self) -> &(dyn Error + 'static) {
        self.error.as_ref()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Message {
    text: String,
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

/// For errors of standard output. Other I/O errors need context: see [`Failure::system`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::of(error)
    }
}

/// Prints the failure, if there is one, and returns the exit status.
pub(super) fn exit(outcome: Outcome, as_json: bool) -> ExitCode {
    let failure = match outcome {
        Ok(status) => return ExitCode::from(status),
        Err(failure) => failure,
    };
    if is_broken_pipe(failure.error()) {
        // The reader of standard output has closed it, as `head` does.
        return ExitCode::SUCCESS;
    }
    // If standard error cannot be written to, the error cannot be reported.
    let text = if as_json { describe_json(&failure) } else { describe(&failure) };
    drop(io::stderr().write_all(text.as_bytes()));
    ExitCode::from(failure.status)
}

/// An error as a line of JSON: `{"error": {"message", "causes": […], "hint"}, "exit_status"}`.
fn describe_json(failure: &Failure) -> String {
    let mut texts: Vec<String> = causes(failure.error()).map(ToString::to_string).collect();
    texts.dedup_by(|cause, previous| cause.is_empty() || previous.ends_with(&**cause));
    let message = texts.remove(0);
    let hint = causes(failure.error()).find_map(hint).or(failure.hint);
    let error = json!({"message": message, "causes": texts, "hint": hint});
    format!("{}\n", json!({"error": error, "exit_status": failure.status}))
}

/// An error, its causes and a hint, each on its own line.
fn describe(failure: &Failure) -> String {
    let error = failure.error();
    // Diagnostics have their own layout and hints.
    if let Some(ConfigError::Invalid(diagnostics)) = error.downcast_ref::<ConfigError>() {
        return format!("{diagnostics}\n");
    }
    let mut lines = String::new();
    let mut previous = String::new();
    for cause in causes(error) {
        let text = cause.to_string();
        // Some errors include the text of their cause.
        if text.is_empty() || previous.ends_with(&text) {
            continue;
        }
        let prefix = if lines.is_empty() { "error:" } else { "  because" };
        lines.push_str(&format!("{prefix} {}\n", text.replace('\n', "\n    ")));
        previous = text;
    }
    if let Some(hint) = causes(error).find_map(hint).or(failure.hint) {
        lines.push_str(&format!("hint: {hint}\n"));
    }
    lines
}

/// An error and its causes.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Whether standard output was closed. As the cause of another error, EPIPE means a broken connection instead.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_line() {
        let failure =
            Failure::system("cannot launch container `web`", io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(describe(&failure), "error: cannot launch container `web`\n  because entity not found\n");
        let hinted = describe(&failure.with_hint("look elsewhere"));
        assert!(hinted.ends_with("\n  because entity not found\nhint: look elsewhere\n"), "{hinted}");
    }

    #[test]
    fn an_error_can_be_one_line_of_json() {
        let failure =
            Failure::system("cannot launch container `web`", io::Error::from(io::ErrorKind::NotFound));
        let line = describe_json(&failure.with_status(125));
        let expected = json!({
            "error": {"message": "cannot launch container `web`", "causes": ["entity not found"], "hint": null},
            "exit_status": 125,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), expected);
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn closed_output_is_distinguished_from_a_broken_connection() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(Failure::from(pipe()).error()));
        assert!(!is_broken_pipe(Failure::system("cannot talk to the agent", pipe()).error()));
    }
}
