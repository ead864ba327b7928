//! Containers of an earlier agent.

use cofferdam_core::config::ContainerizerConfig;
use cofferdam_core::model::{Ended, Phase};
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::world::{id, run, with_agent};
use cofferdam_tests::{text, wait_for_text};
use nix::sys::signal::Signal;

use cofferdam_tests::engine::{IMAGE, engine, shell};

#[test]
fn containers_outlive_a_killed_agent_with_their_output_and_exit_statuses() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    let daemon = Daemon::start(&world);
    let line = |code: u8| {
        format!("echo ready; while [ ! -e $MESOS_SANDBOX/go ]; do sleep 0.05; done; echo after; exit {code}")
    };
    let mut sandboxes = Vec::new();
    for (name, code) in [("keep-during", 4), ("keep-after", 5)] {
        daemon.launch(&shell(name, &line(code))).unwrap();
        let inspected = daemon.inspect(&id(name)).unwrap();
        wait_for_text(inspected.stdout.as_ref().unwrap().as_ref(), "ready");
        sandboxes.push(std::path::PathBuf::from(inspected.sandbox));
    }
    let pid = daemon.inspect(&id("keep-after")).unwrap().pid;
    daemon.kill();
    // One ends while there is no agent.
    std::fs::write(sandboxes[0].join("go"), "").unwrap();
    wait_for_text(&sandboxes[0].join("stdout"), "after");
    with_agent(&world, async |agent| {
        let termination = agent.wait(&id("keep-during")).await.unwrap();
        assert_eq!((termination.ended(), termination.reason), (Some(Ended::Exited(4)), None));
        let summary = agent.inspect(&id("keep-after")).unwrap().summary;
        assert_eq!((summary.phase, summary.pid), (Phase::Running, pid));
        std::fs::write(sandboxes[1].join("go"), "").unwrap();
        assert_eq!(agent.wait(&id("keep-after")).await.unwrap().ended(), Some(Ended::Exited(5)));
        for (name, sandbox) in ["keep-during", "keep-after"].into_iter().zip(&sandboxes) {
            assert_eq!(text(&sandbox.join("stdout")), "ready\nafter\n");
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(engine.names("keep-"), [""; 0]);
}

#[test]
fn what_has_no_record_is_removed_unless_it_is_of_another_agent_or_not_to_be_killed() {
    let Some(engine) = engine() else { return };
    let (world, other) = (engine.world(), engine.world());
    with_agent(&other, async |other| {
        other.launch(shell("orphan-other", "sleep 1000")).await.unwrap();
        with_agent_of(&world, shell("orphan-own", "sleep 1000"));
        // Its runtime directory is lost, as after a reboot that the engine has survived.
        std::fs::remove_dir_all(world.config.runtime_dir.join("containers")).unwrap();
        let mut kept = engine.config();
        kept.kill_orphans = false;
        kept.remove_delay = std::time::Duration::ZERO;
        let mut world = world;
        world.config.containerizers = vec![ContainerizerConfig::Docker(kept)];
        let world = std::thread::spawn(move || {
            with_agent(&world, async |agent| {
                // Its sandbox tells that it was there.
                assert_eq!(agent.inspect(&id("orphan-own")).unwrap().summary.phase, Phase::Ended);
                // It is there until it is asked for, also after two searches for what is to be removed.
                for name in ["swept", "swept-again"] {
                    run(&agent, shell(name, "true")).await;
                    engine.wait_until_gone(name);
                    agent.remove(&id(name)).await.unwrap();
                }
                assert_eq!(engine.inspect("mesos-orphan-own")["State"]["Running"], true);
                assert!(agent.remove(&id("orphan-own")).await.unwrap());
            });
            world
        });
        let mut world = world.join().unwrap();
        assert_eq!(engine.names("orphan-"), ["mesos-orphan-other"]);

        // Without a sandbox as well, only the label tells.
        world.config.containerizers = vec![ContainerizerConfig::Docker(engine.config())];
        with_agent_of(&world, shell("orphan-label", "sleep 1000"));
        std::fs::remove_dir_all(world.config.runtime_dir.join("containers")).unwrap();
        std::fs::remove_dir_all(world.config.work_dir.join("docker")).unwrap();
        let engine = cofferdam_tests::engine::engine().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                with_agent(&world, async |_agent| {
                    engine.wait_until_gone("orphan-label");
                });
            });
        });
        assert_eq!(engine.names("orphan-"), ["mesos-orphan-other"]);
        assert_eq!(other.inspect(&id("orphan-other")).unwrap().summary.phase, Phase::Running);
        other.destroy(&id("orphan-other")).await.unwrap();
        other.remove(&id("orphan-other")).await.unwrap();
    });
}

