//! Tasks and executors in containers of a container engine.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::io::{ErrorKind, Read};
use std::process::Command;

use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::{assert_contains, text};

use super::executors::{add_variables, environment, expected_environment, with_variables};
use super::hostile::{request, send};
use super::programs::{STARTED, command_task, run_task};
use super::*;
use cofferdam_tests::engine::{ENTRY, Engine, IMAGE, combinations, engine, has_engine};

/// How often an engine is stopped while a launch is hopefully in progress.
const MAX_ATTEMPTS: usize = 20;

/// A world whose agents use an engine, and forget what has ended.
pub(super) fn world_of(engine: &Engine) -> World {
    let mut world = engine.world();
    world.config.executors.reregistration_timeout = Duration::from_secs(30);
    world.config.executors.max_completed_executors = 0;
    world
}

/// `ContainerInfo` of a container of the engine.
pub(super) fn docker(image: &str, network: &str, parameters: &[(&str, &str)]) -> Json {
    let parameters: Vec<Json> =
        parameters.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({"type": "DOCKER", "docker": {"image": image, "network": network, "parameters": parameters}})
}

/// A task that is a line of a shell in a container of the engine.
pub(super) fn docker_task(id: &str, line: &str) -> Json {
    let mut task = command_task(id, line);
    task["container"] = docker(IMAGE, "NONE", &[]);
    task
}

/// Waits until nothing is left, also in the engine.
pub(super) fn assert_engine_has_nothing(engine: &Engine, world: &World, daemon: &Daemon) {
    assert_nothing_left(world, daemon);
    let agent = fs::read_to_string(world.config.work_dir.join("agent_id")).expect("an id");
    let filter = format!("label=org.cofferdam.agent={}", agent.trim());
    until("nothing is left in the engine", || engine.client(&["ps", "-aq", "--filter", &filter]).is_empty());
}

/// Waits until something is so, for what the kernel and the engine have no event for.
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The file with the output of the only executor.
pub(super) fn stdout(world: &World, container: &str) -> std::path::PathBuf {
    world.config.work_dir.join("docker").join(container).join("stdout")
}

/// The first process of the only executor's container, which is the executor.
pub(super) fn first_process(daemon: &Daemon) -> Process {
    let id = cofferdam_core::model::ContainerId::parse(&container(daemon)).expect("an id");
    Process::open_any(daemon.inspect(&id).expect("a container").pid.expect("a process"))
        .expect("it is running")
}

