//! Tasks in containers of a container engine, while the agent, the engine, or the executor fails: each has one end, no update
//! is lost, and nothing is left.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use cofferdam::engine::EngineSocket;
use cofferdam_core::config::{ContainerizerConfig, DockerConfig};
use cofferdam_tests::daemon::TIMEOUT;

use super::crashes::{
    ENDS, MAX_STEPS, Subject, assert_end, failed_at_each_step, killed_at_each_step, receive,
};
use super::engine::{
    assert_engine_has_nothing, custom_executor, docker, docker_task, first_process, stdout, until, world_of,
};
use super::hostile::request;
use super::programs::{STARTED, run_task};
use super::*;
use crate::docker::proxy::Proxy;
use crate::docker::stop::{stalled_server, stalling_registry};
use crate::images::agent::Stalling;
use cofferdam_tests::engine::{Engine, engine, has_engine};
use cofferdam_tests::wait_for_text;

fn call(id: &str, line: &str) -> Json {
    json!({
        "type": "LAUNCH_TASK",
        "launch_task": {"framework_info": framework(true), "task_info": docker_task(id, line)},
    })
}

fn subject(step: usize, line: &str) -> Subject {
    let id = format!("step-{step}");
    Subject::task(&id, call(&id, line))
}

/// Runs a task while the agent is killed at each step in turn. Both halves together are all steps.
fn is_killed_at_each_step(half: usize) {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let nothing_left = |daemon: &Daemon| assert_engine_has_nothing(engine, &world, daemon);
    let steps = (1 + half..MAX_STEPS).step_by(2);
    killed_at_each_step(&world, steps, |step| subject(step, "exec sleep 1000"), true, &ENDS, nothing_left);
}

#[test]
fn a_task_has_one_end_whenever_the_agent_is_killed_at_odd_steps() {
    is_killed_at_each_step(0);
}

#[test]
fn a_task_has_one_end_whenever_the_agent_is_killed_at_even_steps() {
    is_killed_at_each_step(1);
}

#[test]
fn a_launch_that_fails_at_any_step_leaves_nothing() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let (daemon, injector) = Daemon::start_with_injector(&world);
    let ends = [&ENDS[..], &["TASK_FINISHED"]].concat();
    let nothing_left = || assert_engine_has_nothing(engine, &world, &daemon);
    failed_at_each_step(&daemon, &injector, |step| subject(step, "exit 0"), &ends, nothing_left);
}

#[test]
fn a_task_whose_executor_is_killed_in_any_state_has_one_end() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    for state in ["TASK_STARTING", "TASK_RUNNING", "TASK_KILLING"] {
        let mut task = docker_task(state, "trap '' TERM; echo ready; while :; do sleep 1000; done");
        task["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000_000_000_u64}});
        run_task(&daemon, &task, true);
        let mut updates = daemon.updates();
        let mut received = Received::default();
        let has =
            |received: &Received, wanted: &str| received.states(state).iter().any(|seen| seen == wanted);
        if state == "TASK_KILLING" {
            received.until(&daemon, &mut updates, |received| has(received, "TASK_RUNNING"));
            wait_for_text(&stdout(&world, &container(&daemon)), "ready");
            kill(&daemon, state).unwrap();
        }
        received.until(&daemon, &mut updates, |received| has(received, state));
        first_process(&daemon).kill().unwrap();
        received.until(&daemon, &mut updates, |received| received.has_ended(state));
        assert_end(&received, state, true, &ENDS, state);
        assert_eq!(received.last(state)["source"], "SOURCE_AGENT");
        assert_engine_has_nothing(engine, &world, &daemon);
    }
}

