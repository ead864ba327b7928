//! Tasks in containers of a container engine, while the agent, the engine, or the executor fails: each has one end, no update
//! is lost, and nothing is left.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::net::TcpListener;

use cofferdam_tests::injector::{Fault, Seen};
use nix::sched::{CloneFlags, setns};

use super::crashes::{assert_end, finish, run};
use super::engine::{assert_engine_has_nothing, docker, docker_task, first_process, until, world_of};
use super::programs::{STARTED, run_task};
use super::*;
use crate::docker::lab::{Engine, engine, has_engine};

/// More steps than a task has.
const MAX_STEPS: usize = 300;

/// How a task may end whose agent, engine or executor has failed.
const ENDS: [&str; 3] = ["TASK_FAILED", "TASK_KILLED", "TASK_LOST"];

/// How often a client connects again.
const MAX_CONNECTIONS: usize = 1000;

fn call(id: &str, line: &str) -> Json {
    json!({
        "type": "LAUNCH_TASK",
        "launch_task": {"framework_info": framework(true), "task_info": docker_task(id, line)},
    })
}

/// Runs a task while the agent is killed at each step in turn. Both halves together are all steps.
fn killed_at_each_step(half: usize) {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let (mut daemon, mut injector) = Daemon::start_with_injector(&world);
    for step in (1 + half..MAX_STEPS).step_by(2) {
        let id = format!("step-{step}");
        injector.arm(Fault::Kill, &[step]);
        let accepted = daemon.call(&call(&id, "exec sleep 1000")).is_ok();
        let mut received = Received::default();
        if accepted {
            run(&daemon, &id, true, &mut received);
        }
        let Seen { hit, .. } = injector.disarm();
        let survived = hit.is_empty();
        if survived {
            daemon.kill();
        } else {
            daemon.wait_ended();
        }
        (daemon, injector) = Daemon::start_with_injector(&world);
        let when = format!("step {step}: {hit:?}");
        finish(&daemon, &id, accepted, &mut received, &when);
        assert_end(&received, &id, accepted, &ENDS, &when);
        assert_engine_has_nothing(engine, &world, &daemon);
        if survived {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("a task has more than {MAX_STEPS} steps");
}

#[test]
fn a_task_has_one_end_whenever_the_agent_is_killed_at_odd_steps() {
    killed_at_each_step(0);
}

#[test]
fn a_task_has_one_end_whenever_the_agent_is_killed_at_even_steps() {
    killed_at_each_step(1);
}

/// Receives the updates of a task until it has ended, whatever fails meanwhile.
fn receive(daemon: &Daemon, id: &str, received: &mut Received) {
    // It may be the connection of this client that fails.
    for _ in 0..MAX_CONNECTIONS {
        if received.has_ended(id) {
            return;
        }
        let Some(mut updates) = daemon.try_updates() else { continue };
        for message in updates.by_ref() {
            let acknowledged =
                received.note(&message).is_none_or(|(task, uuid)| acknowledge(daemon, &task, &uuid).is_ok());
            // A new client gets the update that was not acknowledged at once.
            if received.has_ended(id) || !acknowledged {
                break;
            }
        }
    }
    panic!("no end after {MAX_CONNECTIONS} connections\n{}", daemon.log());
}

#[test]
fn a_launch_that_fails_at_any_step_leaves_nothing() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let (daemon, injector) = Daemon::start_with_injector(&world);
    for step in 1..MAX_STEPS {
        let id = format!("failing-{step}");
        injector.arm(Fault::Fail, &[step]);
        let accepted = daemon.call(&call(&id, "exit 0")).is_ok();
        let mut received = Received::default();
        if accepted {
            receive(&daemon, &id, &mut received);
        }
        let Seen { hit, .. } = injector.disarm();
        let when = format!("step {step}: {hit:?}");
        finish(&daemon, &id, accepted, &mut received, &when);
        let ends = [&ENDS[..], &["TASK_FINISHED"]].concat();
        assert_end(&received, &id, accepted, &ends, &when);
        assert_engine_has_nothing(engine, &world, &daemon);
        if hit.is_empty() {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("a task has more than {MAX_STEPS} steps");
}

#[test]
fn a_task_whose_executor_is_killed_in_any_state_has_one_end() {
    let Some(engine) = engine() else { return };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    for state in ["TASK_STARTING", "TASK_RUNNING", "TASK_KILLING"] {
        let mut task = docker_task(state, "trap '' TERM; while :; do sleep 1000; done");
        task["kill_policy"] = json!({"grace_period": {"nanoseconds": 1_000_000_000_000_u64}});
        run_task(&daemon, &task, true);
        let mut updates = daemon.updates();
        let mut received = Received::default();
        let has =
            |received: &Received, wanted: &str| received.states(state).iter().any(|seen| seen == wanted);
        if state == "TASK_KILLING" {
            received.until(&daemon, &mut updates, |received| has(received, "TASK_RUNNING"));
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
    let registry = stalled_registry(&engine);
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
    let output = world.config.work_dir.join("docker").join(container(&daemon)).join("stdout");
    cofferdam_tests::wait_for_text(&output, "ready");
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

/// A server in the engine's network that accepts connections and never answers.
fn stalled_registry(engine: &Engine) -> TcpListener {
    let namespace = fs::File::open(engine.network_namespace()).unwrap();
    let listen = move || {
        // Of this thread alone, which ends.
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap()
    };
    std::thread::spawn(listen).join().unwrap()
}