#[test]
fn a_task_runs_in_a_container_of_the_engine_to_its_end() {
    let Some(engine) = engine() else { return };
    let mut world = world_of(engine);
    // Those of executors are not for tasks.
    world.config.executors.environment_variables.insert("OF_EXECUTORS".into(), "agent".into());
    let daemon = Daemon::start(&world);
    let line = "echo out; echo err >&2; echo $MESOS_CONTAINER_NAME > $MESOS_SANDBOX/name; pwd > $MESOS_SANDBOX/pwd; \
                busybox env > $MESOS_SANDBOX/env; while [ ! -e $MESOS_SANDBOX/go ]; do sleep 0.05; done; exit 3";
    let mut task = docker_task("ends", line);
    let parameters = [("hostname", "lighthouse"), ("env", "REPLACED=by option"), ("workdir", "/etc")];
    task["container"] = docker(IMAGE, "BRIDGE", &parameters);
    task["command"]["environment"] = json!({"variables": [
        {"name": "OWN", "value": "a b"}, {"name": "REPLACED", "value": "by task"}, {"name": "MESOS_SANDBOX", "value": "/x"},
    ]});
    run_task(&daemon, &task, true);
    let mut received = until_state(&daemon, "ends", "TASK_RUNNING");
    let status = received.last("ends")["container_status"].clone();
    let address = &status["network_infos"][0]["ip_addresses"][0]["ip_address"];
    assert!(address.as_str().is_some_and(|address| address.starts_with("10.213.0.")), "{status}");
    let id = container(&daemon);
    assert_eq!(status["container_id"]["value"], id.as_str());
    assert_eq!(status["executor_pid"], first_process(&daemon).pid());

    // Nothing that is for the executor is in the environment of the task, or in what the agent records and shows.
    let sandbox = world.config.work_dir.join("docker").join(&id);
    cofferdam_tests::wait_for_text(&sandbox.join("env"), "OWN=a b\n");
    let environment = text(&sandbox.join("env"));
    assert_contains(&environment, &["REPLACED=by option\n", "MESOS_SANDBOX=/mnt/mesos/sandbox\n"]);
    for private in ["TOKEN", "SOCKET", "FRAMEWORK", "SLAVE", "CHECKPOINT", "LIBPROCESS", "OF_EXECUTORS"] {
        assert!(!environment.contains(private), "{private}: {environment}");
    }
    assert_eq!(text(&sandbox.join("pwd")), "/etc\n");
    assert_eq!(text(&sandbox.join("name")), format!("mesos-{id}\n"));
    let found = engine.inspect(&format!("mesos-{id}"));
    let variables = found["Config"]["Env"].as_array().unwrap();
    let token = variables
        .iter()
        .filter_map(Json::as_str)
        .find_map(|variable| variable.strip_prefix("MESOS_EXECUTOR_AUTHENTICATION_TOKEN="));
    assert_eq!(world.files_with(token.unwrap()), [""; 0].map(std::path::PathBuf::from));
    assert_eq!(found["Config"]["Hostname"], "lighthouse");

    fs::write(sandbox.join("go"), "").unwrap();
    let output = stdout(&world, &id);
    cofferdam_tests::wait_for_text(&output, "out\n");
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("ends"));
    assert_eq!(received.states("ends"), [STARTED[0], STARTED[1], "TASK_FAILED"]);
    let last = received.last("ends");
    assert_eq!(
        (&last["message"], &last["source"]),
        (&json!("Container exited with status 3"), &json!("SOURCE_EXECUTOR"))
    );
    assert_eq!(last["reason"], "REASON_COMMAND_EXECUTOR_FAILED");
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn entry_point_and_command_of_the_image_run_unless_they_are_replaced() {
    let Some(engine) = engine() else { return };
    let mut world = world_of(engine);
    world.config.executors.max_completed_executors = 100;
    let daemon = Daemon::start(&world);
    let run = |id: &str, command: Json, image: &str, parameters: &[(&str, &str)]| {
        let mut task = docker_task(id, "");
        (task["command"], task["container"]) = (command, docker(image, "NONE", parameters));
        run_task(&daemon, &task, true);
        let received = until_ended(&daemon, id);
        // Its output is complete when the container has ended.
        let mut own = String::new();
        until("its container has ended", || {
            let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).unwrap();
            let mut ended = executors["completed_executors"].as_array().into_iter().flatten();
            let found = ended.find(|executor| executor["executor_info"]["executor_id"]["value"] == id);
            own = found.map_or("", |it| it["container_id"]["value"].as_str().unwrap()).to_owned();
            found.is_some()
        });
        // A launch that fails leaves no file.
        let output = fs::read_to_string(stdout(&world, &own)).unwrap_or_default();
        let last = received.last(id);
        (
            last["state"].as_str().unwrap().to_owned(),
            output,
            last["message"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let finished = |output: &str| {
        ("TASK_FINISHED".to_owned(), output.to_owned(), "Container exited with status 0".to_owned())
    };
    let of_image = || json!({"shell": false});
    for (number, it) in combinations().into_iter().enumerate() {
        let mut command = json!({"shell": it.shell, "arguments": it.arguments});
        if let Some(value) = it.value {
            command["value"] = value.into();
        }
        let entrypoint: Vec<_> = it.entrypoint.iter().map(|entrypoint| ("entrypoint", *entrypoint)).collect();
        let shown = format!("{} {command} {entrypoint:?}", it.image);
        let ended = run(&format!("combined-{number}"), command, it.image, &entrypoint);
        match it.output {
            Some(output) => assert_eq!(ended, finished(output), "{shown}"),
            None => {
                assert_eq!(ended.0, "TASK_FAILED", "{shown}");
                assert_contains(&ended.2, &["`command.value`", "neither an entry point nor a command"]);
            }
        }
    }
    assert_eq!(run("absent", Json::Null, ENTRY, &[]), finished("entry cmd\n"));
    assert_eq!(run("line", json!({"value": "echo line $0"}), ENTRY, &[]), finished("line /bin/sh\n"));
    let (state, _, message) = run("missing", json!({"shell": false, "value": "/no/program"}), IMAGE, &[]);
    assert_eq!(state, "TASK_FAILED");
    assert_contains(&message, &["Cannot execute `/no/program`"]);
    let (state, _, message) = run("unpulled", of_image(), "127.0.0.1:1/no/image", &[]);
    assert_eq!(state, "TASK_FAILED");
    assert_contains(&message, &["failed while PULLING", "pull image `127.0.0.1:1/no/image`"]);
    assert_eq!(engine.names("no-such"), [""; 0]);
    let listed = daemon.call(&json!({"type": "GET_TASKS"})).unwrap();
    assert_eq!(listed["completed_tasks"][0]["executor_id"], Json::Null, "as in Mesos: {listed}");
}

#[test]
fn a_task_is_asked_to_end_as_its_image_is_and_then_forced() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    let killed = |task: &Json| {
        let id = task["task_id"]["value"].as_str().unwrap();
        run_task(&daemon, task, true);
        let mut received = until_state(&daemon, id, "TASK_RUNNING");
        cofferdam_tests::wait_for_text(&stdout(&world, &container(&daemon)), "ready");
        kill(&daemon, id).unwrap();
        received.until(&daemon, &mut daemon.updates(), |received| received.has_ended(id));
        assert_eq!(received.states(id), [STARTED[0], STARTED[1], "TASK_KILLING", "TASK_KILLED"]);
        let message = received.last(id)["message"].clone();
        assert_engine_has_nothing(engine, &world, &daemon);
        message
    };
    let mut stubborn = docker_task("stubborn", "trap '' TERM; echo ready; while :; do sleep 1000; done");
    stubborn["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000}});
    assert_eq!(killed(&stubborn), "Container terminated with signal Killed");

    let line = "trap 'exit 7' INT; trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut by_signal = docker_task("by-signal", line);
    by_signal["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000_000_000_u64}});
    by_signal["container"] = docker(IMAGE, "NONE", &[("stop-signal", "SIGINT")]);
    assert_eq!(killed(&by_signal), "Container exited with status 7");

    let mut long = docker_task("long", "exec sleep 1000");
    long["max_completion_time"] = json!({"nanoseconds": 1_000_000});
    run_task(&daemon, &long, true);
    let received = until_ended(&daemon, "long");
    let last = received.last("long");
    assert_eq!(
        (&last["state"], &last["reason"]),
        (&json!("TASK_FAILED"), &json!("REASON_MAX_COMPLETION_TIME_REACHED"))
    );
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn checks_are_made_in_the_container_and_in_its_network() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    // In a container that has no other network than that of itself.
    let task = |id: &str| docker_task(id, &format!("busybox {}", checks::SERVE));
    checks::assert_made(&daemon, task, |_, _| (), || assert_engine_has_nothing(engine, &world, &daemon));
    let mut sick = docker_task("sick", "exec sleep 1000");
    sick["health_check"] =
        checks::often(json!({"type": "COMMAND", "command": {"value": "exit 1"}, "consecutive_failures": 2}));
    sick["health_check"]["grace_period_seconds"] = 0.into();
    run_task(&daemon, &sick, true);
    let received = until_ended(&daemon, "sick");
    let last = received.last("sick");
    assert_eq!((&last["state"], &last["healthy"]), (&json!("TASK_KILLED"), &json!(false)));
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn a_task_outlives_its_agent_and_its_end_is_reported_to_the_next_one() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    run_task(&daemon, &docker_task("outlives", "exec sleep 1000"), true);
    let mut received = until_state(&daemon, "outlives", "TASK_RUNNING");
    let executor = first_process(&daemon);
    daemon.kill();
    let daemon = Daemon::start(&world);
    assert!(!executor.has_ended().unwrap());
    kill(&daemon, "outlives").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("outlives"));
    assert_eq!(received.states("outlives"), [STARTED[0], STARTED[1], "TASK_KILLING", "TASK_KILLED"]);
    assert_engine_has_nothing(engine, &world, &daemon);

    let line = "while [ ! -e $MESOS_SANDBOX/go ]; do sleep 0.05; done; echo gone; exit 7";
    run_task(&daemon, &docker_task("alone", line), true);
    let mut received = until_state(&daemon, "alone", "TASK_RUNNING");
    let sandbox = world.config.work_dir.join("docker").join(container(&daemon));
    daemon.kill();
    fs::write(sandbox.join("go"), "").unwrap();
    cofferdam_tests::wait_for_text(&sandbox.join("stdout"), "gone");
    let daemon = Daemon::start(&world);
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("alone"));
    assert_eq!(received.states("alone"), [STARTED[0], STARTED[1], "TASK_FAILED"]);
    assert_eq!(received.last("alone")["message"], "Container exited with status 7");
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn the_container_has_what_the_task_requests_and_the_overhead_of_the_executor() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    let mut task = docker_task("overhead", "exec sleep 1000");
    task["resources"][0]["scalar"]["value"] = 0.4.into();
    task["resources"][1]["scalar"]["value"] = 64.into();
    task["limits"] = json!({"cpus": {"value": 0.9}, "mem": {"value": 96}});
    run_task(&daemon, &task, true);
    drop(until_state(&daemon, "overhead", "TASK_RUNNING"));
    let host = engine.inspect(&format!("mesos-{}", container(&daemon)))["HostConfig"].take();
    let number = |name: &str| host[name].as_i64();
    assert_eq!((number("CpuShares"), number("CpuQuota")), (Some(512), Some(100_000)));
    assert_eq!((number("Memory"), number("MemoryReservation")), (Some(128 << 20), Some(96 << 20)));
    // The executor is in the cgroups of the container, so what it uses counts there.
    let executor = first_process(&daemon);
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let task_process = executor.children().unwrap()[0];
    assert_eq!(cgroups(executor.pid()), cgroups(task_process));
    // As soon as it waits.
    until("the executor has at most 1 MiB", || {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", executor.pid())).unwrap();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        pss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() <= 1024
    });
    kill(&daemon, "overhead").unwrap();
    drop(until_ended(&daemon, "overhead"));
    assert_engine_has_nothing(engine, &world, &daemon);
}

/// The executor for tests, in a container of the engine with the libraries of the host.
pub(super) fn custom_executor(id: &str, line: &str, parameters: &[(&str, &str)]) -> Json {
    let mut info = executor(id, "");
    info["container"] = docker(IMAGE, "NONE", parameters);
    let build = paths::build();
    let libraries = ["/lib", "/lib64", "/usr/lib"].map(std::path::PathBuf::from);
    let volumes = libraries.into_iter().filter(|path| path.exists()).chain([build.clone()]);
    let volume = |path| json!({"mode": "RO", "host_path": path, "container_path": path});
    info["container"]["volumes"] = volumes.map(volume).collect();
    info["command"]["shell"] = true.into();
    info["command"]["value"] = format!("{line}exec {}/test-executor", build.display()).into();
    info
}

#[test]
fn a_custom_executor_in_a_container_of_the_engine_runs_tasks_and_survives_the_agent() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    let info = custom_executor("custom", "", &[]);
    launch(&daemon, &info, &task("c1", "finish"));
    assert_eq!(
        until_ended(&daemon, "c1").states("c1"),
        ["TASK_RUNNING", "TASK_FINISHED"],
        "{}",
        daemon.log()
    );
    let id = container(&daemon);
    let found = engine.inspect(&format!("mesos-{id}.executor"));
    let variables = &found["Config"]["Env"];
    assert!(
        variables.as_array().unwrap().contains(&json!(format!("MESOS_CONTAINER_NAME=mesos-{id}.executor")))
    );
    daemon.kill();
    let daemon = Daemon::start(&world);
    launch(&daemon, &info, &task("c2", "run"));
    let mut received = until_state(&daemon, "c2", "TASK_RUNNING");
    assert_eq!(container(&daemon), id);
    // The container follows the resources of its tasks.
    let shares = || engine.inspect(&format!("mesos-{id}.executor"))["HostConfig"]["CpuShares"].as_i64();
    assert_eq!(shares(), Some(205));
    kill(&daemon, "c2").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("c2"));
    assert_eq!(received.states("c2"), ["TASK_RUNNING", "TASK_KILLED"]);
    shut_down(&daemon, "custom").unwrap();
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn a_custom_executor_in_the_engine_has_the_environment_of_executors() {
    let Some(engine) = engine() else { return };
    for checkpoint in [true, false] {
        let mut world = world_of(engine);
        with_variables(&mut world);
        let daemon = Daemon::start(&world);
        let mut info = custom_executor("one", "busybox env; ", &[]);
        add_variables(&mut info);
        daemon.call(&launch_call(&info, &task("a", "run"), checkpoint)).unwrap();
        drop(until_state(&daemon, "a", "TASK_RUNNING"));
        let id = container(&daemon);
        let mut expected = expected_environment(&world, checkpoint);
        expected.extend(
            [
                ("MESOS_DOMAIN_SOCKET", "/mnt/mesos/executor/socket/executor.sock"),
                ("MESOS_SANDBOX", "/mnt/mesos/sandbox"),
                ("MESOS_DIRECTORY", "/mnt/mesos/sandbox"),
                ("MESOS_CONTAINER_NAME", format!("mesos-{id}.executor").as_str()),
                // An image may have set them.
                ("MESOS_RECOVERY_TIMEOUT", "15mins"),
                ("MESOS_SUBSCRIPTION_BACKOFF_MAX", "2secs"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        assert_eq!(environment(&stdout(&world, &id)), expected);
        kill(&daemon, "a").unwrap();
        drop(until_ended(&daemon, "a"));
        shut_down(&daemon, "one").unwrap();
        assert_engine_has_nothing(engine, &world, &daemon);
    }
}

#[test]
fn tasks_without_a_container_are_in_the_engine_if_the_default_says_so() {
    let Some(engine) = engine() else { return };
    let mut world = world_of(engine);
    world.default_container_info = Some(docker(IMAGE, "NONE", &[("hostname", "default")]));
    let daemon = Daemon::start(&world);
    run_task(&daemon, &command_task("default", "test $(hostname) = default && exec sleep 1000"), true);
    let mut received = until_state(&daemon, "default", "TASK_RUNNING");
    let found = engine.inspect(&format!("mesos-{}", container(&daemon)));
    assert_eq!(found["Config"]["Hostname"], "default");
    assert_contains(&found["Config"]["Entrypoint"].to_string(), &["cofferdam-executor"]);
    kill(&daemon, "default").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("default"));
    assert_eq!(received.last("default")["state"], "TASK_KILLED");
    // Nothing can be nested in a container of the engine.
    let group = json!({"type": "LAUNCH_TASK_GROUP", "launch_task_group": {
        "framework_info": framework(true), "task_group": {"tasks": [command_task("grouped", "true")]},
    }});
    let error = format!("{:?}", daemon.call(&group).unwrap_err());
    assert_contains(&error, &["400", "`default_container_info`", "use `executor_info.container`"]);
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn an_executor_whose_launch_is_not_complete_gets_nothing_and_nests_nothing() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let world = world_of(&engine);
    let daemon = Daemon::start(&world);
    // The executor stops the engine before this has told the agent that the container was started, sooner or later.
    for attempt in 0..MAX_ATTEMPTS {
        if is_held(&engine, &world, &daemon, &format!("early-{attempt}")) {
            return assert_engine_has_nothing(&engine, &world, &daemon);
        }
    }
    panic!("the engine was stopped too late in {MAX_ATTEMPTS} attempts\n{}", daemon.log());
}

/// Checks what an executor gets during its launch. Returns false if the launch was complete before.
fn is_held(engine: &Engine, world: &World, daemon: &Daemon, id: &str) -> bool {
    let line = format!("kill -STOP {}; echo > $MESOS_SANDBOX/stopped; ", engine.pid());
    launch(daemon, &custom_executor(id, &line, &[("pid", "host")]), &task(id, "run"));
    let own = container(daemon);
    until("it is in its container", || {
        world.config.work_dir.join("docker").join(&own).join("stopped").exists()
    });
    let own_id = cofferdam_core::model::ContainerId::parse(&own).unwrap();
    let environ = early_environment(&own);
    let token = environ.split('\0').find_map(|it| it.strip_prefix("MESOS_EXECUTOR_AUTHENTICATION_TOKEN="));
    let wait = json!({"type": "WAIT_CONTAINER", "wait_container":
        {"container_id": {"value": "x", "parent": {"value": own}}}});
    let subscribe = json!({
        "type": "SUBSCRIBE", "framework_id": {"value": "tests"}, "executor_id": {"value": id}, "subscribe": {},
    });
    let mut subscription = send(world, "/api/v1/executor", token, &subscribe);
    let (status, response) = request(world, "/api/v1", token, &wait);
    subscription.set_nonblocking(true).unwrap();
    let read = subscription.read(&mut [0]);
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).unwrap();
    drop(subscription);
    // Nothing is complete that was not before all of this.
    let is_held = daemon.inspect(&own_id).unwrap().state != "RUNNING";
    if is_held {
        assert_eq!(status, 503, "{response}");
        assert_contains(&response, &["the launch of container", "is not complete"]);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(executors["executors"][0]["state"], "REGISTERING");
    }
    engine.resume();
    let mut received = until_state(daemon, id, "TASK_RUNNING");
    kill(daemon, id).unwrap();
    received.until(daemon, &mut daemon.updates(), |received| received.has_ended(id));
    shut_down(daemon, id).unwrap();
    assert_nothing_left(world, daemon);
    is_held
}

/// The environment of a process in the container of an executor, which the agent does not know yet.
fn early_environment(container: &str) -> String {
    let name = format!("MESOS_CONTAINER_NAME=mesos-{container}.executor");
    let mut found = String::new();
    until("its process is there", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let environments = processes.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
        let environments = environments.filter_map(|environment| String::from_utf8(environment).ok());
        let environment = environments.into_iter().find(|environment| environment.contains(&name));
        found = environment.unwrap_or_default();
        !found.is_empty()
    });
    found
}

