//! Events for executors, in the form of Mesos.

use data_encoding::BASE64;
use serde_json::{Value as Json, json};

use crate::api::context::ApiContext;
use crate::api::operator::{agent_info, encode_id};
use cofferdam_core::executor::{Event, ExecutorState};

/// The first event.
pub(super) fn subscribed(context: &ApiContext, executor: &ExecutorState) -> Json {
    json!({
        "type": "SUBSCRIBED",
        "subscribed": {
            "executor_info": executor.executor.info,
            "framework_info": executor.framework.info,
            "agent_info": agent_info(&context.agent),
            "container_id": encode_id(&executor.container),
        },
    })
}

pub(super) fn heartbeat() -> Json {
    json!({"type": "HEARTBEAT"})
}

/// Any other event.
pub(super) fn encode(event: Event) -> Json {
    match event {
        Event::Subscribed => json!({"type": "SUBSCRIBED"}),
        Event::Launch(task) => json!({"type": "LAUNCH", "launch": {"task": task}}),
        Event::LaunchGroup(tasks) => {
            json!({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": tasks}}})
        }
        Event::Kill { task, policy } => {
            let mut kill = json!({"task_id": {"value": task.as_str()}});
            if let Some(policy) = policy {
                kill["kill_policy"] = policy;
            }
            json!({"type": "KILL", "kill": kill})
        }
        Event::Acknowledged { task, id } => json!({
            "type": "ACKNOWLEDGED",
            "acknowledged": {"task_id": {"value": task.as_str()}, "uuid": BASE64.encode(id.as_bytes())},
        }),
        Event::Message(data) => json!({"type": "MESSAGE", "message": {"data": BASE64.encode(&data)}}),
        Event::Shutdown => json!({"type": "SHUTDOWN"}),
        Event::Error(message) => json!({"type": "ERROR", "error": {"message": message}}),
    }
}
