//! What processes in containers may ask for over the socket of executors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use cofferdam_tests::assert_contains;
use cofferdam_tests::daemon::Daemon;
use data_encoding::BASE64;

use super::*;

/// Sends a request to the socket of executors. Returns the status and the whole response.
pub(super) fn request(world: &World, path: &str, token: Option<&str>, body: &Json) -> (u16, String) {
    let mut response = String::new();
    send(world, path, token, body).read_to_string(&mut response).expect("a valid answer");
    (response.split(' ').nth(1).expect("a valid answer").parse().expect("a valid answer"), response)
}

pub(super) fn send(world: &World, path: &str, token: Option<&str>, body: &Json) -> UnixStream {
    let mut stream =
        UnixStream::connect(world.config.runtime_dir.join("executor/executor.sock")).expect("a valid answer");
    let body = body.to_string();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n{authorization}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a valid answer");
    stream
}

/// The token of the executor in a container, as a process in it finds it.
fn token(daemon: &Daemon, container: &str) -> String {
    let environ = fs::read(format!("/proc/{}/environ", process(daemon, container))).expect("a valid answer");
    let environ = String::from_utf8(environ).expect("a valid answer");
    let token = environ
        .split('\0')
        .find_map(|variable| variable.strip_prefix("MESOS_EXECUTOR_AUTHENTICATION_TOKEN="));
    token.expect("a valid answer").to_owned()
}

