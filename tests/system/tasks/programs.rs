//! The executors of this project with the agent.

use std::process::Command;

use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::world::id;
use cofferdam_tests::{assert_contains, is_root, wait_for_text};

use super::*;

pub(super) const STARTED: [&str; 2] = ["TASK_STARTING", "TASK_RUNNING"];

/// A task that is a line of a shell, without an executor.
pub(super) fn command_task(id: &str, line: &str) -> Json {
    json!({
        "task_id": {"value": id}, "name": id, "agent_id": {"value": "any"}, "command": {"value": line},
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 32}},
        ],
    })
}

pub(super) fn task_call(task: &Json, checkpoint: bool) -> Json {
    let framework = json!({
        "id": {"value": "tests"}, "name": "tests", "user": "", "checkpoint": checkpoint,
        "capabilities": [{"type": "TASK_KILLING_STATE"}],
    });
    json!({"type": "LAUNCH_TASK", "launch_task": {"framework_info": framework, "task_info": task}})
}

pub(super) fn run_task(daemon: &Daemon, task: &Json, checkpoint: bool) {
    let call = task_call(task, checkpoint);
    daemon.call(&call).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
}

fn group_call(tasks: &[Json]) -> Json {
    json!({"type": "LAUNCH_TASK_GROUP", "launch_task_group": {
        "framework_info": framework(true),
        "executor_info": {"type": "DEFAULT", "executor_id": {"value": "group"}, "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 32}},
        ]},
        "task_group": {"tasks": tasks},
    }})
}

fn run_group(daemon: &Daemon, tasks: &[Json]) {
    daemon.call(&group_call(tasks)).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
}

/// A command that does not end when it is asked to, once it has written [`READY`].
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 1000; done";
const READY: &str = "ready";

/// The process of the only executor, which is the child of the first process of its container with the posix launcher.
fn executor_process(daemon: &Daemon) -> Process {
    let inspected = daemon.inspect(&id(&container(daemon))).expect("a container");
    let first = Process::open_any(inspected.pid.expect("a process")).expect("it is running");
    Process::open_any(first.children().expect("its children")[0]).expect("a child")
}

