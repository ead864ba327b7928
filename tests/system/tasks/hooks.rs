//! Hooks of executors and tasks.

use std::process::Command;

use cofferdam_core::config::FailPolicy;
use cofferdam_plugin_model::Method;
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::pipe::Pipe;
use cofferdam_tests::world::{id, object};
use cofferdam_tests::{assert_contains, watch};

use super::*;

const NAME: &str = "test/hook";

/// A world with a hook that records its calls.
fn world(mut table: Json) -> World {
    let mut world = super::world();
    table["journal"] = json!(world.directory().join("journal"));
    world.config.hooks.push(object(NAME, "libtest_hook.so", table));
    world
}

/// The recorded calls of a method, in order.
fn calls(world: &World, method: Method) -> Vec<Json> {
    // It is created by the first call.
    let journal = fs::read_to_string(world.directory().join("journal")).unwrap_or_default();
    // The last line may not be complete yet.
    let calls = journal.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
    calls.filter(|call| call["method"] == method.name()).collect()
}

/// Waits until a method was called so often.
fn wait_for_calls(world: &World, daemon: &Daemon, method: Method, count: usize) -> Vec<Json> {
    let has_enough = || calls(world, method).len() >= count;
    let is_enough = watch::until(world.directory(), TIMEOUT, has_enough);
    let calls = calls(world, method);
    assert!(is_enough, "{method}: {calls:?}\n{}", daemon.log());
    calls
}

/// Launches the task `a`, and receives its updates until it has ended.
fn run(daemon: &Daemon, name: &str) -> Received {
    launch(daemon, &executor("one", ""), &task("a", name));
    until_ended(daemon, "a")
}

#[test]
fn an_executor_and_its_tasks_are_shown_to_hooks_from_launch_to_removal() {
    let world = world(json!({
        "environment": {"FROM_HOOK": "yes", "TEST_EXECUTOR": "$TEST_EXECUTOR", "MESOS_EXECUTOR_ID": "forged"},
        "labels": {"rack": "r1"},
        "container_status": r#"{"container_id": {"value": "forged"}, "network_infos": []}"#,
    }));
    let daemon = Daemon::start(&world);
    let (mut executor, mut task) = (executor("one", ""), task("a", "run"));
    executor["labels"] = json!({"labels": [{"key": "tier", "value": "back"}]});
    task["labels"] = json!({"labels": [{"key": "app", "value": "shop"}]});
    let variables = &mut executor["command"]["environment"]["variables"];
    variables.as_array_mut().unwrap().push(json!({"name": "DROPPED", "value": "1"}));
    launch(&daemon, &executor, &task);
    let mut received = until_state(&daemon, "a", "TASK_RUNNING");
    let container = container(&daemon);

    let asked = calls(&world, Method::ExecutorEnvironment);
    assert_eq!((asked.len(), &asked[0]["container"]), (1, &json!(container)));
    let request = &asked[0]["request"];
    assert_eq!(request["environment"], json!({"TEST_EXECUTOR": "", "DROPPED": "1"}));
    let shown = &request["executor"];
    assert_eq!(
        (&shown["id"], &shown["kind"], &shown["labels"], &shown["framework"]["name"]),
        (&json!("one"), &json!("custom"), &json!({"tier": "back"}), &json!("tests"))
    );
    assert_eq!(shown["command"]["environment"]["DROPPED"], "1");
    assert_eq!(
        (&shown["tasks"][0]["id"], &shown["tasks"][0]["labels"]),
        (&json!("a"), &json!({"app": "shop"}))
    );
    let command = daemon.inspect(&id(&container)).unwrap().request.command.unwrap();
    let variables = serde_json::to_string(&command.environment).unwrap();
    assert_contains(&variables, &["FROM_HOOK", "MESOS_EXECUTOR_ID"]);
    assert!(!variables.contains("DROPPED") && !variables.contains("forged"), "{variables}");
    let shown = calls(&world, Method::PostFetch);
    assert_eq!((shown.len(), &shown[0]["container"]), (1, &json!(container)));

    kill(&daemon, "a").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("a"));
    assert_eq!(received.states("a"), ["TASK_RUNNING", "TASK_KILLED"]);
    for status in &received.statuses["a"] {
        assert_eq!(status["labels"], json!({"labels": [{"key": "rack", "value": "r1"}]}));
        assert_eq!(status["container_status"]["network_infos"], json!([]), "{status}");
    }
    // What identifies the container stays.
    let running = &received.statuses["a"][0]["container_status"];
    assert_eq!(running["container_id"]["value"], json!(container));
    let decorated = calls(&world, Method::TaskStatus);
    let seen: Vec<_> = decorated.iter().map(|call| call["request"]["state"].as_str().unwrap()).collect();
    assert_eq!(seen, ["TASK_RUNNING", "TASK_KILLED"]);
    assert_eq!(decorated[0]["request"]["source"], "SOURCE_EXECUTOR");

    assert_eq!(calls(&world, Method::RemoveExecutor), [Json::Null; 0]);
    shut_down(&daemon, "one").unwrap();
    let removed = wait_for_calls(&world, &daemon, Method::RemoveExecutor, 1);
    assert_eq!((&removed[0]["container"], &removed[0]["request"]["id"]), (&json!(container), &json!("one")));
    assert_nothing_left(&world, &daemon);
    assert_eq!(calls(&world, Method::RemoveExecutor).len(), 1);
}

