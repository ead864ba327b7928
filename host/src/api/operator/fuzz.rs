//! Fuzz tests of the bodies of calls.

use cofferdam_fuzz::{fuzz_bytes, fuzz_json};
use serde_json::{Value as Json, json};

use super::decode::{decode_id, decode_launch, decode_nested_launch};
use super::encode_launch;
use super::stream::take_record;
use super::types::Call;

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
        "limits": {"mem": {"value": 64}, "cpus": "Infinity"},
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
    vec![
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
        Ok(_) => {}
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