#[test]
fn a_token_is_good_for_its_executor_and_its_containers_alone() {
    let world = world();
    let daemon = Daemon::start(&world);
    for id in ["one", "two"] {
        launch(&daemon, &executor(id, ""), &task(id, "run"));
        drop(until_state(&daemon, id, "TASK_RUNNING"));
    }
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).unwrap();
    let container = |index: usize| executors["executors"][index]["container_id"]["value"].as_str().unwrap();
    let (one, two) = (container(0), container(1));
    let own = token(&daemon, one);
    assert_ne!(own, token(&daemon, two));

    let update = |executor: &str, task: &str, state: &str| {
        json!({
            "type": "UPDATE", "framework_id": {"value": "tests"}, "executor_id": {"value": executor},
            "update": {"status": {"task_id": {"value": task}, "state": state, "uuid": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        })
    };
    let api = "/api/v1/executor";
    let status = |token: Option<&str>, body: &Json| request(&world, api, token, body).0;
    assert_eq!(status(None, &update("one", "one", "TASK_FINISHED")), 401);
    assert_eq!(status(Some("guessed"), &update("one", "one", "TASK_FINISHED")), 401);
    assert_eq!(status(Some(&own), &update("two", "two", "TASK_FINISHED")), 403);
    assert_eq!(status(Some(&own), &update("one", "two", "TASK_FINISHED")), 400);
    assert_eq!(status(Some(&own), &update("one", "one", "TASK_STAGING")), 400);
    assert_eq!(status(Some(&own), &json!({"type": "UPDATE"})), 400);
    let mut large = update("one", "one", "TASK_RUNNING");
    large["update"]["status"]["message"] = "x".repeat(100_000).into();
    assert_eq!(status(Some(&own), &large), 400);

    // Nothing of a subscription is acknowledged unless all of it can be kept.
    let too_many: Vec<Json> = (0..2000_u128)
        .map(|number| {
            let mut update = update("one", "one", "TASK_RUNNING")["update"].take();
            update["status"]["uuid"] = BASE64.encode(&number.to_be_bytes()).into();
            update
        })
        .collect();
    let subscribe = json!({
        "type": "SUBSCRIBE", "framework_id": {"value": "tests"}, "executor_id": {"value": "one"},
        "subscribe": {"unacknowledged_tasks": [], "unacknowledged_updates": too_many},
    });
    assert_eq!(status(Some(&own), &subscribe), 503);

    let call = |kind: &str, body: Json| json!({"type": kind, kind.to_lowercase(): body});
    let nested = |parent: &str| json!({"value": "x", "parent": {"value": parent}});
    let operator = |body: &Json| request(&world, "/api/v1", Some(&own), body);
    for body in [
        call("KILL_CONTAINER", json!({"container_id": {"value": two}})),
        call("KILL_CONTAINER", json!({"container_id": {"value": one}})),
        call("WAIT_CONTAINER", json!({"container_id": nested(two)})),
        call("REMOVE_NESTED_CONTAINER", json!({"container_id": nested(two)})),
        call("LAUNCH_NESTED_CONTAINER", json!({"container_id": nested(two), "command": {"value": "true"}})),
        call("LAUNCH_CONTAINER", json!({"container_id": {"value": "x"}, "command": {"value": "true"}})),
        call(
            "LAUNCH_NESTED_CONTAINER",
            json!({"container_id": nested(one), "command": {"value": "true", "user": "daemon"}}),
        ),
        call(
            "LAUNCH_NESTED_CONTAINER",
            json!({"container_id": nested(one), "command": {"value": "true"},
            "container": {"type": "MESOS", "mesos": {"rootfs": "/"}}}),
        ),
        call(
            "LAUNCH_NESTED_CONTAINER",
            json!({"container_id": nested(one), "command": {"value": "true"},
            "container": {"type": "MESOS", "volumes": [{"mode": "RW", "container_path": "/x", "host_path": "/etc"}]}}),
        ),
        call(
            "LAUNCH_NESTED_CONTAINER",
            json!({"container_id": nested(one), "command": {"value": "true", "environment": {"variables": [
                {"name": "A", "type": "SECRET", "secret": {"type": "REFERENCE", "reference": {"name": "other"}}},
            ]}}}),
        ),
        call(
            "LAUNCH_NESTED_CONTAINER",
            json!({"container_id": nested(one), "command": {"value": "true", "uris": [{"value": "file:///etc/shadow"}]}}),
        ),
        json!({"type": "GET_FLAGS"}),
        call("KILL_TASK", json!({"task_id": {"value": "two"}})),
        call("READ_FILE", json!({"path": "/etc/shadow", "offset": 0})),
    ] {
        let (status, response) = operator(&body);
        assert_eq!(status, 403, "{body}: {response}");
    }
    let launched = operator(&call(
        "LAUNCH_NESTED_CONTAINER",
        json!({"container_id": nested(one), "command": {"value": "exit 7"}}),
    ));
    assert_eq!(launched.0, 200, "{}", launched.1);
    let waited = operator(&call("WAIT_NESTED_CONTAINER", json!({"container_id": nested(one)})));
    assert!(waited.1.contains("1792"), "{}", waited.1);
    assert_eq!(operator(&call("REMOVE_NESTED_CONTAINER", json!({"container_id": nested(one)}))).0, 200);

    for id in ["one", "two"] {
        shut_down(&daemon, id).unwrap();
        drop(until_ended(&daemon, id));
    }
    assert_eq!(status(Some(&own), &update("one", "one", "TASK_FINISHED")), 401, "the executor has ended");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_cannot_forge_what_identifies_its_container() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let container = container(&daemon);
    let own = token(&daemon, &container);
    let update = json!({
        "type": "UPDATE", "framework_id": {"value": "tests"}, "executor_id": {"value": "one"},
        "update": {"status": {
            "task_id": {"value": "a"}, "state": "TASK_RUNNING", "uuid": "AAAAAAAAAAAAAAAAAAAAAA==", "data": "Zm9yZ2Vk",
            "container_status": {"container_id": {"value": "other"}, "executor_pid": 1},
        }},
    });
    let (status, response) = request(&world, "/api/v1/executor", Some(&own), &update);
    assert_eq!(status, 202, "{response}");
    let mut received = Received::default();
    let is_there = |received: &Received| {
        received
            .statuses
            .get("a")
            .and_then(|statuses| statuses.last())
            .is_some_and(|last| last["data"] == "Zm9yZ2Vk")
    };
    received.until(&daemon, &mut daemon.updates(), is_there);
    let known = &received.last("a")["container_status"];
    assert_eq!(known["container_id"]["value"], json!(container));
    assert!(known["executor_pid"].as_u64().unwrap() > 1, "{known}");
    shut_down(&daemon, "one").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_that_is_not_connected_hears_of_its_shutdown_when_it_subscribes_again() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let container = container(&daemon);
    // Opened before the end, after which the container is removed.
    let mut output = File::open(output(&world, &container)).unwrap();
    let pid = rustix::process::Pid::from_raw(process(&daemon, &container)).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // Another subscription ends its own, is replaced by a third one, and is told so; that ends.
    let subscribe = json!({
        "type": "SUBSCRIBE", "framework_id": {"value": "tests"}, "executor_id": {"value": "one"},
        "subscribe": {"unacknowledged_tasks": [], "unacknowledged_updates": []},
    });
    let own = token(&daemon, &container);
    let subscribed = || {
        let mut stream = send(&world, "/api/v1/executor", Some(&own), &subscribe);
        stream.read_exact(&mut [0; 12]).unwrap();
        stream
    };
    let (replaced, last) = (subscribed(), subscribed());
    let events = io::read_to_string(replaced).unwrap();
    assert_contains(
        &events,
        &["\"type\":\"ERROR\"", "another subscription of the executor has replaced this one"],
    );
    drop(last);
    shut_down(&daemon, "one").unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    drop(until_ended(&daemon, "a"));
    assert_contains(&io::read_to_string(&mut output).unwrap(), &["SHUTDOWN"]);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_subscription_may_be_longer_than_other_requests() {
    let mut world = world();
    world.max_body = Some("16 KiB".to_owned());
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let own = token(&daemon, &container(&daemon));
    let status = |kind: &str, length: usize| {
        let body = json!({
            "type": kind, "framework_id": {"value": "tests"}, "executor_id": {"value": "one"},
            "subscribe": {"unacknowledged_tasks": [{"task_id": {"value": "a"}, "name": "x".repeat(length)}]},
        });
        let mut stream = send(&world, "/api/v1/executor", Some(&own), &body);
        // That of a subscription has no end.
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        String::from_utf8_lossy(&head).into_owned()
    };
    assert_eq!(status("SUBSCRIBE", 20 << 10), "HTTP/1.1 200");
    assert_eq!(status("SUBSCRIBE", 65 << 10), "HTTP/1.1 413");
    assert_eq!(status("HEARTBEAT", 20 << 10), "HTTP/1.1 413");
    shut_down(&daemon, "one").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_socket_is_for_containers_and_the_journals_are_not() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.config.runtime_dir.join("executor/executor.sock")), 0o666);
    assert_eq!(mode(&world.config.runtime_dir.join("executor")), 0o755);
    assert_eq!(mode(&world.config.work_dir.join("executors")), 0o700);
    let journal = journals(&world).pop().unwrap();
    assert_eq!(mode(&journal), 0o600);
    let container = container(&daemon);
    let token = token(&daemon, &container);
    let call =
        json!({"type": "INSPECT_CONTAINER", "inspect_container": {"container_id": {"value": container}}});
    let shown = daemon.call(&call).unwrap().to_string();
    assert!(shown.contains("MESOS_EXECUTOR_ID") && !shown.contains(&token), "{shown}");
    assert_eq!(world.files_with(&token), Vec::<std::path::PathBuf>::new());
    shut_down(&daemon, "one").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}
