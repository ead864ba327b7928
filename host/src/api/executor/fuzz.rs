//! Fuzz tests of the bodies of executors' calls, which come from containers.

use axum::response::IntoResponse;
use cofferdam_fuzz::{fuzz_bytes, fuzz_json};
use serde_json::{Value as Json, json};

use super::decode::{Action, Call};
use crate::api::encoding::Encoding;
use crate::api::operator::decode::task::{MAX_STATUS, decode_status};
use crate::api::operator::encode::task::status;
use crate::api::operator::types::Call as OperatorCall;
use cofferdam_core::executor::Update;

/// The time of updates that have none.
const NOW: f64 = 1.5e9;

fn samples() -> Vec<Json> {
    let status = json!({
        "task_id": {"value": "task"},
        "state": "TASK_RUNNING",
        "uuid": "AAECAwQFBgcICQoLDA0ODw==",
        "timestamp": 1.5,
        "source": "SOURCE_EXECUTOR",
        "reason": "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED",
        "message": "it is healthy",
        "healthy": true,
        "data": "Zm9v",
        "labels": {"labels": [{"key": "a", "value": "b"}]},
        "container_status": {"executor_pid": 1, "container_id": {"value": "c", "parent": {"value": "p"}}},
        "check_status": {"type": "COMMAND", "command": {"exit_code": 1}},
    });
    let call = |kind: &str, field: &str, body: Json| json!({"type": kind, "framework_id": {"value": "f"}, "executor_id": {"value": "e"}, field: body});
    let known = json!({"task_id": {"value": "known"}, "name": "known", "agent_id": {"value": "a"}});
    vec![
        call("SUBSCRIBE", "subscribe", json!({})),
        call(
            "SUBSCRIBE",
            "subscribe",
            json!({"unacknowledged_tasks": [known], "unacknowledged_updates": [{"status": status}]}),
        ),
        call("UPDATE", "update", json!({"status": status})),
        call("MESSAGE", "message", json!({"data": "Zm9v"})),
        call("HEARTBEAT", "heartbeat", json!({})),
    ]
}

/// Decodes a call as `dispatch` does.
fn check(body: &[u8]) {
    let action = Call::read(Encoding::Json, body).and_then(|call| call.action(NOW));
    match action {
        Err(error) => assert!(error.into_response().status().is_client_error()),
        Ok(Action::Subscribe { updates, .. }) => updates.iter().for_each(check_update),
        Ok(Action::Update(update)) => check_update(&update),
        Ok(Action::Message(_) | Action::Heartbeat) => {}
    }
    // What is sent to the other path.
    drop(OperatorCall::from_json(body));
}

/// What clients get of an update can be read again, and is the same.
fn check_update(update: &Update) {
    let encoded = status(update, "executor", "agent");
    if encoded.to_string().len() <= MAX_STATUS {
        let again = decode_status("status", &encoded, NOW);
        assert_eq!(again.unwrap_or_else(|error| panic!("{update:?}: {error}")), *update);
    }
}

#[test]
fn the_samples_are_valid() {
    for sample in samples() {
        let action =
            Call::read(Encoding::Json, sample.to_string().as_bytes()).and_then(|call| call.action(NOW));
        assert!(action.is_ok(), "{sample}: {action:?}");
    }
}

#[test]
fn any_call_of_an_executor_is_decoded_or_refused() {
    fuzz_json(&samples(), |call| check(call.to_string().as_bytes()));
}

#[test]
fn any_body_of_an_executor_is_decoded_or_refused() {
    let bodies: Vec<_> = samples().iter().map(|call| call.to_string().into_bytes()).collect();
    fuzz_bytes(&bodies, &["{", "[", "\"", "\\ud800", "1e999", "null", "\u{fe}"], check);
}
