//! Fuzz tests of the bodies of calls.

use std::sync::LazyLock;

use cofferdam_fuzz::{fuzz_bytes, fuzz_json};
use serde_json::{Value as Json, json};

use super::decode::task::{
    Settings, decode_executor_id, decode_framework_id, decode_kill_policy, decode_task, decode_task_group,
    decode_task_id, decode_update_id,
};
use super::decode::{decode_id, decode_launch, decode_nested_launch};
use super::encode_launch;
use super::stream::take_record;
use super::types::Call;
use cofferdam_core::config::ExecutorConfig;

fn samples() -> Vec<Json> {
    let launch = json!({
        "container_id": {"value": "web", "parent": {"value": "pod"}},
        "command": {
            "shell": false, "value": "sh", "arguments": ["sh", "-c", "true"], "user": "nobody",
            "environment": {"variables": [{"name": "A", "type": "VALUE", "value": "b"}]},
            "uris": [{"value": "http://host/x.tar.gz", "extract": true, "executable": false, "output_file": "x"}],
            "working_directory": "/w",
        },
        "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.5}}],
        "limits": {"mem": {"value": 64}, "cpus": {"value": "Infinity"}},
        "container": {
            "type": "MESOS",
            "volumes": [{"mode": "RW", "container_path": "/data", "host_path": "/srv"}],
            "linux_info": {
                "share_pid_namespace": true,
                "effective_capabilities": {"capabilities": ["NET_RAW"]},
                "seccomp": {"profile_name": "default"},
            },
            "network_infos": [{"name": "net", "port_mappings": [{"host_port": 80, "container_port": 8080}]}],
            "rlimit_info": {"rlimits": [{"type": "RLMT_NOFILE", "soft": 10, "hard": 20}]},
            "tty_info": {"window_size": {"rows": 24, "columns": 80}},
        },
    });
    let id = json!({"container_id": {"value": "a", "parent": {"value": "b"}}, "signal": 9, "force": true});
    let files = json!({"path": "/pod/stdout", "offset": 1, "length": 10});
    let call = |kind: &str, field: &str, body: &Json| json!({"type": kind, field: body});
    let framework = json!({
        "id": {"value": "f"}, "name": "framework", "user": "nobody", "checkpoint": true,
        "capabilities": [{"type": "PARTITION_AWARE"}],
    });
    // Tasks have no terminal.
    let mut container = launch["container"].clone();
    container.as_object_mut().unwrap().remove("tty_info");
    let task = |name: &str| {
        json!({
            "name": name,
            "task_id": {"value": name},
            "agent_id": {"value": "agent"},
            "resources": launch["resources"],
            "limits": launch["limits"],
            "command": launch["command"],
            "container": container,
            "health_check": {"type": "COMMAND", "command": {"value": "true"}, "delay_seconds": 0.5},
            "check": {"type": "TCP", "tcp": {"port": 80}},
            "kill_policy": {"grace_period": {"nanoseconds": 5}},
            "max_completion_time": {"nanoseconds": 5},
            "labels": {"labels": [{"key": "a", "value": "b"}]},
        })
    };
    let mut of_executor = task("plain");
    let executor = json!({
        "type": "CUSTOM", "executor_id": {"value": "e"}, "framework_id": {"value": "f"}, "name": "executor",
        "command": launch["command"], "container": container, "resources": launch["resources"],
        "shutdown_grace_period": {"nanoseconds": 5},
    });
    of_executor["executor"] = executor.clone();
    of_executor.as_object_mut().unwrap().remove("command");
    let default = json!({"type": "DEFAULT", "executor_id": {"value": "e"}, "framework_id": {"value": "f"}});
    let of_task = json!({
        "framework_id": {"value": "f"}, "task_id": {"value": "t"}, "uuid": "AAECAwQFBgcICQoLDA0ODw==",
        "kill_policy": {"grace_period": {"nanoseconds": 5}},
    });
    let of_an_executor =
        json!({"framework_id": {"value": "f"}, "executor_id": {"value": "e"}, "data": "Zm9v"});
    vec![
        call("LAUNCH_TASK", "launch_task", &json!({"framework_info": framework, "task_info": task("one")})),
        call("LAUNCH_TASK", "launch_task", &json!({"framework_info": framework, "task_info": of_executor})),
        call(
            "LAUNCH_TASK_GROUP",
            "launch_task_group",
            &json!({
                "framework_info": framework,
                "executor_info": default,
                "task_group": {"tasks": [task("one"), task("two")]},
            }),
        ),
        call("KILL_TASK", "kill_task", &of_task),
        call("ACKNOWLEDGE_STATUS_UPDATE", "acknowledge_status_update", &of_task),
        call("SHUTDOWN_EXECUTOR", "shutdown_executor", &of_an_executor),
        call("MESSAGE_EXECUTOR", "message_executor", &of_an_executor),
        call("LAUNCH_CONTAINER", "launch_container", &launch),
        call("RUN_CONTAINER", "run_container", &launch),
        call("LAUNCH_NESTED_CONTAINER", "launch_nested_container", &launch),
        call("UPDATE_CONTAINER", "update_container", &launch),
        call("KILL_CONTAINER", "kill_container", &id),
        call("WAIT_CONTAINER", "wait_container", &id),
        call("READ_FILE", "read_file", &files),
        call(
            "GET_CONTAINERS",
            "get_containers",
            &json!({"show_nested": true, "container_ids": [{"value": "a"}]}),
        ),
        json!({"type": "GET_HEALTH"}),
    ]
}

