//! Executors from their launch to their end.

use std::time::Duration;

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::{assert_contains, text, wait_for_text};
use serde_json::json;

use super::*;

#[test]
fn a_task_runs_to_its_end_and_its_updates_arrive_in_order() {
    let world = world();
    let daemon = Daemon::start(&world);
    let mut updates = daemon.updates();
    launch(&daemon, &executor("one", ""), &task("a", "finish"));
    let mut received = Received::default();
    received.until(&daemon, &mut updates, |received| received.has_ended("a"));
    assert_eq!(received.states("a"), ["TASK_RUNNING", "TASK_FINISHED"]);
    let running = &received.statuses["a"][0];
    assert_eq!(running["source"], "SOURCE_EXECUTOR");
    assert_eq!(running["data"], "aGk=", "fields that the agent does not know are passed on");
    assert_eq!(running["executor_id"]["value"], "one");
    let container = container(&daemon);
    assert_eq!(running["container_status"]["container_id"]["value"], json!(container));
    assert!(running["container_status"]["executor_pid"].as_u64().unwrap() > 1);

    // Another task of the same executor, in the same container, which gets its resources.
    launch(&daemon, &executor("one", ""), &task("b", "run"));
    received.until(&daemon, &mut updates, |received| received.states("b") == ["TASK_RUNNING"]);
    assert_eq!(super::container(&daemon), container);
    kill(&daemon, "b").unwrap();
    received.until(&daemon, &mut updates, |received| received.has_ended("b"));
    assert_eq!(received.states("b"), ["TASK_RUNNING", "TASK_KILLED"]);
    shut_down(&daemon, "one").unwrap();
    assert_nothing_left(&world, &daemon);
}

/// Variables of the configuration for all executors.
pub(super) fn with_variables(world: &mut World) {
    let variables = &mut world.config.executors.environment_variables;
    variables.insert("OF_AGENT".into(), "agent".into());
    variables.insert("OF_BOTH".into(), "agent".into());
}

/// Variables of the framework for its executor, some of which it may not set.
pub(super) fn add_variables(executor: &mut Json) {
    let variables = executor["command"]["environment"]["variables"].as_array_mut().expect("variables");
    for (name, value) in [("OF_BOTH", "framework"), ("MESOS_EXECUTOR_ID", "forged")] {
        variables.push(json!({"name": name, "value": value}));
    }
}

