//! Calls of the agent's operator API, each on a connection of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::machine::End;
use crate::agent::Address;
use crate::exchange::Exchange;
use crate::http::Part;
use crate::message::Parts;
use crate::wait_status::WaitStatus;

/// The longest answer that is kept; what is longer is cut off.
const MAX_ANSWER: usize = 256 << 10;

/// A container below that of the executor.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ContainerId {
    value: String,
    parent: Box<RawValue>,
}

impl ContainerId {
    /// A container with a name below a parent.
    pub(super) fn new(value: String, parent: Box<RawValue>) -> Self {
        Self { value, parent }
    }

    /// A container with a name below this one.
    pub(super) fn child(&self, value: String) -> serde_json::Result<Self> {
        Ok(Self { value, parent: serde_json::value::to_raw_value(self)? })
    }
}

#[derive(Serialize)]
struct Launch<'c> {
    container_id: &'c ContainerId,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'c RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'c RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<&'c RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'c RawValue>,
}

#[derive(Serialize)]
struct Wait<'c> {
    container_id: &'c ContainerId,
}

#[derive(Serialize)]
struct Kill<'c> {
    container_id: &'c ContainerId,
    signal: i32,
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Request<'c> {
    #[serde(rename = "LAUNCH_CONTAINER")]
    Launch { launch_container: Launch<'c> },
    #[serde(rename = "WAIT_CONTAINER")]
    Wait { wait_container: Wait<'c> },
    #[serde(rename = "KILL_CONTAINER")]
    Kill { kill_container: Kill<'c> },
    #[serde(rename = "LAUNCH_NESTED_CONTAINER_SESSION")]
    Session { launch_nested_container_session: Launch<'c> },
}

/// The body of a call that launches the container of a task.
pub(super) fn launch(container_id: &ContainerId, parts: &Parts) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Request::Launch {
        launch_container: Launch {
            container_id,
            command: parts.command.as_deref(),
            container: parts.container.as_deref(),
            resources: parts.resources.as_deref(),
            limits: parts.limits.as_deref(),
        },
    })
}

/// The body of a call that waits for a container.
pub(super) fn wait(container_id: &ContainerId) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Request::Wait { wait_container: Wait { container_id } })
}

/// The body of a call that sends a signal to a container.
pub(super) fn kill(container_id: &ContainerId, signal: i32) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Request::Kill { kill_container: Kill { container_id, signal } })
}

/// The body of a call that runs a command in a container.
pub(super) fn session(container_id: &ContainerId, command: &str) -> serde_json::Result<Vec<u8>> {
    let command: &RawValue = serde_json::from_str(command)?;
    let launch =
        Launch { container_id, command: Some(command), container: None, resources: None, limits: None };
    serde_json::to_vec(&Request::Session { launch_nested_container_session: launch })
}

/// A call that has not been answered completely.
#[derive(Debug)]
pub(super) struct Call {
    exchange: Exchange,
    status: Option<u16>,
    body: Vec<u8>,
}

/// The answer to a call.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    body: Vec<u8>,
}

impl Call {
    pub(super) fn open(address: &Address, body: &[u8]) -> io::Result<Self> {
        Ok(Self { exchange: address.post("/api/v1", body)?, status: None, body: Vec::new() })
    }

    /// The status, once it is known.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    /// Continues as far as possible without waiting. Fails if the connection was lost.
    pub(super) fn advance(&mut self) -> Result<Option<Answer>, String> {
        let advanced = self.exchange.advance();
        while let Some(part) = self.exchange.next().map_err(|error| error.to_string())? {
            match part {
                Part::Head(status) => self.status = Some(status),
                Part::Data(data) => {
                    let space = MAX_ANSWER - self.body.len();
                    self.body.extend_from_slice(&data[..data.len().min(space)]);
                }
                Part::End => {
                    let body = std::mem::take(&mut self.body);
                    return Ok(Some(Answer { status: self.status.unwrap_or_default(), body }));
                }
            }
        }
        advanced.map_err(|error| error.to_string())?;
        // Of the stream of a session, only the end matters.
        if self.body.len() == MAX_ANSWER {
            self.body.clear();
        }
        Ok(None)
    }

    pub(super) fn source(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.exchange.as_fd(), self.exchange.interest())
    }
}

#[derive(Deserialize)]
struct Waited {
    wait_container: Option<Termination>,
}

#[derive(Deserialize)]
struct Termination {
    exit_status: Option<i32>,
    state: Option<String>,
    reason: Option<String>,
    message: Option<String>,
}

impl Answer {
    /// What the agent says in plain text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// How a container ended, from the answer to a wait.
    pub(super) fn end(&self) -> End {
        let failure =
            |message: String| End::Terminated { is_failure: true, reason: None, message: Some(message) };
        if self.status != 200 {
            return failure(format!("The agent has lost the container: {}", self.text()));
        }
        let waited: Waited = match serde_json::from_slice(&self.body) {
            Ok(waited) => waited,
            Err(error) => return failure(format!("The agent's answer is not valid: {error}")),
        };
        match waited.wait_container {
            Some(Termination { state: Some(state), reason, message, .. }) => {
                End::Terminated { is_failure: state != "TASK_KILLED", reason, message }
            }
            Some(Termination { exit_status: Some(status), .. }) => End::Exited(WaitStatus(status)),
            Some(Termination { message, .. }) => {
                failure(message.unwrap_or_else(|| "The exit status of the command is not known".to_owned()))
            }
            None => failure("The agent's answer has no `wait_container`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId::new("t".to_owned(), RawValue::from_string(r#"{"value":"e"}"#.to_owned()).unwrap())
    }

    #[test]
    fn calls_are_those_of_the_operator_api() {
        let text = |body: serde_json::Result<Vec<u8>>| String::from_utf8(body.unwrap()).unwrap();
        let raw = |text: &str| Some(RawValue::from_string(text.to_owned()).unwrap());
        let parts = Parts { command: raw(r#"{"value":"x"}"#), resources: raw("[]"), ..Parts::default() };
        assert_eq!(
            text(launch(&id(), &parts)),
            r#"{"type":"LAUNCH_CONTAINER","launch_container":{"container_id":{"value":"t","parent":{"value":"e"}},"#
                .to_owned()
                + r#""command":{"value":"x"},"resources":[]}}"#
        );
        let check = id().child("c".to_owned()).unwrap();
        assert_eq!(
            text(wait(&check)),
            r#"{"type":"WAIT_CONTAINER","wait_container":{"container_id":{"value":"c","parent":{"value":"t","#
                .to_owned() + r#""parent":{"value":"e"}}}}}"#
        );
        assert!(text(kill(&id(), 15)).ends_with(r#""signal":15}}"#));
    }

    #[test]
    fn terminations_are_read() {
        let end = |status, body: &str| Answer { status, body: body.as_bytes().to_vec() }.end();
        let exited = r#"{"type":"WAIT_CONTAINER","wait_container":{"exit_status":256}}"#;
        assert_eq!(end(200, exited), End::Exited(WaitStatus(256)));
        let killed = r#"{"wait_container":{"exit_status":9,"state":"TASK_KILLED"}}"#;
        assert_eq!(end(200, killed), End::Terminated { is_failure: false, reason: None, message: None });
        for (status, body) in [(200, "{"), (200, "{}"), (200, r#"{"wait_container":{}}"#), (404, "unknown")] {
            assert!(matches!(end(status, body), End::Terminated { is_failure: true, .. }), "{body}");
        }
    }
}
