//! Tasks without an executor: the agent generates one, and runs its own program.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use cofferdam_core::model::ContainerId;
use cofferdam_tests::{assert_contains, is_root, text};

use super::*;

/// Has the executor for tests run in the place of the agent's.
fn with_program(mut world: World) -> World {
    let directory = world.directory().join("bin");
    fs::create_dir(&directory).expect("a valid answer");
    let program = directory.join("cofferdam-executor");
    fs::copy(paths::build().join("test-executor"), &program).expect("a valid answer");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a valid answer");
    world.config.executors.launcher_dir = Some(directory);
    world.config.executors.max_completed_executors = 0;
    world
}

fn launch_command(daemon: &Daemon, id: &str, name: &str, container: &Json) {
    let call = json!({"type": "LAUNCH_TASK", "launch_task": {"framework_info": framework(true), "task_info": {
        "task_id": {"value": id}, "name": name, "command": {"value": "true"}, "container": container,
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.2}},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 64}},
        ],
        "limits": {"mem": {"value": 96}},
    }}});
    daemon.call(&call).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
}

#[test]
fn the_executor_has_its_overhead_and_no_more() {
    let world = with_program(World::posix());
    let daemon = Daemon::start(&world);
    launch_command(&daemon, "a", "run", &Json::Null);
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let container = container(&daemon);
    let inspected = daemon.inspect(&ContainerId::parse(&container).unwrap()).unwrap();
    let scalar = |name: &str| {
        let found = inspected.resources.iter().find(|resource| resource.name == name);
        found.and_then(|resource| resource.scalar.as_ref()).map(|scalar| scalar.value)
    };
    assert_eq!((scalar("cpus"), scalar("mem")), (Some(0.3), Some(96.0)));
    assert_eq!(inspected.limits["mem"].value, 128.0);
    assert_eq!(inspected.command, "cofferdam-executor command");
    let tasks = daemon.call(&json!({"type": "GET_TASKS"})).unwrap();
    assert_eq!(tasks["launched_tasks"][0]["executor_id"], Json::Null, "as in Mesos");
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).unwrap();
    let info = &executors["executors"][0]["executor_info"];
    assert_eq!((&info["executor_id"]["value"], &info["source"]), (&json!("a"), &json!("a")));
    shut_down(&daemon, "a").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}

#[test]
fn with_a_root_file_system_socket_and_program_are_mounted_read_only() {
    if !is_root("with_a_root_file_system_socket_and_program_are_mounted_read_only") {
        return;
    }
    let world = with_program(World::shipped());
    let daemon = Daemon::start(&world);
    launch_command(&daemon, "a", "run", &json!({"type": "MESOS", "mesos": {"rootfs": "/"}}));
    let mut received = Received::default();
    received.until(&daemon, &mut daemon.updates(), |received| !received.states("a").is_empty());
    assert_eq!(received.states("a"), ["TASK_RUNNING"], "{received:?}\n{}", daemon.log());
    let id = container(&daemon);
    assert!(!text(&output(&world, &id)).contains("writable"));
    daemon.kill();
    // The next agent has another socket in the same directory.
    let daemon = Daemon::start(&world);
    kill(&daemon, "a").unwrap();
    assert_eq!(until_ended(&daemon, "a").states("a"), ["TASK_KILLED"]);
    shut_down(&daemon, "a").unwrap();
    assert_nothing_left(&world, &daemon);
}

#[test]
fn tasks_without_an_executor_are_refused_if_there_is_no_program() {
    let mut world = with_program(World::posix());
    let directory = world.config.executors.launcher_dir.clone().unwrap();
    fs::remove_file(directory.join("cofferdam-executor")).unwrap();
    let daemon = Daemon::start(&world);
    let call = json!({"type": "LAUNCH_TASK", "launch_task": {"framework_info": framework(true),
        "task_info": {"task_id": {"value": "a"}, "name": "a", "command": {"value": "true"}}}});
    let error = format!("{:?}", daemon.call(&call).unwrap_err());
    assert_contains(&error, &["no executor program", "launcher_dir"]);
    drop(daemon);
    // Nor is one used that others can replace.
    let directory = world.directory().join("shared");
    fs::create_dir(&directory).unwrap();
    let program = directory.join("cofferdam-executor");
    fs::write(&program, "").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    world.config.executors.launcher_dir = Some(directory);
    let (daemon, ready) = Daemon::try_start(&world);
    assert!(!ready);
    assert_contains(&daemon.log(), &["can be written by others"]);
}