#[test]
fn a_task_whose_engine_is_killed_in_any_state_has_one_end() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start();
    let world = world_of(&engine);
    let daemon = Daemon::start(&world);

    // While it pulls the image from a registry that does not answer.
    let registry = engine.in_network(stalled_server);
    let mut task = docker_task("pulling", "true");
    task["container"] = docker(&format!("{}/stalled:1", registry.local_addr().unwrap()), "NONE", &[]);
    run_task(&daemon, &task, true);
    drop(registry.accept().unwrap());
    engine.kill();
    let received = until_ended(&daemon, "pulling");
    assert_end(&received, "pulling", true, &["TASK_FAILED"], "pulling");
    assert_eq!(received.last("pulling")["reason"], "REASON_CONTAINER_LAUNCH_FAILED");
    engine.start_again();
    assert_engine_has_nothing(&engine, &world, &daemon);

    // While the task runs: an engine that is started again ends what it finds.
    run_task(&daemon, &docker_task("running", "exec sleep 1000"), true);
    let mut received = until_state(&daemon, "running", "TASK_RUNNING");
    engine.kill();
    engine.start_again();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("running"));
    assert_end(&received, "running", true, &["TASK_FAILED", "TASK_KILLED"], "running");
    assert_engine_has_nothing(&engine, &world, &daemon);

    // While the task is being killed, which the executor does without the engine.
    let mut task = docker_task("killing", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    task["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000_000_000_u64}});
    run_task(&daemon, &task, true);
    let mut received = until_state(&daemon, "killing", "TASK_RUNNING");
    wait_for_text(&stdout(&world, &container(&daemon)), "ready");
    engine.kill();
    kill(&daemon, "killing").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("killing"));
    assert_eq!(received.states("killing"), [STARTED[0], STARTED[1], "TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(received.last("killing")["message"], "Container exited with status 3");
    engine.start_again();
    assert_engine_has_nothing(&engine, &world, &daemon);

    // Nothing can be launched while there is none, and then again.
    engine.kill();
    run_task(&daemon, &docker_task("without", "true"), true);
    let received = until_ended(&daemon, "without");
    assert_end(&received, "without", true, &["TASK_FAILED"], "without");
    engine.start_again();
    run_task(&daemon, &docker_task("again", "true"), true);
    assert_eq!(until_ended(&daemon, "again").states("again"), [STARTED[0], STARTED[1], "TASK_FINISHED"]);
    assert_engine_has_nothing(&engine, &world, &daemon);
}

/// A task with whatever an engine keeps for a container: a network with a port of the host, a volume without a name, and
/// directories of its sandbox.
fn rich_task(id: &str, image: &str, file: &Path) -> Json {
    let mut task = docker_task(id, "test -e $MESOS_SANDBOX/fetched");
    task["container"] = docker(image, "BRIDGE", &[]);
    task["container"]["docker"]["port_mappings"] = json!([{"host_port": 31001, "container_port": 80}]);
    task["container"]["volumes"] = json!([{"mode": "RW", "container_path": "/cache", "host_path": "cache"}]);
    task["command"]["uris"] = json!([{"value": file, "extract": false, "output_file": "fetched"}]);
    let ports =
        json!({"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31001, "end": 31001}]}});
    task["resources"].as_array_mut().unwrap().push(ports);
    task
}

/// A request of the agent to the engine, with which the engine dies: it has done what was requested, and the agent does not know.
/// Together these are all states that a container of the engine has on its way.
#[test]
fn a_task_whose_engine_is_killed_at_any_request_has_one_end() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start();
    let proxy = Proxy::to(engine.socket());
    let mut world = world_of(&engine);
    let config = DockerConfig::new(Arc::new(EngineSocket::new(proxy.socket())));
    world.config.containerizers = vec![ContainerizerConfig::Docker(config), ContainerizerConfig::Mesos];
    let daemon = Daemon::start(&world);
    let image = "cofferdam-test/volume:1";
    engine.import(image, &["VOLUME /anonymous"]);
    let file = world.directory().join("fetched");
    fs::write(&file, "").unwrap();
    let mut hits: Vec<String> = Vec::new();
    for request in 1..MAX_STEPS {
        let id = format!("request-{request}");
        let hit = proxy.arm(request);
        run_task(&daemon, &rich_task(&id, image, &file), true);
        let (received, lost) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let mut received = Received::default();
                receive(&daemon, std::slice::from_ref(&id), &mut received);
                received
            });
            // Until the request, or the end of everything.
            let deadline = Instant::now() + TIMEOUT;
            let lost = loop {
                match hit.wait(Duration::from_millis(20)) {
                    None if receiving.is_finished() && has_nothing(&engine, &world) => break None,
                    None if Instant::now() > deadline => {
                        panic!("{:?} is left:\n{}", world.leftovers(), daemon.log())
                    }
                    None => {}
                    lost => break lost,
                }
            };
            proxy.disarm();
            let request = lost.as_ref().map(|lost| lost.request.clone());
            if lost.is_some() {
                engine.kill();
                drop(lost);
                engine.start_again();
            }
            (receiving.join().unwrap(), request)
        });
        let Some(when) = lost else {
            eprintln!("{} requests: {hits:#?}", hits.len());
            let all = hits.join("\n");
            for wanted in ["/containers/create", "/attach", "/start", "/wait", "DELETE "] {
                assert!(all.contains(wanted), "{wanted}: {all}");
            }
            // All of the above have used the port.
            assert_eq!(received.last(&id)["state"], "TASK_FINISHED", "{}", received.last(&id));
            until("nothing is left of their containers", || engine.leftovers().is_empty());
            return;
        };
        hits.push(when.clone());
        let ends = [&ENDS[..], &["TASK_FINISHED"]].concat();
        assert_end(&received, &id, true, &ends, &when);
        assert_engine_has_nothing(&engine, &world, &daemon);
    }
    panic!("a task has more than {MAX_STEPS} requests");
}

