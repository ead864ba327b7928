//! An engine that is stopped, killed or gone. These tests have engines of their own.

use std::time::Duration;

use cofferdam_core::config::ContainerizerConfig;
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::{Ended, Phase, Reason, Request, Resources};
use cofferdam_tests::world::{World, id, run, with_agent};
use cofferdam_tests::{assert_contains, wait_for_text};

use cofferdam_tests::engine::{Engine, has_engine, shell, until};

/// Calls of the engine have a second.
fn impatient(engine: &Engine) -> World {
    let mut world = engine.world();
    let mut config = engine.config();
    config.timeouts.call = Duration::from_secs(1);
    config.timeouts.launch = Duration::from_secs(1);
    world.config.containerizers = vec![ContainerizerConfig::Docker(config), ContainerizerConfig::Mesos];
    world
}

/// Whether the kernel tells others than the parent how a process ended.
fn kernel_tells_statuses() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.trim().parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
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
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(engine.stop());
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
        let termination = agent.destroy(&id("first")).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::Killed));
        match termination.ended() {
            Some(ended) => assert_eq!(ended, Ended::Signaled(9)),
            // Before Linux 6.15, only the engine could have told.
            None => assert!(!kernel_tells_statuses()),
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
        agent.destroy(&id("second")).await.unwrap();
        for name in ["second", "native"] {
            agent.remove(&id(name)).await.unwrap();
        }
        until("nothing is left", || engine.names("mesos-").is_empty()).await;
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_launch_that_waits_for_a_stopped_engine_is_cancelled_at_once() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let world = engine.world();
    with_agent(&world, async |agent| {
        // The versions are known.
        run(&agent, shell("known", "true")).await;
        agent.remove(&id("known")).await.unwrap();
        engine.stop().await;
        let launching = tokio::spawn({
            let agent = agent.clone();
            async move { agent.launch(shell("waiting", "true")).await }
        });
        let is_pulling = || {
            agent.inspect(&id("waiting")).is_some_and(|inspection| inspection.summary.phase == Phase::Pulling)
        };
        until("it asks the engine for its image", is_pulling).await;
        agent.destroy(&id("waiting")).await;
        assert!(matches!(launching.await.unwrap(), Err(LaunchError::Cancelled { .. })));
        assert!(!agent.contains(&id("waiting")));
        engine.resume();
        assert_eq!(run(&agent, shell("waiting", "echo now")).await, "now\n");
        agent.remove(&id("waiting")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn an_update_that_an_engine_may_have_applied_is_rolled_back_when_it_is_back() {
    if !has_engine() {
        return;
    }
    let mut engine = Engine::start_with(&["--live-restore"]);
    let world = impatient(&engine);
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
        agent.destroy(&id("update")).await.unwrap();
        agent.remove(&id("update")).await.unwrap();
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