#[test]
fn what_cannot_be_in_a_container_of_the_engine_is_refused() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    let refused = |call: &Json, expected: &[&str]| {
        let error = format!("{:?}", daemon.call(call).unwrap_err());
        assert_contains(&error, expected);
    };
    let group = |executor: Json, container: Json| {
        let mut task = command_task("grouped", "true");
        task["container"] = container;
        json!({"type": "LAUNCH_TASK_GROUP", "launch_task_group": {
            "framework_info": framework(true), "executor_info": executor, "task_group": {"tasks": [task]},
        }})
    };
    let container = docker(IMAGE, "NONE", &[]);
    let mut default = json!({"type": "DEFAULT", "executor_id": {"value": "group"}});
    refused(
        &group(default.clone(), container.clone()),
        &["400", "task_group.tasks[0].container.type `DOCKER`"],
    );
    default["container"] = container;
    refused(&group(default, Json::Null), &["400", "executor_info.container.type `DOCKER`", "type `DEFAULT`"]);
    let mut secret = docker_task("secret", "true");
    secret["command"]["environment"] = json!({"variables": [{"name": "S", "type": "SECRET",
        "secret": {"type": "VALUE", "value": {"data": "aHVudGVyMg=="}}}]});
    let call = json!({"type": "LAUNCH_TASK",
        "launch_task": {"framework_info": framework(true), "task_info": secret}});
    refused(&call, &["400", "SECRET"]);
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn the_command_line_runs_tasks_in_containers_of_the_engine() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(paths::program());
        command.arg("--socket").arg(world.socket()).args(["task", "run"]).args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let option = ["--docker-option", "network=none"];
    let (status, shown) = run(&[&["--docker", IMAGE], &option[..], &["--shell", "exit 4"]].concat());
    assert_eq!(status, Some(4), "{shown}\n{}", daemon.log());
    assert_contains(&shown, &["TASK_RUNNING", "TASK_FAILED", "Container exited with status 4"]);
    let (status, shown) = run(&[&["--docker", ENTRY, "--name", "cli"], &option[..], &["--", "a"]].concat());
    assert_eq!(status, Some(0), "{shown}");
    let (status, shown) = run(&["--docker", IMAGE, "--docker-option", "=x"]);
    assert_eq!(status, Some(2), "{shown}");
    assert_contains(&shown, &["the name of the option is missing"]);
    assert_engine_has_nothing(engine, &world, &daemon);
}