/// Decodes a call as `dispatch` does. What is accepted can be encoded, and is decoded to the same.
fn check(body: &[u8]) {
    match Call::from_json(body) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Call::LaunchContainer(call) | Call::RunContainer(call)) => {
            let Ok(request) = decode_launch(&call) else { return };
            let again = decode_launch(&encode_launch(&request));
            assert_eq!(again.unwrap_or_else(|error| panic!("{request:?}: {error}")), request);
        }
        Ok(Call::LaunchNestedContainer(call)) => drop(decode_nested_launch(&call)),
        Ok(Call::KillContainer(call)) => drop(decode_id("id", &call.container_id)),
        Ok(Call::WaitContainer(call)) => drop(decode_id("id", &call.container_id)),
        Ok(call) => check_of_tasks(&call),
    }
}

fn settings() -> Settings<'static> {
    static EXECUTORS: LazyLock<ExecutorConfig> = LazyLock::new(|| ExecutorConfig {
        launcher_dir: Some("/usr/libexec/cofferdam".into()),
        ..ExecutorConfig::default()
    });
    Settings { executors: &EXECUTORS, agent_id: "agent", default_container: None, agent_image: None }
}

/// Decodes a call about tasks as `dispatch` does.
fn check_of_tasks(call: &Call) {
    let settings = settings();
    match call {
        Call::LaunchTask(call) => drop(decode_task(call, &settings)),
        Call::LaunchTaskGroup(call) => drop(decode_task_group(call, &settings)),
        Call::KillTask(call) => {
            drop(call.framework_id.as_ref().map(|id| decode_framework_id("framework_id", id)));
            drop(decode_task_id("task_id", &call.task_id));
            drop(decode_kill_policy("kill_policy", call.kill_policy.as_ref()));
        }
        Call::AcknowledgeStatusUpdate(call) => {
            drop(decode_framework_id("framework_id", &call.framework_id));
            drop(decode_task_id("task_id", &call.task_id));
            drop(decode_update_id("uuid", &call.uuid));
        }
        Call::ShutdownExecutor(call) => {
            drop(decode_framework_id("framework_id", &call.framework_id));
            drop(decode_executor_id("executor_id", &call.executor_id));
        }
        Call::MessageExecutor(call) => {
            drop(decode_framework_id("framework_id", &call.framework_id));
            drop(decode_executor_id("executor_id", &call.executor_id));
        }
        _ => {}
    }
}

/// Whether mutations begin with what is valid.
#[test]
fn the_samples_are_valid() {
    let settings = settings();
    for sample in samples() {
        match Call::from_json(sample.to_string().as_bytes()) {
            Ok(Call::LaunchTask(call)) => drop(decode_task(&call, &settings).unwrap()),
            Ok(Call::LaunchTaskGroup(call)) => drop(decode_task_group(&call, &settings).unwrap()),
            call => drop(call.unwrap()),
        }
    }
}

#[test]
fn any_call_is_decoded_or_refused() {
    fuzz_json(&samples(), |call| check(call.to_string().as_bytes()));
}

#[test]
fn any_body_is_decoded_or_refused() {
    let bodies: Vec<_> = samples().iter().map(|call| call.to_string().into_bytes()).collect();
    fuzz_bytes(&bodies, &["{", "[", "\"", "\\ud800", "1e999", "null", "\u{fe}"], check);
}

#[test]
fn any_stream_of_records_is_read_or_refused() {
    let samples = [b"5\nhello0\n12\nhello, world".to_vec(), b"99999999\n".to_vec()];
    fuzz_bytes(&samples, &["\n", "0", "-", "18446744073709551615"], |stream| {
        let mut received = stream.to_vec();
        let mut left = received.len();
        while let Ok(Some(record)) = take_record(&mut received) {
            assert!(received.len() + record.len() < left, "it is shorter by each record");
            left = received.len();
        }
    });
}
