//! Clients and executors with an independent implementation of protocol buffers.

use std::process::Command;
use std::time::Duration;

use cofferdam_tests::daemon::{Daemon, Updates};
use cofferdam_tests::world::TOKEN;
use serde_json::{Value as Json, json};

use super::{PYTHON, address, has_protobuf, script, world};

#[test]
fn a_client_calls_in_protocol_buffers_on_one_connection() {
    if !has_protobuf() {
        return;
    }
    let world = world();
    let daemon = Daemon::start(&world);
    let client = Command::new(PYTHON)
        .arg("-B")
        .arg(script("client.py"))
        .args([&address(&daemon), TOKEN])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{errors}\n{}", daemon.log());
    assert!(!daemon.log().contains(TOKEN), "the token is in the log");
}

/// The next message of a kind.
fn next(daemon: &Daemon, updates: &mut Updates, kind: &str) -> Json {
    loop {
        let mut message = updates.next().unwrap_or_else(|| panic!("the stream ended\n{}", daemon.log()));
        if message["type"] == kind {
            return message[kind.to_lowercase()].take();
        }
    }
}

#[test]
fn an_executor_uses_tcp_and_protocol_buffers() {
    if !has_protobuf() {
        return;
    }
    let mut world = world();
    world.config.executors.registration_timeout = Duration::from_secs(60);
    let daemon = Daemon::start(&world);
    let mut updates = daemon.updates();
    let framework = json!({"id": {"value": "tests"}, "name": "tests", "user": ""});
    let executor = json!({
        "executor_id": {"value": "python"}, "type": "CUSTOM",
        "command": {"shell": false, "value": PYTHON, "arguments": ["python3", "-B", script("executor.py")]},
    });
    let task = json!({
        "task_id": {"value": "t"}, "name": "reverse", "agent_id": {"value": "any"}, "data": "AAEC",
        "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}}],
    });
    let launch = json!({"framework_info": framework, "executor_info": executor, "task_info": task});
    daemon.call(&json!({"type": "LAUNCH_TASK", "launch_task": launch})).unwrap();
    let mut status = |state: &str| {
        let mut update = next(&daemon, &mut updates, "STATUS_UPDATE");
        let output = daemon
            .list()
            .iter()
            .map(|container| output(&daemon, &container.container_id.value))
            .collect::<String>();
        assert_eq!(update["status"]["state"], state, "{update}\n{output}");
        let uuid = &update["status"]["uuid"];
        let acknowledge =
            json!({"framework_id": {"value": "tests"}, "task_id": {"value": "t"}, "uuid": uuid});
        let call = json!({"type": "ACKNOWLEDGE_STATUS_UPDATE", "acknowledge_status_update": acknowledge});
        daemon.call(&call).unwrap();
        update["status"].take()
    };
    assert_eq!(status("TASK_RUNNING")["data"], "AgEA");

    let to = json!({"framework_id": {"value": "tests"}, "executor_id": {"value": "python"}});
    let mut message = to.clone();
    message["data"] = "aGk=".into();
    let mut other_updates = daemon.updates();
    daemon.call(&json!({"type": "MESSAGE_EXECUTOR", "message_executor": message})).unwrap();
    assert_eq!(next(&daemon, &mut other_updates, "FRAMEWORK_MESSAGE")["data"], "aGkh");

    daemon.call(&json!({"type": "KILL_TASK", "kill_task": {"task_id": {"value": "t"}}})).unwrap();
    assert_eq!(status("TASK_KILLED")["message"], "as asked");
    let container = daemon.list()[0].container_id.value.clone();
    daemon.call(&json!({"type": "SHUTDOWN_EXECUTOR", "shutdown_executor": to})).unwrap();
    let id = cofferdam_tests::world::id(&container);
    let ended = daemon.wait(&id).unwrap();
    assert_eq!(ended.exit_status, Some(0), "{}", output(&daemon, &container));
    // SUBSCRIBED, LAUNCH, ACKNOWLEDGED, MESSAGE, KILL, ACKNOWLEDGED, SHUTDOWN.
    assert_eq!(output(&daemon, &container), "1\n2\n4\n5\n3\n4\n7\n");
}

/// What an executor has written.
fn output(daemon: &Daemon, container: &str) -> String {
    let read = |file: &str| {
        let read = json!({"path": format!("/containers/{container}/{file}"), "offset": 0});
        let file = daemon.call(&json!({"type": "READ_FILE", "read_file": read})).unwrap();
        let data = data_encoding::BASE64.decode(file["data"].as_str().unwrap().as_bytes()).unwrap();
        String::from_utf8(data).unwrap()
    };
    read("stdout") + &read("stderr")
}
