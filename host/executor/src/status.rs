//! What an executor reports of its tasks.

use serde::Serialize;

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum TaskState {
    #[serde(rename = "TASK_STARTING")]
    Starting,
    #[serde(rename = "TASK_RUNNING")]
    Running,
    #[serde(rename = "TASK_KILLING")]
    Killing,
    #[serde(rename = "TASK_FINISHED")]
    Finished,
    #[serde(rename = "TASK_FAILED")]
    Failed,
    #[serde(rename = "TASK_KILLED")]
    Killed,
}

/// Why a task is in its state, in the words of Mesos.
pub(crate) mod reason {
    pub(crate) const COMMAND_FAILED: &str = "REASON_COMMAND_EXECUTOR_FAILED";
    pub(crate) const INVALID: &str = "REASON_TASK_INVALID";
    pub(crate) const LAUNCH_FAILED: &str = "REASON_CONTAINER_LAUNCH_FAILED";
    pub(crate) const MAX_COMPLETION_TIME: &str = "REASON_MAX_COMPLETION_TIME_REACHED";
    pub(crate) const HEALTH: &str = "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED";
    pub(crate) const CHECK: &str = "REASON_TASK_CHECK_STATUS_UPDATED";
}

/// A status of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    #[serde(serialize_with = "as_id")]
    pub(crate) task_id: String,
    pub(crate) state: TaskState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) check_status: Option<CheckStatus>,
}

impl Status {
    /// A status without details.
    pub(crate) fn new(task_id: &str, state: TaskState) -> Self {
        let task_id = task_id.to_owned();
        Self { task_id, state, message: None, reason: None, healthy: None, check_status: None }
    }

    pub(crate) fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    pub(crate) fn reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }
}

fn as_id<S: serde::Serializer>(value: &str, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Id<'v> {
        value: &'v str,
    }
    Id { value }.serialize(serializer)
}

/// The result of a check. Without a result, it has not succeeded yet or could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "type")]
pub(crate) enum CheckStatus {
    #[serde(rename = "COMMAND")]
    Command { command: CommandResult },
    #[serde(rename = "HTTP")]
    Http { http: HttpResult },
    #[serde(rename = "TCP")]
    Tcp { tcp: TcpResult },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CommandResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct HttpResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status_code: Option<u16>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TcpResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) succeeded: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_as_mesos_does() {
        let mut status = Status::new("t", TaskState::Running).message("m").reason(reason::CHECK);
        status.healthy = Some(true);
        status.check_status = Some(CheckStatus::Command { command: CommandResult { exit_code: Some(3) } });
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"task_id":{"value":"t"},"state":"TASK_RUNNING","message":"m","#.to_owned()
                + r#""reason":"REASON_TASK_CHECK_STATUS_UPDATED","healthy":true,"#
                + r#""check_status":{"type":"COMMAND","command":{"exit_code":3}}}"#
        );
    }
}
