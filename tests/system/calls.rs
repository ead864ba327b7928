//! Calls of plugins, and what they use of the agent: parents, the end of containers, limitations, leases, logs.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs;
use std::path::PathBuf;

use cofferdam_core::agent::Agent;
use cofferdam_core::config::LauncherKind;
use cofferdam_core::model::{Phase, Reason, Request, Resources, Rlimit, Value};
use cofferdam_plugin_model::{Cgroups, FEATURES, LINUX_LAUNCHER};
use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::world::{World, id, launch_error, object, run, sandbox_logger, with_agent};
use cofferdam_tests::{assert_contains, is_root, text};
use nix::sys::stat::Mode;
use serde_json::{Value as Json, json};

/// A world with the plugin that records its calls, and what its table has besides the journal.
fn world(extra: Json) -> World {
    let mut world = World::new();
    let mut table = json!({ "journal": world.directory().join("journal") });
    table.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    world.config.isolators.push(object("test/observer", "libtest_observer.so", table));
    world.config.logger = Some(sandbox_logger());
    world.share_plugin_store();
    world
}

/// What the plugin recorded of the only call of a method for a container.
fn recorded(world: &World, method: &str, container: &str) -> Json {
    let journal = text(&world.directory().join("journal"));
    let calls = journal.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let mut found: Vec<Json> =
        calls.filter(|call| call["method"] == method && call["container"] == container).collect();
    assert_eq!(found.len(), 1, "`{method}` of `{container}`: {journal}");
    found.remove(0)
}

/// A container that runs until it is ended.
fn long_running(name: &str) -> Request {
    Request::shell(id(name), "exec sleep 1000000")
}