/// Whether nothing is left of tasks, also in the engine.
fn has_nothing(engine: &Engine, world: &World) -> bool {
    let agent = fs::read_to_string(world.config.work_dir.join("agent_id")).expect("an id");
    let filter = format!("label=org.cofferdam.agent={}", agent.trim());
    world.leftovers().is_empty() && engine.client(&["ps", "-aq", "--filter", &filter]).is_empty()
}

#[test]
fn a_fetch_goes_on_while_its_engine_is_killed_and_started_again() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start();
    let world = world_of(&engine);
    let daemon = Daemon::start(&world);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut task = docker_task("fetching", "exec busybox cat $MESOS_SANDBOX/fetched");
    let uri = format!("http://{}/fetched", server.local_addr().unwrap());
    task["command"]["uris"] = json!([{"value": uri, "extract": false}]);
    run_task(&daemon, &task, true);
    let (mut connection, _) = server.accept().unwrap();
    engine.kill();
    engine.start_again();
    connection
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nfetched\n")
        .unwrap();
    drop(connection);
    let received = until_ended(&daemon, "fetching");
    assert_eq!(received.last("fetching")["state"], "TASK_FINISHED", "{}", daemon.log());
    assert_engine_has_nothing(&engine, &world, &daemon);
}

#[test]
fn tasks_of_a_custom_executor_in_the_engine_that_is_killed_in_any_state_have_one_end() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    // `silent` has no update, and `stubborn` ignores the kill.
    for (id, name, state) in [
        ("k1", "silent", None),
        ("k2", "run", Some("TASK_RUNNING")),
        ("stubborn", "run", Some("TASK_RUNNING")),
    ] {
        launch(&daemon, &custom_executor(id, "", &[]), &task(id, name));
        let mut received = match state {
            Some(state) => until_state(&daemon, id, state),
            None => {
                let sandbox = world.config.work_dir.join("docker").join(container(&daemon));
                until("it has a sandbox", || sandbox.is_dir());
                cofferdam_tests::wait_for_text(&sandbox.join("stdout"), &format!("LAUNCH {id}"));
                Received::default()
            }
        };
        if id == "stubborn" {
            kill(&daemon, id).unwrap();
            let output = world.config.work_dir.join("docker").join(container(&daemon)).join("stdout");
            cofferdam_tests::wait_for_text(&output, &format!("KILL {id}"));
        }
        first_process(&daemon).kill().unwrap();
        received.until(&daemon, &mut daemon.updates(), |received| received.has_ended(id));
        assert_end(&received, id, true, &ENDS, id);
        assert_eq!(received.last(id)["source"], "SOURCE_AGENT");
        assert_engine_has_nothing(engine, &world, &daemon);
    }
}

#[test]
fn a_launch_that_is_in_progress_when_the_agent_is_killed_is_ended_by_the_next_one() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let world = world_of(&engine);
    let daemon = Daemon::start(&world);
    let registry = engine.in_network(stalled_server);
    let mut task = docker_task("held", "true");
    task["container"] = docker(&format!("{}/stalled:1", registry.local_addr().unwrap()), "NONE", &[]);
    run_task(&daemon, &task, true);
    let _connection = registry.accept().unwrap();
    daemon.kill();
    // The engine still pulls.
    let daemon = Daemon::start(&world);
    let received = until_ended(&daemon, "held");
    assert_end(&received, "held", true, &["TASK_FAILED", "TASK_LOST"], "held");
    assert_engine_has_nothing(&engine, &world, &daemon);
    // The id is free again.
    run_task(&daemon, &docker_task("held", "true"), true);
    assert_eq!(until_ended(&daemon, "held").last("held")["state"], "TASK_FINISHED");
    assert_engine_has_nothing(&engine, &world, &daemon);
}

