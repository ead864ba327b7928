//! An engine that is stopped, killed or gone. These tests have engines of their own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cofferdam::engine::EngineSocket;
use cofferdam_core::agent::Agent;
use cofferdam_core::config::{ContainerizerConfig, DockerConfig};
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::{Ended, Phase, Reason, Request, Resources, Termination, Volume, VolumeSource};
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::world::{World, id, run, with_agent};
use cofferdam_tests::{assert_contains, paths, wait_for_text};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::proxy::{Hit, Lost, Proxy};
use cofferdam_tests::engine::{
    Engine, IMAGE, cancelled, destroy, engine, has_engine, patient, shell, until, until_event,
};

/// Calls of the engine have a second.
fn impatient(engine: &Engine) -> World {
    let mut world = engine.world();
    let mut config = engine.config();
    config.timeouts.call = Duration::from_secs(1);
    config.timeouts.launch = Duration::from_secs(1);
    world.config.containerizers = vec![ContainerizerConfig::Docker(config), ContainerizerConfig::Mesos];
    world
}

#[test]
fn an_engine_that_is_stopped_delays_nobody() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let mut world = engine.world();
    with_agent(&world, async |agent| {
        for name in ["first", "second"] {
            agent.launch(shell(name, "echo ready; sleep 1000")).await.unwrap();
            wait_for_text(&agent.inspect(&id(name)).unwrap().logs.stdout.unwrap(), "ready");
        }
    });
    engine.stop_now();
    // An agent starts, and recovers what runs.
    let unhurried =
        std::mem::replace(&mut world.config.containerizers, impatient(&engine).config.containerizers.clone());
    with_agent(&world, async |agent| {
        assert_eq!(agent.inspect(&id("first")).unwrap().summary.phase, Phase::Running);
        assert!(agent.usage(&id("first")).await.unwrap().statistics.contains_key("mem_total_bytes"));
        let mut native = Request::shell(id("native"), "echo native");
        native.rootfs = Some(world.rootfs());
        assert_eq!(run(&agent, native).await, "native\n");
        // The agent kills what the engine does not.
        let termination = destroy(&agent, &id("first")).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::Killed));
        match termination.ended() {
            Some(ended) => assert_eq!(ended, Ended::Signaled(9)),
            // The kernel tells it when the engine's shim has reaped the process, which the agent does not wait for any longer
            // than for a call; before Linux 6.15, only the engine could have told.
            None => assert!(termination.message.is_some(), "{termination:?}"),
        }
        // What only the engine can do fails after its deadline.
        let signalled = agent.kill(&id("second"), Signal::SIGTERM as i32).await.unwrap_err();
        let removed = agent.remove(&id("first")).await.unwrap_err();
        for error in [describe(&signalled), describe(&removed)] {
            assert_contains(&error, &["did not answer within 1s", "not stopped or overloaded"]);
        }
        // A launch fails after the deadline, in words that tell what to do, and can be retried.
        let error = agent.launch(shell("third", "true")).await.unwrap_err();
        assert!(error.is_retryable());
        assert_contains(&describe(&error), &["did not answer within 1s", "not stopped or overloaded"]);
    });
    engine.resume();
    world.config.containerizers = unhurried;
    with_agent(&world, async |agent| {
        assert!(agent.remove(&id("first")).await.unwrap());
        assert_eq!(engine.names("mesos-first"), [""; 0]);
        destroy(&agent, &id("second")).await.unwrap();
        for name in ["second", "native"] {
            agent.remove(&id(name)).await.unwrap();
        }
        engine.wait_until_gone("mesos-");
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_destroy_does_not_wait_for_a_stopped_engine() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let world = engine.patient_world();
    with_agent(&world, async |agent| {
        // The versions are known.
        agent.launch(shell("running", "exec sleep 1000")).await.unwrap();
        engine.stop().await;
        let termination = destroy(&agent, &id("running")).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::Killed));
        let launching = tokio::spawn({
            let agent = agent.clone();
            async move { agent.launch(shell("waiting", "true")).await }
        });
        let is_pulling = || {
            agent.inspect(&id("waiting")).is_some_and(|inspection| inspection.summary.phase == Phase::Pulling)
        };
        until_event(&agent, "it asks the engine for its image", is_pulling).await;
        destroy(&agent, &id("waiting")).await;
        assert!(matches!(cancelled(launching).await, LaunchError::Cancelled { .. }));
        assert!(!agent.contains(&id("waiting")));
        engine.resume();
        assert_eq!(run(&agent, shell("waiting", "echo now")).await, "now\n");
        for name in ["running", "waiting"] {
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn an_update_that_an_engine_may_have_applied_is_rolled_back_when_it_is_back() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start_with(&["--live-restore"]);
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut request = shell("update", "sleep 1000");
        request.resources = Resources::default().with("mem", 64.0);
        agent.launch(request).await.unwrap();
        let limit =
            |engine: &Engine| engine.inspect("mesos-update")["HostConfig"]["Memory"].as_i64().unwrap();
        assert_eq!(limit(&engine), 64 << 20);
        let mem = |mem| Resources::default().with("mem", mem);
        engine.kill();
        let failed = agent.update(&id("update"), mem(128.0)).await.unwrap_err();
        assert_contains(
            &describe(&failed),
            &["rolling it back is not complete and will be repeated", "cannot update container `update`"],
        );
        assert_eq!(world.record(&id("update")).updating, Some(mem(128.0)));
        let uncertain = agent.update(&id("update"), Resources::default().with("cpus", 1.0)).await;
        assert_contains(&describe(&uncertain.unwrap_err()), &["all that the earlier one concerned: mem"]);

        engine.start_again();
        until("it is rolled back", || world.record(&id("update")).updating.is_none()).await;
        assert_eq!(limit(&engine), 64 << 20);
        assert_eq!(agent.inspect(&id("update")).unwrap().summary.resources, mem(64.0));
        agent.update(&id("update"), mem(96.0)).await.unwrap();
        assert_eq!(limit(&engine), 96 << 20);
        destroy(&agent, &id("update")).await.unwrap();
        agent.remove(&id("update")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_destroy_does_not_wait_for_an_update_or_a_signal_that_an_engine_does_not_answer() {
    let Some(engine) = engine() else { return };
    let proxy = Proxy::to(engine.socket());
    let world = through(&proxy, engine);
    with_agent(&world, async |agent| {
        agent.launch(shell("unanswered-update", "exec sleep 1000")).await.unwrap();
        let hit = proxy.hold("/update");
        let updating = tokio::spawn({
            let agent = agent.clone();
            let resources = Resources::default().with("mem", 64.0);
            async move { agent.update(&id("unanswered-update"), resources).await }
        });
        let held = reached(&hit);
        let termination = destroy(&agent, &id("unanswered-update")).await.unwrap();
        assert_eq!(termination.ended(), Some(Ended::Signaled(9)));
        let error = updating.await.unwrap().unwrap_err();
        assert_contains(&describe(&error), &["`unanswered-update`", "DESTROYING"]);
        drop(held);

        agent.launch(shell("unanswered-signal", "exec sleep 1000")).await.unwrap();
        let hit = proxy.hold("/kill?signal=10");
        let signalling = tokio::spawn({
            let agent = agent.clone();
            async move { agent.kill(&id("unanswered-signal"), Signal::SIGUSR1 as i32).await }
        });
        let held = reached(&hit);
        let termination = destroy(&agent, &id("unanswered-signal")).await.unwrap();
        assert_eq!(termination.ended(), Some(Ended::Signaled(9)));
        assert!(!signalling.is_finished());
        // It gets the signal when there is nothing that it can be sent to.
        drop(held);
        assert!(!signalling.await.unwrap().unwrap());
        for name in ["unanswered-update", "unanswered-signal"] {
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn an_engine_that_is_gone_is_told_with_what_to_do() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let world = impatient(&engine);
    let socket = engine.socket();
    drop(engine);
    with_agent(&world, async |agent| {
        let error = agent.launch(shell("gone", "true")).await.unwrap_err();
        let socket = socket.display().to_string();
        assert_contains(
            &describe(&error),
            &["cannot reach the container engine at", &socket, "start the engine, or set `docker.socket`"],
        );
        assert!(!agent.contains(&id("gone")));
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A patient world whose agents reach the engine through a proxy.
fn through(proxy: &Proxy, engine: &Engine) -> World {
    let mut world = engine.world();
    let config = patient(DockerConfig::new(Arc::new(EngineSocket::new(proxy.socket()))));
    world.config.containerizers = vec![ContainerizerConfig::Docker(config), ContainerizerConfig::Mesos];
    world
}

fn launch(agent: &Agent, request: Request) -> JoinHandle<Result<i32, LaunchError>> {
    let agent = agent.clone();
    tokio::spawn(async move { agent.launch(request).await })
}

fn reached(hit: &Hit) -> Lost {
    hit.wait(TIMEOUT).expect("the request is there")
}

/// Destroys a container in MOUNTING, whose engine does not answer.
async fn destroyed(
    agent: &Agent,
    name: &str,
    launching: JoinHandle<Result<i32, LaunchError>>,
) -> Termination {
    assert_eq!(agent.inspect(&id(name)).unwrap().summary.phase, Phase::Mounting);
    let termination = destroy(agent, &id(name)).await.unwrap();
    let error = cancelled(launching).await;
    assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Mounting, .. }), "{error}");
    assert_eq!(agent.wait(&id(name)).await, Some(termination.clone()));
    // Its id is taken as long as the engine may have it.
    let inspection = agent.inspect(&id(name)).unwrap();
    assert_eq!(inspection.summary.phase, Phase::Ended);
    assert!(!inspection.sandbox.exists());
    assert!(matches!(agent.launch(shell(name, "true")).await, Err(LaunchError::Ended { .. })));
    termination
}

#[test]
fn a_launch_whose_engine_is_stopped_while_it_makes_the_container_is_ended_without_it() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let proxy = Proxy::to(engine.socket());
    let world = through(&proxy, &engine);
    with_agent(&world, async |agent| {
        for (name, part) in
            [("creating", "/containers/create"), ("attaching", "/attach"), ("starting", "/start")]
        {
            let hit = proxy.hold(part);
            let launching = launch(&agent, shell(name, "exec sleep 1000"));
            let held = reached(&hit);
            engine.stop().await;
            // It has the request, and does what it says as soon as it goes on.
            drop(held);
            let termination = destroyed(&agent, name, launching).await;
            assert_eq!((termination.reason, termination.status), (Some(Reason::Killed), None));
            engine.resume();
            until_event(&agent, "the agent forgets it", || !agent.contains(&id(name))).await;
            engine.wait_until_gone("mesos-");
            assert_eq!(run(&agent, shell(name, "echo again")).await, "again\n");
            agent.remove(&id(name)).await.unwrap();
        }
        // It has started the container, which the agent does not know yet.
        let hit = proxy.hold("/start");
        let launching = launch(&agent, shell("started", "exec sleep 1000"));
        let held = reached(&hit);
        let hit = proxy.hold("/json HTTP");
        drop(held);
        let held = reached(&hit);
        let pid = engine.inspect("mesos-started")["State"]["Pid"].as_i64().unwrap();
        let process = Process::open_any(pid.try_into().unwrap()).unwrap();
        engine.stop().await;
        drop(held);
        destroyed(&agent, "started", launching).await;
        assert!(process.has_ended().unwrap());
        engine.resume();
        until_event(&agent, "the agent forgets it", || !agent.contains(&id("started"))).await;
        assert_eq!(engine.names("mesos-"), [""; 0]);
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_launch_whose_engine_is_killed_while_it_makes_the_container_is_ended_without_it() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start();
    let proxy = Proxy::to(engine.socket());
    let world = through(&proxy, &engine);
    with_agent(&world, async |agent| {
        for (name, part) in
            [("creating", "/containers/create"), ("attaching", "/attach"), ("starting", "/start")]
        {
            let hit = proxy.hold(part);
            let launching = launch(&agent, shell(name, "exec sleep 1000"));
            let held = reached(&hit);
            engine.kill();
            let destroying = tokio::spawn({
                let agent = agent.clone();
                async move { destroy(&agent, &id(name)).await }
            });
            let error = cancelled(launching).await;
            assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Mounting, .. }), "{error}");
            // The agent learns that the engine is gone.
            drop(held);
            let termination = destroying.await.unwrap().unwrap();
            assert_eq!((termination.reason, termination.status), (Some(Reason::Killed), None));
            assert_eq!(agent.inspect(&id(name)).unwrap().summary.phase, Phase::Ended);
            engine.start_again();
            until_event(&agent, "the agent forgets it", || !agent.contains(&id(name))).await;
            engine.wait_until_gone("mesos-");
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_name_that_becomes_free_during_a_launch_does_not_fail_it() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let proxy = Proxy::to(engine.socket());
    let world = through(&proxy, &engine);
    with_agent(&world, async |agent| {
        // One that nobody but the test removes.
        engine.client(&["create", "--name", "mesos-taken", IMAGE, "true"]);
        let hit = proxy.hold("/mesos-taken/json");
        let launching = launch(&agent, shell("taken", "exec sleep 1000"));
        // The engine has refused the name, and is asked whose it is.
        let held = reached(&hit);
        engine.client(&["rm", "mesos-taken"]);
        drop(held);
        launching.await.unwrap().unwrap();
        destroy(&agent, &id("taken")).await.unwrap();
        agent.remove(&id("taken")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_container_that_its_agent_has_given_up_is_removed_by_the_next_one() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let proxy = Proxy::to(engine.socket());
    let mut world = through(&proxy, &engine);
    with_agent(&world, async |agent| {
        let hit = proxy.hold("/start");
        let launching = launch(&agent, shell("next", "exec sleep 1000"));
        let held = reached(&hit);
        engine.stop().await;
        drop(held);
        destroyed(&agent, "next", launching).await;
    });
    engine.resume();
    // Also if it leaves containers without a record alone.
    let mut config = engine.config();
    config.kill_orphans = false;
    world.config.containerizers = vec![ContainerizerConfig::Docker(config)];
    with_agent(&world, async |agent| {
        until_event(&agent, "the agent forgets it", || !agent.contains(&id("next"))).await;
        engine.wait_until_gone("mesos-");
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A volume driver in the engine's namespace for mounts. What it does instead of a method is in its directory.
struct Driver(Child);

impl Driver {
    fn start(engine: &Engine, directory: &Path) -> Self {
        let mut child = Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", engine.pid()))
            .arg(paths::build().join("test-volume-driver"))
            .args([engine.plugins().join("lab.sock"), directory.to_owned()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter of util-linux");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_launch_whose_volume_driver_does_not_mount_is_ended_without_it() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let directory = tempfile::tempdir().unwrap();
    let driver = Driver::start(&engine, directory.path());
    let (fault, log) = (directory.path().join("fault-Mount"), directory.path().join("log"));
    fs::write(&fault, "hang").unwrap();
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut request = shell("mounting", "exec sleep 1000");
        let source = VolumeSource::DockerVolume {
            driver: "lab".into(),
            name: "data".into(),
            options: BTreeMap::new(),
        };
        request.volumes = vec![Volume { container_path: "/data".into(), read_only: false, source }];
        let launching = launch(&agent, request);
        wait_for_text(&log, "Mount data");
        destroyed(&agent, "mounting", launching).await;
        // Others are launched and removed meanwhile.
        assert_eq!(run(&agent, shell("beside", "echo beside")).await, "beside\n");
        assert!(agent.remove(&id("beside")).await.unwrap());
        // The engine tries it again, and then has a container to start whose sandbox is gone.
        fs::remove_file(&fault).unwrap();
        drop(driver);
        let _driver = Driver::start(&engine, directory.path());
        // After half a minute of tries, if it has not succeeded until then.
        until_event(&agent, "the agent forgets it", || !agent.contains(&id("mounting"))).await;
        engine.wait_until_gone("mesos-");
        engine.client(&["volume", "rm", "data"]);
    });
    assert_eq!(world.leftovers(), [""; 0]);
}