#[test]
fn a_program_that_could_not_be_copied_is_copied_for_the_next_task() {
    let world = with_program(World::posix());
    let copies = world.config.work_dir.join("executor");
    fs::create_dir_all(&world.config.work_dir).unwrap();
    fs::write(&copies, "").unwrap();
    let daemon = Daemon::start(&world);
    let call = json!({"type": "LAUNCH_TASK", "launch_task": {"framework_info": framework(true),
        "task_info": {"task_id": {"value": "a"}, "name": "run", "command": {"value": "true"}}}});
    let error = format!("{:?}", daemon.call(&call).unwrap_err());
    assert_contains(&error, &["503", "cannot copy the executor program", &copies.display().to_string()]);
    fs::remove_file(&copies).unwrap();
    launch_command(&daemon, "a", "run", &Json::Null);
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    shut_down(&daemon, "a").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}

#[test]
fn the_command_line_runs_and_lists_and_kills_tasks() {
    let world = with_program(World::posix());
    let daemon = Daemon::start(&world);
    let cofferdam = |arguments: &[&str]| {
        let mut command = Command::new(paths::program());
        let output =
            command.arg("--socket").arg(world.socket()).arg("task").args(arguments).output().unwrap();
        let shown = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&shown).into_owned())
    };
    let (status, shown) = cofferdam(&["run", "--name", "finish", "--", "true"]);
    assert_eq!(status, Some(0), "{shown}");
    assert_contains(&shown, &["finish TASK_RUNNING", "finish TASK_FINISHED"]);
    let (status, shown) = cofferdam(&["run", "--name", "exit", "--json", "--shell", "true"]);
    assert_eq!(status, Some(125), "{shown}");
    let last: Json = serde_json::from_str(shown.lines().last().unwrap()).unwrap();
    assert_eq!(last["status"]["reason"], "REASON_EXECUTOR_TERMINATED");

    let (status, shown) = cofferdam(&["run", "--name", "run", "--detach", "--", "true"]);
    assert_eq!((status, shown.as_str()), (Some(0), "run\n"));
    drop(daemon.updates().next());
    let (_, shown) = cofferdam(&["ps"]);
    assert_contains(&shown, &["TASK", "run", "TASK_RUNNING"]);
    let (status, shown) = cofferdam(&["logs", "run"]);
    assert_eq!(status, Some(0), "{shown}");
    assert_contains(&shown, &["LAUNCH run"]);
    let (status, shown) = cofferdam(&["kill", "--grace", "3s", "run"]);
    assert_eq!(status, Some(0), "{shown}");
    loop {
        let update = daemon.updates().next().unwrap()["status_update"].take();
        let (framework, status) = (&update["framework_id"], &update["status"]);
        let call = json!({"type": "ACKNOWLEDGE_STATUS_UPDATE", "acknowledge_status_update":
            {"framework_id": framework, "task_id": status["task_id"], "uuid": status["uuid"]}});
        daemon.call(&call).unwrap();
        if status["state"] == "TASK_KILLED" {
            break;
        }
    }
    let (status, shown) = cofferdam(&["kill", "none"]);
    assert_eq!(status, Some(1), "{shown}");
    assert_contains(&shown, &["there is no task `none`"]);
    for executor in ["finish", "run"] {
        let call = json!({"type": "SHUTDOWN_EXECUTOR", "shutdown_executor":
            {"framework_id": {"value": "cofferdam"}, "executor_id": {"value": executor}}});
        daemon.call(&call).unwrap();
    }
    assert_nothing_left(&world, &daemon);
}