#[test]
fn a_group_that_its_executor_could_not_wait_for_is_refused() {
    let world = world();
    let daemon = Daemon::start(&world);
    let tasks: Vec<Json> = (0..257).map(|number| command_task(&number.to_string(), "true")).collect();
    let (status, text) = match daemon.call(&group_call(&tasks)) {
        Err(CallError::Status(status, text)) => (status, text),
        other => panic!("{other:?}"),
    };
    assert_eq!(status, 400, "{text}");
    assert_contains(&text, &["257 tasks", "at most 256"]);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_command_runs_to_its_end() {
    let world = world();
    let daemon = Daemon::start(&world);
    for (id, line, end, message) in [
        ("good", "true", "TASK_FINISHED", "Command exited with status 0"),
        ("bad", "exit 3", "TASK_FAILED", "Command exited with status 3"),
        ("ugly", "kill -9 $$", "TASK_FAILED", "Command terminated with signal Killed"),
    ] {
        run_task(&daemon, &command_task(id, line), true);
        let received = until_ended(&daemon, id);
        assert_eq!(received.states(id), [STARTED[0], STARTED[1], end], "{}", daemon.log());
        assert_eq!(received.last(id)["message"], message);
        assert_eq!(received.last(id)["source"], "SOURCE_EXECUTOR");
    }
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_id_of_a_task_that_has_ended_is_used_again() {
    let world = world();
    let daemon = Daemon::start(&world);
    for _ in 0..5 {
        // At once, while the executor of the task before is ending.
        while let Err(error) = daemon.call(&task_call(&command_task("again", "true"), true)) {
            assert!(
                matches!(&error, CallError::Status(503, text) if text.contains("shutting down")),
                "{error:?}"
            );
        }
        let received = until_ended(&daemon, "again");
        assert_eq!(received.states("again"), [STARTED[0], STARTED[1], "TASK_FINISHED"], "{}", daemon.log());
    }
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_command_that_ignores_the_request_to_end_is_killed() {
    let world = world();
    let daemon = Daemon::start(&world);
    let mut task = command_task("stubborn", STUBBORN);
    task["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000}});
    run_task(&daemon, &task, true);
    let mut received = until_state(&daemon, "stubborn", "TASK_RUNNING");
    wait_for_text(&output(&world, &container(&daemon)), READY);
    kill(&daemon, "stubborn").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("stubborn"));
    assert_eq!(received.states("stubborn"), [STARTED[0], STARTED[1], "TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(received.last("stubborn")["message"], "Command terminated with signal Killed");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_unhealthy_command_is_killed() {
    let world = world();
    let daemon = Daemon::start(&world);
    let mut task = command_task("sick", "exec sleep 1000");
    task["health_check"] = json!({
        "type": "COMMAND", "command": {"value": "exit 1"}, "delay_seconds": 0, "interval_seconds": 0.01,
        "grace_period_seconds": 0, "consecutive_failures": 2,
    });
    run_task(&daemon, &task, true);
    let received = until_ended(&daemon, "sick");
    let last = received.last("sick");
    assert_eq!((&last["state"], &last["healthy"]), (&json!("TASK_KILLED"), &json!(false)));
    let unhealthy = received.statuses["sick"].iter().filter(|status| {
        status["reason"] == "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED" && status["healthy"] == false
    });
    assert_ne!(unhealthy.count(), 0);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_command_outlives_its_agent_and_is_killed_by_the_next_one() {
    let world = world();
    let daemon = Daemon::start(&world);
    run_task(&daemon, &command_task("long", "exec sleep 1000"), true);
    let mut received = until_state(&daemon, "long", "TASK_RUNNING");
    let executor = executor_process(&daemon);
    daemon.kill();
    let daemon = Daemon::start(&world);
    assert!(!executor.has_ended().unwrap());
    kill(&daemon, "long").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("long"));
    assert_eq!(received.states("long"), [STARTED[0], STARTED[1], "TASK_KILLING", "TASK_KILLED"]);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_end_of_a_command_without_an_agent_is_reported_to_the_next_one() {
    let world = world();
    let fifo = world.directory().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let daemon = Daemon::start(&world);
    run_task(&daemon, &command_task("short", &format!("read line < {}; exit 7", fifo.display())), true);
    let mut received = until_state(&daemon, "short", "TASK_RUNNING");
    daemon.kill();
    fs::write(&fifo, "end\n").unwrap();
    let daemon = Daemon::start(&world);
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("short"));
    assert_eq!(received.states("short"), [STARTED[0], STARTED[1], "TASK_FAILED"]);
    assert_eq!(received.last("short")["message"], "Command exited with status 7");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn without_checkpoints_a_command_ends_with_its_agent() {
    let world = world();
    let daemon = Daemon::start(&world);
    run_task(&daemon, &command_task("bound", "exec sleep 1000"), false);
    until_state(&daemon, "bound", "TASK_RUNNING");
    let executor = executor_process(&daemon);
    daemon.kill();
    assert!(executor.wait(Some(TIMEOUT)).unwrap());
    let daemon = Daemon::start(&world);
    let received = until_ended(&daemon, "bound");
    assert!(is_terminal(received.last("bound")["state"].as_str().unwrap()));
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_command_whose_executor_is_killed_in_any_state_has_one_end() {
    let world = world();
    let daemon = Daemon::start(&world);
    for state in ["TASK_STARTING", "TASK_RUNNING", "TASK_KILLING"] {
        let mut task = command_task(state, STUBBORN);
        task["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000_000_000_u64}});
        run_task(&daemon, &task, true);
        let mut updates = daemon.updates();
        let mut received = Received::default();
        if state == "TASK_KILLING" {
            received.until(&daemon, &mut updates, |received| {
                received.states(state).iter().any(|state| state == "TASK_RUNNING")
            });
            wait_for_text(&output(&world, &container(&daemon)), READY);
            kill(&daemon, state).unwrap();
        }
        received
            .until(&daemon, &mut updates, |received| received.states(state).iter().any(|seen| seen == state));
        executor_process(&daemon).kill().unwrap();
        received.until(&daemon, &mut updates, |received| received.has_ended(state));
        let ends = received.states(state).into_iter().filter(|seen| is_terminal(seen)).count();
        assert_eq!(ends, 1, "{:?}", received.states(state));
        assert_eq!(received.last(state)["source"], "SOURCE_AGENT");
        assert_nothing_left(&world, &daemon);
    }
}

/// A world with the chain for root, and a task in a root file system that has nothing but busybox.
fn in_root(task: &mut Json) -> World {
    let mut world = World::shipped();
    world.config.executors.reregistration_timeout = Duration::from_secs(30);
    world.config.executors.max_completed_executors = 0;
    task["container"] = json!({"type": "MESOS", "mesos": {"rootfs": world.rootfs()}});
    world
}

#[test]
fn a_command_runs_in_a_root_file_system_without_libc() {
    if !is_root("containers with a root file system") {
        return;
    }
    // Each condition has a status of its own. Without `/lib`, a program has to be static; what an executor has is not the
    // task's to read.
    let line = "test $(id -u) = 1234 || exit 11
        test $PWD = $MESOS_SANDBOX || exit 12
        busybox env | grep -e TOKEN -e DOMAIN_SOCKET && exit 13
        test -e /lib && exit 14
        test -r /proc/$PPID/environ && exit 15
        cat /proc/$PPID/environ && exit 16
        exit 0";
    let mut task = command_task("inside", line);
    task["command"]["user"] = json!("web");
    let world = in_root(&mut task);
    let daemon = Daemon::start(&world);
    run_task(&daemon, &task, true);
    let received = until_ended(&daemon, "inside");
    assert_eq!(received.last("inside")["message"], "Command exited with status 0", "{}", daemon.log());
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_group_without_an_executor_gets_the_default_one_with_its_overhead() {
    if !is_root("nested containers") {
        return;
    }
    let mut world = World::shipped();
    world.config.executors.max_completed_executors = 0;
    let daemon = Daemon::start(&world);
    let tasks = [command_task("first", "exec sleep 1000"), command_task("second", "exec sleep 1000")];
    let call = json!({"type": "LAUNCH_TASK_GROUP", "launch_task_group": {
        "framework_info": framework(true), "task_group": {"tasks": tasks},
    }});
    daemon.call(&call).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
    let mut received = Received::default();
    let mut updates = daemon.updates();
    received.until(&daemon, &mut updates, |received| {
        ["first", "second"].iter().all(|id| received.states(id) == STARTED)
    });
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).unwrap();
    let info = &executors["executors"][0]["executor_info"];
    assert_eq!((&info["type"], &info["executor_id"]["value"]), (&json!("DEFAULT"), &json!("first")));
    let inspected = daemon.inspect(&id(&container(&daemon))).unwrap();
    let scalar = |name: &str| {
        let found = inspected.resources.iter().find(|resource| resource.name == name);
        found.and_then(|resource| resource.scalar.as_ref()).map(|scalar| scalar.value)
    };
    // Those of both tasks, and those of the executor.
    assert_eq!((scalar("cpus"), scalar("mem")), (Some(0.3), Some(96.0)));
    let executor = Process::open_any(inspected.pid.unwrap()).unwrap();
    let executor = match executor.children().unwrap().first() {
        Some(child) => Process::open_any(*child).unwrap(),
        None => executor,
    };
    super::engine::until("the executor has at most 1 MiB", || {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", executor.pid())).unwrap();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        pss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() <= 1024
    });
    kill(&daemon, "first").unwrap();
    received
        .until(&daemon, &mut updates, |received| ["first", "second"].iter().all(|id| received.has_ended(id)));
    assert_nothing_left(&world, &daemon);
}

#[test]
fn tasks_run_as_the_user_of_the_command_or_else_of_the_framework_unless_users_are_not_switched() {
    if !is_root("other users") {
        return;
    }
    for (switch_user, of_command, expected) in
        [(true, None, 4321), (true, Some("1234"), 1234), (false, Some("1234"), 0), (false, None, 0)]
    {
        let mut world = World::shipped();
        world.config.executors.switch_user = switch_user;
        world.config.executors.max_completed_executors = 0;
        let daemon = Daemon::start(&world);
        let mut task = command_task("user", &format!("test $(id -u) = {expected}"));
        task["container"] = json!({"type": "MESOS", "mesos": {"rootfs": world.rootfs()}});
        if let Some(user) = of_command {
            task["command"]["user"] = user.into();
        }
        let mut call = task_call(&task, true);
        call["launch_task"]["framework_info"]["user"] = "4321".into();
        daemon.call(&call).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
        let received = until_ended(&daemon, "user");
        let last = received.last("user");
        assert_eq!(last["state"], "TASK_FINISHED", "{switch_user} {of_command:?}: {last}\n{}", daemon.log());
        assert_nothing_left(&world, &daemon);
    }
}

#[test]
fn a_group_ends_together() {
    if !is_root("nested containers") {
        return;
    }
    let mut world = World::shipped();
    world.config.executors.max_completed_executors = 0;
    let daemon = Daemon::start(&world);
    let mut checked = command_task("checked", "exec sleep 1000");
    checked["check"] = json!({
        "type": "COMMAND", "command": {"command": {"value": "exit 5"}}, "delay_seconds": 0, "interval_seconds": 1000,
    });
    run_group(&daemon, &[checked, command_task("stays", "exec sleep 1000")]);
    let mut received = Received::default();
    let mut updates = daemon.updates();
    received.until(&daemon, &mut updates, |received| {
        let result = json!({"type": "COMMAND", "command": {"exit_code": 5}});
        let checked = received.statuses.get("checked").into_iter().flatten();
        checked.into_iter().any(|status| status["check_status"] == result)
            && received.states("stays") == STARTED
    });
    kill(&daemon, "checked").unwrap();
    received.until(&daemon, &mut updates, |received| {
        received.has_ended("checked") && received.has_ended("stays")
    });
    assert_eq!(received.last("checked")["state"], "TASK_KILLED");
    assert_eq!(received.states("stays"), [STARTED[0], STARTED[1], "TASK_KILLED"]);
    assert_contains(
        received.last("stays")["message"].as_str().unwrap(),
        &["terminated with signal Terminated"],
    );
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_tasks_of_a_group_whose_executor_is_killed_in_any_state_have_one_end() {
    if !is_root("nested containers") {
        return;
    }
    let mut world = World::shipped();
    world.config.executors.max_completed_executors = 0;
    let daemon = Daemon::start(&world);
    for state in ["TASK_STARTING", "TASK_RUNNING", "TASK_KILLING"] {
        let ids = ["a", "b"].map(|id| format!("{state}-{id}"));
        let tasks = ids.each_ref().map(|id| {
            let mut task = command_task(id, STUBBORN);
            task["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000_000_000_u64}});
            task
        });
        run_group(&daemon, &tasks);
        let mut updates = daemon.updates();
        let mut received = Received::default();
        let has = |received: &Received, wanted: &str| {
            ids.iter().all(|id| received.states(id).iter().any(|seen| seen == wanted))
        };
        // The framework of groups does not know TASK_KILLING.
        let wanted = if state == "TASK_STARTING" { state } else { "TASK_RUNNING" };
        received.until(&daemon, &mut updates, |received| has(received, wanted));
        let executor = daemon.inspect(&id(&container(&daemon))).expect("a container");
        let executor = Process::open_any(executor.pid.expect("a process")).expect("it is running");
        if state == "TASK_KILLING" {
            let nested = daemon.list().into_iter().map(|found| found.container_id);
            for nested in nested.filter(|id| id.parent.is_some()) {
                let nested = daemon.inspect(&id(&nested.to_string())).expect("a container");
                wait_for_text(nested.stdout.expect("a log").as_ref(), READY);
            }
            kill(&daemon, &ids[0]).unwrap();
        }
        executor.kill().unwrap();
        received.until(&daemon, &mut updates, |received| ids.iter().all(|id| received.has_ended(id)));
        for id in &ids {
            let ends = received.states(id).into_iter().filter(|seen| is_terminal(seen)).count();
            assert_eq!(ends, 1, "{id}: {:?}", received.states(id));
            assert_eq!(received.last(id)["source"], "SOURCE_AGENT", "{id}");
        }
        assert_nothing_left(&world, &daemon);
    }
}

#[test]
fn a_group_outlives_its_agent() {
    if !is_root("nested containers") {
        return;
    }
    let mut world = World::shipped();
    world.config.executors.reregistration_timeout = Duration::from_secs(30);
    world.config.executors.max_completed_executors = 0;
    let daemon = Daemon::start(&world);
    run_group(&daemon, &[command_task("a", "exec sleep 1000"), command_task("b", "exec sleep 1000")]);
    let mut received = Received::default();
    received.until(&daemon, &mut daemon.updates(), |received| {
        ["a", "b"].iter().all(|task| received.states(task) == STARTED)
    });
    daemon.kill();
    let daemon = Daemon::start(&world);
    kill(&daemon, "a").unwrap();
    received
        .until(&daemon, &mut daemon.updates(), |received| received.has_ended("a") && received.has_ended("b"));
    assert_eq!(received.last("a")["state"], "TASK_KILLED");
    assert_eq!(received.last("b")["state"], "TASK_KILLED");
    assert_nothing_left(&world, &daemon);
}