/// What every executor `one` finds in its environment.
pub(super) fn expected_environment(world: &World, checkpoint: bool) -> BTreeMap<String, String> {
    let agent = text(&world.config.work_dir.join("agent_id"));
    let mut variables = vec![
        ("LIBPROCESS_PORT", "0"),
        ("MESOS_AGENT_ENDPOINT", "127.0.0.1:1"),
        ("MESOS_CHECKPOINT", if checkpoint { "1" } else { "0" }),
        ("MESOS_EXECUTOR_ID", "one"),
        ("MESOS_FRAMEWORK_ID", "tests"),
        ("MESOS_HTTP_COMMAND_EXECUTOR", "1"),
        ("MESOS_SLAVE_ID", agent.trim()),
        ("MESOS_SLAVE_PID", "slave(1)@127.0.0.1:1"),
        ("OF_AGENT", "agent"),
        ("OF_BOTH", "framework"),
    ];
    let grace = format!("{}secs", world.config.executors.shutdown_grace_period.as_secs());
    variables.push(("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", &grace));
    if checkpoint {
        variables.extend([("MESOS_RECOVERY_TIMEOUT", "15mins"), ("MESOS_SUBSCRIPTION_BACKOFF_MAX", "2secs")]);
    }
    variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What an executor has written of its environment, without its token.
pub(super) fn environment(output: &Path) -> BTreeMap<String, String> {
    let text = text(output);
    let variables = text.lines().filter_map(|line| line.split_once('='));
    let is_of_agent = |name: &str| ["MESOS_", "LIBPROCESS_", "OF_"].iter().any(|it| name.starts_with(it));
    let mut found: BTreeMap<String, String> = variables
        .filter(|(name, _)| is_of_agent(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let token = found.remove("MESOS_EXECUTOR_AUTHENTICATION_TOKEN");
    assert!(token.is_some_and(|token| !token.is_empty()), "{text}");
    found
}

#[test]
fn an_executor_has_the_environment_of_executors_of_mesos() {
    for checkpoint in [true, false] {
        let mut world = world();
        with_variables(&mut world);
        let daemon = Daemon::start(&world);
        let mut info = executor("one", "");
        add_variables(&mut info);
        let line = format!("env; exec {}", paths::build().join("test-executor").display());
        info["command"]["shell"] = true.into();
        info["command"]["value"] = line.into();
        daemon.call(&launch_call(&info, &task("a", "run"), checkpoint)).unwrap();
        drop(until_state(&daemon, "a", "TASK_RUNNING"));
        let id = container(&daemon);
        let sandbox = world.config.work_dir.join("containers").join(&id).display().to_string();
        let socket = world.config.runtime_dir.join("executor/executor.sock").display().to_string();
        let mut expected = expected_environment(&world, checkpoint);
        expected.extend(
            [("MESOS_DOMAIN_SOCKET", &socket), ("MESOS_SANDBOX", &sandbox), ("MESOS_DIRECTORY", &sandbox)]
                .map(|(name, value)| (name.to_owned(), value.clone())),
        );
        assert_eq!(environment(&output(&world, &id)), expected);
        kill(&daemon, "a").unwrap();
        drop(until_ended(&daemon, "a"));
        shut_down(&daemon, "one").unwrap();
        assert_nothing_left(&world, &daemon);
    }
}

#[test]
fn a_group_is_delivered_as_a_group() {
    let world = world();
    let daemon = Daemon::start(&world);
    let group = json!({
        "type": "LAUNCH_TASK_GROUP",
        "launch_task_group": {
            "framework_info": framework(true), "executor_info": executor("group", ""),
            "task_group": {"tasks": [task("a", "finish"), task("b", "run")]},
        },
    });
    daemon.call(&group).unwrap();
    let mut received = Received::default();
    received.until(&daemon, &mut daemon.updates(), |received| {
        received.has_ended("a") && received.states("b") == ["TASK_RUNNING"]
    });
    let output = output(&world, &container(&daemon));
    assert_contains(&text(&output), &["LAUNCH_GROUP\nLAUNCH a\n", "LAUNCH b\n"]);
    shut_down(&daemon, "group").unwrap();
    let ended = until_ended(&daemon, "b");
    assert_eq!(ended.last("b")["reason"], "REASON_EXECUTOR_TERMINATED");
    assert_eq!(ended.last("b")["state"], "TASK_KILLED");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_tasks_of_an_executor_that_exits_have_failed() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("exits", ""), &task("a", "exit"));
    let received = until_ended(&daemon, "a");
    assert_eq!(received.states("a"), ["TASK_RUNNING", "TASK_FAILED"]);
    let last = received.last("a");
    assert_eq!(
        (&last["source"], &last["reason"]),
        (&json!("SOURCE_AGENT"), &json!("REASON_EXECUTOR_TERMINATED"))
    );
    assert_contains(last["message"].as_str().unwrap(), &["exited with 3"]);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_that_cannot_be_launched_fails_its_tasks() {
    let world = world();
    let daemon = Daemon::start(&world);
    let mut missing = executor("missing", "");
    missing["command"] = json!({"shell": false, "value": "/no/such/program"});
    launch(&daemon, &missing, &task("a", "finish"));
    let received = until_ended(&daemon, "a");
    assert_eq!(received.states("a"), ["TASK_FAILED"]);
    assert_eq!(received.last("a")["reason"], "REASON_CONTAINER_LAUNCH_FAILED");
    assert_contains(received.last("a")["message"].as_str().unwrap(), &["/no/such/program"]);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_that_does_not_subscribe_in_time_is_ended() {
    let mut world = world();
    world.config.executors.registration_timeout = Duration::from_millis(300);
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("deaf", "deaf"), &task("a", "finish"));
    let received = until_ended(&daemon, "a");
    assert_eq!(received.states("a"), ["TASK_FAILED"]);
    assert_eq!(received.last("a")["reason"], "REASON_EXECUTOR_REGISTRATION_TIMEOUT");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_task_that_is_killed_before_its_executor_subscribes_ends_with_it() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("deaf", "deaf"), &task("a", "finish"));
    kill(&daemon, "a").unwrap();
    let received = until_ended(&daemon, "a");
    assert_eq!(received.states("a"), ["TASK_KILLED"]);
    assert_eq!(received.last("a")["reason"], "REASON_TASK_KILLED_DURING_LAUNCH");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_that_ignores_its_shutdown_is_killed() {
    let mut world = world();
    world.config.executors.shutdown_grace_period = Duration::from_millis(300);
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("stubborn", "stubborn"), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let output = output(&world, &container(&daemon));
    shut_down(&daemon, "stubborn").unwrap();
    wait_for_text(&output, "SHUTDOWN");
    let received = until_ended(&daemon, "a");
    assert_eq!(received.last("a")["state"], "TASK_KILLED");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_kill_of_a_container_ends_its_tasks() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let id = container(&daemon);
    daemon
        .call(&json!({"type": "KILL_CONTAINER", "kill_container": {"container_id": {"value": id}}}))
        .unwrap();
    assert_eq!(until_ended(&daemon, "a").last("a")["state"], "TASK_KILLED");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn messages_are_passed_on_in_both_directions() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let mut updates = daemon.updates();
    let message = |executor: &str| {
        daemon.call(&json!({"type": "MESSAGE_EXECUTOR", "message_executor": {
            "framework_id": {"value": "tests"}, "executor_id": {"value": executor}, "data": "aGVsbG8="}}))
    };
    message("one").unwrap();
    let answer = loop {
        let next = updates.next().unwrap();
        if next["type"] == "FRAMEWORK_MESSAGE" {
            break next;
        }
    };
    assert_eq!(answer["framework_message"]["data"], "aGVsbG8=");
    assert!(message("other").unwrap_err().is_unknown());
    shut_down(&daemon, "one").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}
