//! From the bodies of executors' calls to what they ask for.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::api::encoding::Encoding;
use crate::api::operator::decode::task::{decode_status, typed};
use crate::api::operator::error::ApiError;
use crate::api::operator::types as wire;
use crate::api::protobuf::schema::executor::CALL;
use cofferdam_core::executor::{TaskId, Update};

type Result<T> = std::result::Result<T, ApiError>;

/// A call. The field that has the name of its type is its body.
#[derive(Deserialize)]
pub(super) struct Call {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) framework_id: wire::FrameworkId,
    pub(super) executor_id: wire::ExecutorId,
    #[serde(default)]
    subscribe: Option<Subscribe>,
    #[serde(default)]
    update: Option<UpdateCall>,
    #[serde(default)]
    message: Option<MessageCall>,
}

#[derive(Default, Deserialize)]
struct Subscribe {
    #[serde(default)]
    unacknowledged_tasks: Option<Vec<UnacknowledgedTask>>,
    #[serde(default)]
    unacknowledged_updates: Option<Vec<UpdateCall>>,
}

#[derive(Deserialize)]
struct UnacknowledgedTask {
    task_id: wire::TaskId,
}

#[derive(Deserialize)]
struct UpdateCall {
    status: Json,
}

#[derive(Deserialize)]
struct MessageCall {
    data: wire::Bytes,
}

/// What an executor asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Subscribe {
        /// The tasks that it knows and for which no update was acknowledged.
        known: BTreeSet<TaskId>,
        /// The updates that were not acknowledged.
        updates: Vec<Update>,
    },
    Update(Update),
    Message(Vec<u8>),
    Heartbeat,
}

impl Call {
    pub(super) fn read(encoding: Encoding, body: &[u8]) -> Result<Self> {
        let body: Json =
            encoding.of(&CALL).read(body).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, &error))?;
        Ok(typed("call", &body)?)
    }

    /// What it asks for at a time, in seconds since the Unix epoch, which is that of updates that have none.
    pub(super) fn action(self, now: f64) -> Result<Action> {
        let missing =
            |field: &str| ApiError::bad_request(format!("`{}` requires the field `{field}`", self.kind));
        match self.kind.as_str() {
            "SUBSCRIBE" => self.subscribe.unwrap_or_default().action(now),
            "UPDATE" => {
                let update = self.update.ok_or_else(|| missing("update"))?;
                Ok(Action::Update(decode_status("update.status", &update.status, now)?))
            }
            "MESSAGE" => Ok(Action::Message(self.message.ok_or_else(|| missing("message"))?.data.0)),
            "HEARTBEAT" => Ok(Action::Heartbeat),
            other => Err(ApiError::bad_request(format!(
                "`{other}` is not a known type; expected `SUBSCRIBE`, `UPDATE`, `MESSAGE` or `HEARTBEAT`"
            ))),
        }
    }
}

impl Subscribe {
    fn action(self, now: f64) -> Result<Action> {
        let mut known = BTreeSet::new();
        for task in self.unacknowledged_tasks.unwrap_or_default() {
            let id = TaskId::new(task.task_id.value)
                .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, &error))?;
            known.insert(id);
        }
        let mut updates = Vec::new();
        for update in self.unacknowledged_updates.unwrap_or_default() {
            updates.push(decode_status("subscribe.unacknowledged_updates.status", &update.status, now)?);
        }
        Ok(Action::Subscribe { known, updates })
    }
}