/// Destroys a top-level container and removes it, after which nothing must be left.
async fn remove(world: &World, agent: &Agent, name: &str) {
    agent.destroy(&id(name)).await.unwrap();
    assert!(agent.remove(&id(name)).await.unwrap());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn create_describes_the_agent() {
    let mut world = world(json!({}));
    world.add("namespaces/uts", json!({}));
    let agent = world.start().await.unwrap();
    let seen = recorded(&world, "create", "");
    assert_eq!((&seen["name"], &seen["file_exists"]), (&json!("test/observer"), &json!(true)));
    let of_agent = &seen["agent"];
    assert_eq!(of_agent["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(of_agent["chain"], json!(["test/observer", "namespaces/uts"]));
    let resources: Resources = serde_json::from_value(of_agent["resources"].clone()).unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(resources.scalar("cpus"), Some(cpus as f64));
    assert!(resources.scalar("mem").is_some_and(|mem| mem > 100.0), "{of_agent}");
    let features: Vec<&str> =
        of_agent["features"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
    for feature in FEATURES.iter().filter(|feature| **feature != LINUX_LAUNCHER) {
        assert!(features.contains(feature), "{feature}: {features:?}");
    }
    assert_eq!(features.contains(&LINUX_LAUNCHER), of_agent["launcher"] == "linux", "{of_agent}");
    let launcher = if nix::unistd::geteuid().is_root() { "linux" } else { "posix" };
    assert_eq!(of_agent["launcher"], launcher);
    let directories: Vec<PathBuf> = serde_json::from_value(seen["directories"].clone()).unwrap();
    assert!(directories[0].starts_with(&world.config.runtime_dir), "{directories:?}");
    assert!(directories[1].starts_with(&world.config.work_dir), "{directories:?}");
    let cgroups: Cgroups = serde_json::from_value(of_agent["cgroups"].clone()).unwrap();
    for mount in cgroups.v1.values().chain(&cgroups.v2) {
        let parent = mount.join(&cgroups.path);
        assert!(parent.starts_with(mount) && mount.is_dir(), "{}", parent.display());
    }
    assert_eq!(cgroups == Cgroups::default(), launcher == "posix", "{of_agent}");
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepare_of_a_nested_container_describes_its_parent() {
    if !is_root("nested containers") {
        return;
    }
    let world = world(json!({}));
    let agent = world.start().await.unwrap();
    let mut pod = long_running("pod");
    pod.command.user = Some("1234".into());
    let pid = agent.launch(pod).await.unwrap();
    let nested_pid = agent.launch(long_running("pod.web")).await.unwrap();
    agent.launch(long_running("pod.web.probe")).await.unwrap();
    assert_eq!(recorded(&world, "prepare", "pod")["parent"], Json::Null);
    for (container, parent, pid, uid) in
        [("pod.web", "pod", pid, 1234), ("pod.web.probe", "pod.web", nested_pid, 1234)]
    {
        let found = &recorded(&world, "prepare", container)["parent"];
        let sandbox = agent.inspect(&id(parent)).unwrap().sandbox;
        assert!(sandbox.is_dir());
        let expected = json!({
            "id": parent, "pid": pid, "sandbox": sandbox, "rootfs": null, "uid": uid, "gid": found["gid"],
            "state": { "container": parent, "number": null },
        });
        assert_eq!(found, &expected, "{container}");
    }
    remove(&world, &agent, "pod").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_is_called_when_the_sandbox_is_gone() {
    if !is_root("the linux launcher") {
        return;
    }
    let world = world(json!({}));
    let agent = world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let sandbox = agent.inspect(&id("web")).unwrap().sandbox;
    agent.destroy(&id("web")).await.unwrap();
    let cleanup = recorded(&world, "cleanup", "web");
    assert_eq!((&cleanup["sandbox"], &cleanup["sandbox_exists"]), (&json!(sandbox), &json!(true)));
    let journal = text(&world.directory().join("journal"));
    assert!(!journal.contains("\"removed\""), "{journal}");
    assert!(agent.remove(&id("web")).await.unwrap());
    let removed = recorded(&world, "removed", "web");
    assert_eq!((&removed["sandbox"], &removed["sandbox_exists"]), (&json!(sandbox), &json!(false)));
    assert_eq!(removed["state"]["container"], "web");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limitation_of_another_container_of_the_tree_ends_that_one() {
    if !is_root("nested containers") {
        return;
    }
    let mut world = world(json!({}));
    let pipe = world.directory().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    world.config.isolators[0].table["limitation"] = json!({
        "watched": "pod.db", "pipe": pipe, "container": "pod.web", "reason": "REASON_CONTAINER_LIMITATION_DISK",
    });
    let agent = world.start().await.unwrap();
    for name in ["pod", "pod.db", "pod.web"] {
        agent.launch(long_running(name)).await.unwrap();
    }
    fs::write(&pipe, "exceeded").unwrap();
    let termination = agent.wait(&id("pod.web")).await.unwrap();
    assert_eq!(
        termination.reason,
        Some(Reason::Limitation("REASON_CONTAINER_LIMITATION_DISK".into())),
        "{termination:?}"
    );
    assert_eq!(termination.message.as_deref(), Some("reported by `pod.db`"));
    assert_eq!(termination.limited, [("disk".to_owned(), Value::Scalar(1.0))].into());
    for name in ["pod", "pod.db"] {
        assert_eq!(agent.inspect(&id(name)).unwrap().summary.phase, Phase::Running, "{name}");
    }
    remove(&world, &agent, "pod").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logger_says_where_its_files_are() {
    let mut world = World::new();
    world.config.launcher = LauncherKind::Posix;
    let (directory, input) = (world.directory().join("logs"), world.directory().join("input"));
    fs::create_dir(&directory).unwrap();
    fs::write(&input, "typed\n").unwrap();
    let table = json!({ "directory": directory, "input": input });
    world.config.logger = Some(object("test/logger", "libtest_logger.so", table));
    let agent = world.start().await.unwrap();
    let output = run(&agent, Request::shell(id("web"), "cat; echo $LOGGER; echo error >&2")).await;
    assert_eq!(output, "typed\ntest/logger\n");
    let logs = agent.inspect(&id("web")).unwrap().logs;
    let files: [PathBuf; 2] = ["web.out", "web.err"].map(|name| directory.join(name));
    assert_eq!([logs.stdout.unwrap(), logs.stderr.unwrap()], files);
    assert_eq!(text(&files[1]), "error\n");
    let plan = agent.inspect(&id("web")).unwrap().plan;
    let variable = plan.iter().find(|entry| entry.field == "environment.LOGGER").unwrap();
    assert_eq!(variable.owner, "test/logger");
    agent.remove(&id("web")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_request_reaches_the_plugin_that_handles_it() {
    if !is_root("raising resource limits") {
        return;
    }
    let mut request = Request::shell(id("web"), "ulimit -n; ulimit -Hn");
    request.rlimits = [("NOFILE".to_owned(), Rlimit { soft: Some(71), hard: Some(72) })].into();
    let mut world = world(json!({}));
    let agent = world.start().await.unwrap();
    assert_eq!(run(&agent, request.clone()).await, "71\n72\n");
    let found = &recorded(&world, "prepare", "web")["rlimits"];
    assert_eq!(found, &json!({ "NOFILE": { "soft": 71, "hard": 72 } }));
    agent.remove(&id("web")).await.unwrap();
    drop(agent);

    world = World::new();
    world.config.isolators.push(object("test/request", "libtest_request.so", json!({})));
    let agent = world.start().await.unwrap();
    let message = launch_error(&agent, request).await;
    assert_contains(&message, &["container `web` requests `rlimits`, which none of its plugins handles"]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The pool as the plugin lists it: numbers and containers.
async fn leases(agent: &Agent, container: &str) -> Vec<(u64, String)> {
    let view = agent.status(&id(container)).await.unwrap();
    assert!(view.failed.is_empty(), "{view:?}");
    let leases = view.status["leases"].as_array().unwrap();
    let lease = |lease: &Json| {
        assert_eq!((&lease["pool"], &lease["plugin"]), (&json!("test"), &json!("test/observer")));
        (lease["number"].as_u64().unwrap(), lease["container"].as_str().unwrap().to_owned())
    };
    leases.iter().map(lease).collect()
}

#[test]
fn leases_are_kept_over_a_restart_until_they_are_released_or_the_container_is_removed() {
    if !is_root("the linux launcher") {
        return;
    }
    let lease = |number: u64, container: &str| (number, container.to_owned());
    let world = world(json!({ "pool": "test" }));
    with_agent(&world, async |agent| {
        for name in ["a", "b"] {
            agent.launch(long_running(name)).await.unwrap();
        }
        assert_eq!(leases(&agent, "a").await, [lease(1, "a"), lease(2, "b")]);
        // The plugin leases one of two numbers.
        let message = launch_error(&agent, long_running("c")).await;
        assert_contains(&message, &["`test/observer` failed in `prepare`", "`test`", "1", "2"]);
    });
    with_agent(&world, async |agent| {
        assert_eq!(leases(&agent, "b").await, [lease(1, "a"), lease(2, "b")]);
        // The plugin releases the number of a container when it is updated.
        agent.update(&id("a"), Resources::default().with("cpus", 1.0)).await.unwrap();
        assert_eq!(leases(&agent, "a").await, [lease(2, "b")]);
        agent.launch(long_running("c")).await.unwrap();
        assert_eq!(leases(&agent, "a").await, [lease(1, "c"), lease(2, "b")]);
        agent.destroy(&id("b")).await.unwrap();
        assert_eq!(leases(&agent, "a").await, [lease(1, "c"), lease(2, "b")], "its sandbox is still there");
        agent.remove(&id("b")).await.unwrap();
        assert_eq!(leases(&agent, "a").await, [lease(1, "c")]);
        for name in ["a", "c"] {
            agent.destroy(&id(name)).await.unwrap();
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// A client can tell that it has to change its request, and that repeating it does not help.
#[test]
fn what_plugins_refuse_as_invalid_is_a_client_error() {
    if !is_root("limits of processes") {
        return;
    }
    let mut world = World::shipped();
    let pids = world.config.isolators.iter_mut().find(|plugin| plugin.name == "cgroups/pids").unwrap();
    pids.table = json!({ "default": 50, "maximum": 100 });
    let daemon = Daemon::start(&world);
    let mut refused = ["one", "two", "three", "four"].map(long_running);
    refused[0].resources = Resources::default().with("pids", 0.5);
    refused[1].resources = Resources::default().with("pids", 101.0);
    refused[2].rlimits = [("NOFILE".to_owned(), Rlimit { soft: Some(2), hard: Some(1 << 40) })].into();
    refused[3].linux.hostname = Some("a b".to_owned());
    for (request, plugin) in
        refused.iter().zip(["cgroups/pids", "cgroups/pids", "posix/rlimits", "namespaces/uts"])
    {
        let Err(CallError::Status(400, text)) = daemon.launch(request) else {
            panic!("{plugin} has not refused {request:?} as invalid");
        };
        assert_contains(&text, &[&format!("`{plugin}` failed in `prepare`")]);
    }
    daemon.launch(&long_running("web")).unwrap();
    match daemon.update(&id("web"), &[("pids", 101.0)]) {
        Err(CallError::Status(400, text)) => assert_contains(&text, &["at most 100 are permitted"]),
        other => panic!("{other:?}"),
    }
    daemon.destroy(&id("web")).unwrap();
    daemon.remove(&id("web")).unwrap();
    assert_eq!(daemon.list().len(), 0, "launches that failed are not kept");
    assert!(daemon.terminate().success());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