#[test]
fn a_process_of_a_task_cannot_end_another_task_with_what_it_finds() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    run_task(&daemon, &docker_task("victim", "exec sleep 1000"), true);
    let mut received = until_state(&daemon, "victim", "TASK_RUNNING");
    let victim = first_process(&daemon);
    // What a process of the task finds: neither the environment nor the memory of the executor, and the socket.
    let line = "echo own: $(busybox env | busybox grep -c TOKEN); cat /proc/1/environ; cat /proc/1/maps; \
                busybox readlink /proc/1/fd/3 /proc/1/exe; ls /mnt/mesos/executor/socket; echo > $MESOS_SANDBOX/done; exec sleep 1000";
    run_task(&daemon, &docker_task("forger", line), true);
    received.until(&daemon, &mut daemon.updates(), |received| {
        received.states("forger").last().is_some_and(|state| state == "TASK_RUNNING")
    });
    let forger = container_of(&daemon, "forger");
    let sandbox = world.config.work_dir.join("docker").join(&forger);
    until("it has looked", || sandbox.join("done").exists());
    cofferdam_tests::wait_for_text(&sandbox.join("stdout"), "executor.sock\n");
    assert_eq!(cofferdam_tests::text(&sandbox.join("stdout")), "own: 0\nexecutor.sock\n");

    // With a token that it has got all the same, such as from whoever may use the engine, it can act for its own task only.
    let found = engine.inspect(&format!("mesos-{forger}"));
    let variables = found["Config"]["Env"].as_array().unwrap().clone();
    let token = variables
        .iter()
        .filter_map(Json::as_str)
        .find_map(|variable| variable.strip_prefix("MESOS_EXECUTOR_AUTHENTICATION_TOKEN="));
    let finished = |executor: &str, task: &str| {
        json!({
            "type": "UPDATE", "framework_id": {"value": "tests"}, "executor_id": {"value": executor},
            "update": {"status": {"task_id": {"value": task}, "state": "TASK_FINISHED", "uuid": "AAAAAAAAAAAAAAAAAAAAAA=="}},
        })
    };
    let send =
        |executor: &str, task: &str| request(&world, "/api/v1/executor", token, &finished(executor, task)).0;
    assert_eq!((send("victim", "victim"), send("forger", "victim")), (403, 400));
    let victim_id = container_of(&daemon, "victim");
    for call in [
        json!({"type": "KILL_CONTAINER", "kill_container": {"container_id": {"value": victim_id}}}),
        json!({"type": "KILL_TASK", "kill_task": {"task_id": {"value": "victim"}}}),
    ] {
        assert_eq!(request(&world, "/api/v1", token, &call).0, 403);
    }
    assert!(!victim.has_ended().unwrap());
    assert_eq!(received.states("victim"), STARTED);

    // Its own task it can end. When its container has ended, the token is good for nothing.
    assert_eq!(send("forger", "forger"), 202);
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("forger"));
    assert_eq!(received.last("forger")["state"], "TASK_FINISHED");
    shut_down(&daemon, "forger").unwrap();
    until("its container has ended", || send("forger", "forger") == 401);
    assert!(!victim.has_ended().unwrap());
    kill(&daemon, "victim").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("victim"));
    assert_eq!(received.last("victim")["state"], "TASK_KILLED");
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn a_task_survives_an_engine_that_keeps_its_containers() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start_with(&["--live-restore"]);
    let world = world_of(&engine);
    let daemon = Daemon::start(&world);
    run_task(&daemon, &docker_task("restored", "exec sleep 1000"), true);
    let mut received = until_state(&daemon, "restored", "TASK_RUNNING");
    let executor = first_process(&daemon);
    engine.kill();
    engine.start_again();
    let name = format!("mesos-{}", container(&daemon));
    until("it is known again", || engine.inspect(&name)["State"]["Running"] == true);
    assert!(!executor.has_ended().unwrap());
    kill(&daemon, "restored").unwrap();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("restored"));
    assert_eq!(received.states("restored"), [STARTED[0], STARTED[1], "TASK_KILLING", "TASK_KILLED"]);
    assert_engine_has_nothing(&engine, &world, &daemon);
}