#[test]
fn tasks_and_executors_in_an_engine_are_shown_to_hooks_which_set_their_environment() {
    let Some(engine) = cofferdam_tests::engine::engine() else { return };
    let hooked = |table: Json| {
        let mut world = super::engine::world_of(engine);
        let mut table = table;
        table["journal"] = json!(world.directory().join("journal"));
        world.config.hooks.push(object(NAME, "libtest_hook.so", table));
        world
    };
    let world = hooked(json!({
        "environment": {"FROM_EXECUTOR_ENVIRONMENT": "1", "TEST_EXECUTOR": ""},
        "executor_environment": {"FROM_EXECUTOR": "2", "BOTH": "executor"},
        "task_environment": {"FROM_TASK": "3", "BOTH": "task", "MESOS_FRAMEWORK_ID": "forged"},
        "labels": {"rack": "r1"},
    }));
    let daemon = Daemon::start(&world);
    let mut task = super::engine::docker_task("hooked", "busybox env; echo end; exec sleep 1000");
    task["labels"] = json!({"labels": [{"key": "app", "value": "shop"}]});
    super::programs::run_task(&daemon, &task, true);
    let mut received = until_state(&daemon, "hooked", "TASK_RUNNING");
    let own = container(&daemon);
    let stdout = world.config.work_dir.join("docker").join(&own).join("stdout");
    cofferdam_tests::wait_for_text(&stdout, "end\n");
    let environment = cofferdam_tests::text(&stdout);
    assert_contains(
        &environment,
        &["FROM_EXECUTOR_ENVIRONMENT=1\n", "FROM_EXECUTOR=2\n", "FROM_TASK=3\n", "BOTH=task\n"],
    );
    assert!(!environment.contains("MESOS_FRAMEWORK_ID"), "{environment}");
    let shown = calls(&world, Method::PreLaunchDocker).remove(0)["request"].take();
    assert_eq!(shown["name"], json!(format!("mesos-{own}")));
    let executor = &shown["executor"];
    assert_eq!((&executor["kind"], &executor["id"]), (&json!("docker"), &json!("hooked")));
    assert_eq!(
        (&executor["tasks"][0]["id"], &executor["tasks"][0]["labels"]),
        (&json!("hooked"), &json!({"app": "shop"}))
    );
    kill(&daemon, "hooked").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("hooked"));
    for status in &received.statuses["hooked"] {
        assert_eq!(status["labels"], json!({"labels": [{"key": "rack", "value": "r1"}]}));
    }
    wait_for_calls(&world, &daemon, Method::RemoveExecutor, 1);
    super::engine::assert_engine_has_nothing(engine, &world, &daemon);

    launch(&daemon, &super::engine::custom_executor("custom", "", &[]), &super::task("b", "run"));
    let mut received = until_state(&daemon, "b", "TASK_RUNNING");
    let shown = calls(&world, Method::PreLaunchDocker).remove(1)["request"].take();
    assert_eq!(shown["name"], json!(format!("mesos-{}.executor", container_of(&daemon, "custom"))));
    assert_eq!(
        (&shown["executor"]["kind"], &shown["executor"]["tasks"][0]["id"]),
        (&json!("custom"), &json!("b"))
    );
    kill(&daemon, "b").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("b"));
    shut_down(&daemon, "custom").unwrap();
    super::engine::assert_engine_has_nothing(engine, &world, &daemon);

    let world = hooked(json!({"faults": [{"method": "pre_launch_docker", "act": "error"}]}));
    let daemon = Daemon::start(&world);
    super::programs::run_task(&daemon, &super::engine::docker_task("failing", "true"), true);
    let received = until_ended(&daemon, "failing");
    let last = received.last("failing");
    assert_eq!(
        (&last["state"], &last["reason"]),
        (&json!("TASK_FAILED"), &json!("REASON_CONTAINER_LAUNCH_FAILED"))
    );
    assert_contains(last["message"].as_str().unwrap(), &["`pre_launch_docker`: deliberate error"]);
    super::engine::assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn updates_of_the_agent_itself_are_decorated() {
    let world = world(json!({"labels": {"rack": "r1"}}));
    let daemon = Daemon::start(&world);
    let received = run(&daemon, "exit");
    let last = received.last("a");
    assert_eq!((&last["state"], &last["source"]), (&json!("TASK_FAILED"), &json!("SOURCE_AGENT")));
    assert_eq!(last["labels"], json!({"labels": [{"key": "rack", "value": "r1"}]}));
    // Its last update was acknowledged after its end.
    wait_for_calls(&world, &daemon, Method::RemoveExecutor, 1);
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_update_that_a_hook_fails_to_decorate_is_as_before() {
    for act in ["error", "panic"] {
        let world = world(json!({"faults": [
            {"method": "task_status", "act": act}, {"method": "remove_executor", "act": act},
        ]}));
        let daemon = Daemon::start(&world);
        let received = run(&daemon, "exit");
        assert_eq!(received.states("a"), ["TASK_RUNNING", "TASK_FAILED"]);
        assert!(received.statuses["a"].iter().all(|status| status["labels"].is_null()), "{received:?}");
        wait_for_calls(&world, &daemon, Method::RemoveExecutor, 1);
        assert_contains(&daemon.log(), &["status update not decorated", "deliberate"]);
        let metrics = daemon.get("/metrics/snapshot");
        assert_eq!(metrics["cofferdam_plugin_failures_total/test/hook/task_status"], 2.0);
        assert_nothing_left(&world, &daemon);
    }
}

#[test]
fn an_update_waits_for_a_hook_that_hangs_until_its_time_is_over() {
    let mut world = world(json!({}));
    let pipe = Pipe::new(world.directory().join("pipe"));
    let hook = &mut world.config.hooks[0];
    hook.table["faults"] = json!([{"method": "task_status", "act": "hang", "until": pipe.path()}]);
    hook.timeouts.insert(Method::TaskStatus, Duration::from_millis(300));
    let daemon = Daemon::start(&world);
    // The second update does not wait for the call that is late.
    let received = run(&daemon, "finish");
    assert_eq!(received.states("a"), ["TASK_RUNNING", "TASK_FINISHED"]);
    assert_eq!(calls(&world, Method::TaskStatus).len(), 1);
    let metrics = daemon.get("/metrics/snapshot");
    assert_eq!(metrics["cofferdam_plugin_timeouts_total/test/hook/task_status"], 1.0);
    drop(pipe);
    shut_down(&daemon, "one").unwrap();
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_hook_that_fails_for_an_executor_fails_its_tasks_unless_it_is_optional() {
    let mut world = world(json!({"faults": [{"method": "executor_environment", "act": "error"}]}));
    let daemon = Daemon::start(&world);
    let received = run(&daemon, "finish");
    let last = received.last("a");
    assert_eq!(
        (&last["state"], &last["reason"]),
        (&json!("TASK_FAILED"), &json!("REASON_CONTAINER_LAUNCH_FAILED"))
    );
    let reason = "`test/hook` failed in `executor_environment`: deliberate error";
    assert_contains(last["message"].as_str().unwrap(), &[reason]);
    wait_for_calls(&world, &daemon, Method::RemoveExecutor, 1);
    assert_nothing_left(&world, &daemon);
    daemon.terminate();

    world.config.hooks[0].policy = FailPolicy::Optional;
    let daemon = Daemon::start(&world);
    assert_eq!(run(&daemon, "finish").last("a")["state"], "TASK_FINISHED");
    assert_contains(&daemon.log(), &["launch continues without an optional hook", reason]);
    shut_down(&daemon, "one").unwrap();
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_that_is_stopped_does_not_wait_for_its_hook_and_is_not_launched() {
    let mut world = world(json!({}));
    let pipe = Pipe::new(world.directory().join("pipe"));
    let fault = json!([{"method": "executor_environment", "act": "hang", "until": pipe.path()}]);
    world.config.hooks[0].table["faults"] = fault;
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "finish"));
    wait_for_calls(&world, &daemon, Method::ExecutorEnvironment, 1);
    shut_down(&daemon, "one").unwrap();
    let received = until_ended(&daemon, "a");
    assert_eq!(received.states("a"), ["TASK_KILLED"]);
    // Calls of one container follow each other.
    drop(pipe);
    wait_for_calls(&world, &daemon, Method::RemoveExecutor, 1);
    assert_nothing_left(&world, &daemon);
    assert_eq!(calls(&world, Method::PostFetch), [Json::Null; 0]);
}

#[test]
fn a_decoration_that_is_no_container_status_is_refused() {
    let world = world(json!({"container_status": "7", "labels": {"rack": "r1"}}));
    let daemon = Daemon::start(&world);
    let received = run(&daemon, "finish");
    assert!(received.statuses["a"].iter().all(|status| status["labels"].is_null()), "{received:?}");
    assert_contains(&daemon.log(), &["status update not decorated", "`container_status` is not an object"]);
    shut_down(&daemon, "one").unwrap();
    assert_nothing_left(&world, &daemon);
}

#[test]
fn hooks_are_listed_by_the_command_line() {
    let world = world(json!({}));
    let daemon = Daemon::start(&world);
    let run = |arguments: &[&str]| {
        let output = Command::new(paths::program()).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let row_of = |listed: &str| listed.lines().find(|line| line.contains(NAME)).unwrap().to_owned();
    let socket = world.socket().display().to_string();
    let listed = run(&["--socket", &socket, "plugin", "ls"]);
    assert_contains(&row_of(&listed), &["hook", "0.1.0", "healthy"]);
    let config = world.directory().join("agent.toml").display().to_string();
    let checked = run(&["check", "--config", &config]);
    assert_contains(&row_of(&checked), &["hook", "required", "libtest_hook.so"]);
    let checked: Json = serde_json::from_str(&run(&["check", "--json", "--config", &config])).unwrap();
    assert_eq!((&checked["hooks"][0]["name"], &checked["flags"]["hooks"]), (&json!(NAME), &json!(NAME)));
    let file = paths::build().join("libtest_hook.so").display().to_string();
    assert_contains(&run(&["plugin", "inspect", &file]), &["hook", "pre_launch_docker", "journal"]);
    drop(daemon);
}