/// Launches a container by an agent that then ends.
fn with_agent_of(world: &cofferdam_tests::world::World, request: cofferdam_core::model::Request) {
    let daemon = Daemon::start(world);
    daemon.launch(&request).unwrap();
    daemon.kill();
}

#[test]
fn a_container_of_a_containerizer_that_is_not_in_use_is_left_alone() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    with_agent(&world, async |agent| {
        agent.launch(shell("alone", "sleep 1000")).await.unwrap();
    });
    let both = world.config.containerizers.clone();
    world.config.containerizers = vec![ContainerizerConfig::Mesos];
    with_agent(&world, async |agent| {
        assert!(!agent.contains(&id("alone")));
        let taken =
            agent.launch(cofferdam_core::model::Request::shell(id("alone"), "true")).await.unwrap_err();
        assert!(taken.to_string().contains("add it to `containerizers`"), "{taken}");
    });
    assert_eq!(engine.inspect("mesos-alone")["State"]["Running"], true);
    world.config.containerizers = both;
    with_agent(&world, async |agent| {
        assert!(agent.kill(&id("alone"), Signal::SIGKILL as i32).await.unwrap());
        assert_eq!(agent.wait(&id("alone")).await.unwrap().ended(), Some(Ended::Signaled(9)));
        agent.remove(&id("alone")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_container_that_only_has_the_labels_is_that_of_somebody_else() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    let mut config = engine.config();
    config.remove_delay = std::time::Duration::ZERO;
    world.config.containerizers = vec![ContainerizerConfig::Docker(config)];
    with_agent(&world, async |agent| {
        agent.launch(shell("labelled", "exec sleep 1000")).await.unwrap();
        engine.client(&["commit", "mesos-labelled", "cofferdam-test/labelled:1"]);
        engine.client(&["run", "-d", "--name", "copied-labels", "cofferdam-test/labelled:1"]);
        let labels = |name: &str| engine.inspect(name)["Config"]["Labels"].clone();
        assert_eq!(labels("copied-labels"), labels("mesos-labelled"));
        // The engine lists the newest first, so the copy was seen before.
        agent.destroy(&id("labelled")).await.unwrap();
        engine.wait_until_gone("mesos-labelled");
        agent.remove(&id("labelled")).await.unwrap();
    });
    assert_eq!(engine.inspect("copied-labels")["State"]["Running"], true);
    engine.client(&["rm", "-f", "copied-labels"]);
    engine.client(&["rmi", "cofferdam-test/labelled:1"]);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn containers_with_names_of_earlier_versions_of_mesos_are_removed_if_they_are_of_this_agent() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    // An agent of Mesos that this one replaces.
    let agent = "c5f81b92-2be3-4d6c-8e1c-0e22e1f1a6a1-S7";
    std::fs::create_dir_all(&world.config.work_dir).unwrap();
    std::fs::write(world.config.work_dir.join("agent_id"), agent).unwrap();
    // Unlike those of other tests.
    let uuid = |number: u32| format!("d9ce0ba0-91cd-4b5c-8b32-b5d9b2f6{number:04x}");
    let (gone, executor) =
        (format!("mesos-{agent}.{}", uuid(1)), format!("mesos-{agent}.{}.executor", uuid(1)));
    let others = [
        format!("mesos-20150320-S0.{}", uuid(2)),
        format!("mesos-{}", uuid(3)),
        format!("mesos-{}.executor", uuid(3)),
        format!("mesos-{agent}.web"),
        format!("my-mesos-{agent}.{}", uuid(4)),
    ];
    let create = |name: &str| {
        engine.client(&["run", "-d", "--network", "none", "--name", name, IMAGE, "sleep", "1000"])
    };
    [&gone, &executor].into_iter().chain(&others).for_each(|name| drop(create(name)));
    let mut kept = engine.config();
    kept.kill_orphans = false;
    let mut world = world;
    let both = std::mem::replace(&mut world.config.containerizers, vec![ContainerizerConfig::Docker(kept)]);
    let daemon = Daemon::start(&world);
    let log = world.directory().join("agent.log");
    wait_for_text(&log, "left alone: it may be of another agent");
    daemon.kill();
    assert_eq!(engine.inspect(&gone)["State"]["Running"], true, "it is not to be killed");
    world.config.containerizers = both;
    with_agent(&world, async |_agent| {
        engine.wait_until_gone(&gone);
        assert_eq!(engine.names(&executor), [""; 0]);
    });
    for name in &others {
        assert_eq!(engine.inspect(name)["State"]["Running"], true, "{name}");
        engine.client(&["rm", "-f", name]);
    }
    assert_eq!(world.leftovers(), [""; 0]);
}