/// A task whose image is at a registry that sends half of a layer.
fn stalling_task(id: &str, stalling: &Stalling) -> Json {
    let mut task = docker_task(id, "true");
    task["container"] = docker(&stalling.name(), "NONE", &[]);
    task
}

#[test]
fn a_task_that_is_killed_in_the_middle_of_a_layer_ends_at_once() {
    if !has_engine() {
        return;
    }
    // Pulls of one layer share a connection in an engine, whatever registries they are from.
    let engine = &Engine::start();
    let world = world_of(engine);
    let (_registry, stalling) = stalling_registry(engine);
    let daemon = Daemon::start(&world);
    run_task(&daemon, &stalling_task("layer", &stalling), true);
    stalling.wait_half();
    let own = cofferdam_core::model::ContainerId::parse(&container(&daemon)).unwrap();
    assert_eq!(daemon.inspect(&own).unwrap().state, "PULLING");
    kill(&daemon, "layer").unwrap();
    let received = until_ended(&daemon, "layer");
    assert_eq!(received.states("layer"), ["TASK_KILLED"]);
    assert_eq!(received.last("layer")["reason"], "REASON_TASK_KILLED_DURING_LAUNCH");
    assert_engine_has_nothing(engine, &world, &daemon);
}

#[test]
fn an_executor_that_cannot_subscribe_as_its_image_is_pulled_is_ended() {
    if !has_engine() {
        return;
    }
    // Pulls of one layer share a connection in an engine, whatever registries they are from.
    let engine = &Engine::start();
    let mut world = world_of(engine);
    let (_registry, stalling) = stalling_registry(engine);
    // The time is over in the middle of the layer, unless this machine is too slow for that.
    for seconds in [1, 4, 16, 64] {
        world.config.executors.registration_timeout = Duration::from_secs(seconds);
        let daemon = Daemon::start(&world);
        run_task(&daemon, &stalling_task("late", &stalling), true);
        let received = until_ended(&daemon, "late");
        assert_eq!(received.states("late"), ["TASK_FAILED"], "{}", daemon.log());
        assert_eq!(received.last("late")["reason"], "REASON_EXECUTOR_REGISTRATION_TIMEOUT");
        assert_engine_has_nothing(engine, &world, &daemon);
        if stalling.has_sent_half() {
            return;
        }
    }
    panic!("the pull has not begun in time");
}

/// A request for which an engine is stopped or killed, as the agent that has sent it.
#[test]
fn a_launch_that_the_next_agent_finds_ends_without_an_engine_that_does_not_answer() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start();
    let proxy = Proxy::to(engine.socket());
    let mut world = world_of(&engine);
    let config = DockerConfig::new(Arc::new(EngineSocket::new(proxy.socket())));
    world.config.containerizers = vec![ContainerizerConfig::Docker(config), ContainerizerConfig::Mesos];
    let mut daemon = Daemon::start(&world);
    for (id, part, is_killed) in [
        ("create-stopped", "/containers/create", false),
        ("start-stopped", "/start", false),
        ("create-killed", "/containers/create", true),
        ("start-killed", "/start", true),
    ] {
        let hit = proxy.hold(part);
        run_task(&daemon, &docker_task(id, "exec sleep 1000"), true);
        let held = hit.wait(TIMEOUT).expect("the request");
        let own = cofferdam_core::model::ContainerId::parse(&container(&daemon)).unwrap();
        assert_eq!(daemon.inspect(&own).unwrap().state, "MOUNTING");
        if is_killed {
            engine.kill();
        } else {
            engine.stop_now();
        }
        // An engine that is stopped does it as soon as it goes on.
        drop(held);
        daemon.kill();
        daemon = Daemon::start(&world);
        let received = until_ended(&daemon, id);
        assert_end(&received, id, true, &["TASK_FAILED", "TASK_LOST"], id);
        // Whatever the engine starts later has no sandbox.
        let ended = daemon.wait(&own).unwrap();
        let reason = serde_json::to_value(&ended).unwrap()["reason"].take();
        assert_eq!(reason, "REASON_CONTAINER_LAUNCH_FAILED", "{ended:?}");
        assert!(!world.config.work_dir.join("docker").join(own.as_str()).exists());
        if is_killed {
            engine.start_again();
        } else {
            engine.resume();
        }
        assert_engine_has_nothing(&engine, &world, &daemon);
    }
}
