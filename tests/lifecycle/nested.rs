//! Nested containers, and faults that could affect both parent and child.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_core::model::{ContainerClass, Phase, Reason};
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::Fault;
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;
use tokio::runtime::Runtime;

use super::{COUNTING, MAX_STEPS, assert_keeps_counting, assert_nothing_left, id, request, state};

fn stdout(daemon: &Daemon, name: &str) -> PathBuf {
    PathBuf::from(daemon.inspect(&id(name)).unwrap().stdout.unwrap())
}

#[test]
fn children_end_with_their_parent_but_not_the_parent_with_its_children() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    daemon.launch(&request(&world, "pod", COUNTING)).unwrap();
    daemon.launch(&request(&world, "pod.short", "exit 3")).unwrap();
    assert_eq!(daemon.wait(&id("pod.short")).unwrap().exit_status, Some(3 << 8));
    assert_keeps_counting(&stdout(&daemon, "pod"));
    daemon.remove(&id("pod.short")).unwrap();

    for name in ["pod.web", "pod.web.probe"] {
        daemon.launch(&request(&world, name, COUNTING)).unwrap();
    }
    let names = ["pod", "pod.web", "pod.web.probe"];
    let pids = || names.map(|name| daemon.inspect(&id(name)).unwrap().pid.unwrap());
    let processes = pids().map(|pid| Process::open_any(pid).unwrap());
    daemon.destroy(&id("pod")).unwrap();
    // The children ended before their parent.
    for (name, process) in names.iter().zip(&processes) {
        assert!(process.has_ended().unwrap(), "`{name}`");
        assert_eq!(state(&daemon, &id(name)).as_deref(), Some("ENDED"));
        assert_eq!(daemon.wait(&id(name)).unwrap().exit_status, Some(9));
    }
    daemon.remove(&id("pod")).unwrap();
    assert_eq!(daemon.list().len(), 0, "children are removed with their parent");
    assert_nothing_left(&world, &"in the end");
}

#[test]
fn nested_containers_outlive_their_agent_and_end_with_their_parent_under_the_next() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let names = ["pod", "pod.web"];
    for name in names {
        daemon.launch(&request(&world, name, COUNTING)).unwrap();
    }
    let before = names.map(|name| daemon.inspect(&id(name)).unwrap().pid);
    daemon.kill();
    let daemon = Daemon::start(&world);
    assert_eq!(names.map(|name| daemon.inspect(&id(name)).unwrap().pid), before);
    for name in names {
        assert_keeps_counting(&stdout(&daemon, name));
    }
    // A parent ends without an agent; the next agent ends its children.
    let parent = Process::open_any(before[0].unwrap()).unwrap();
    daemon.kill();
    parent.kill().unwrap();
    let daemon = Daemon::start(&world);
    for name in names {
        assert_eq!(daemon.wait(&id(name)).unwrap().exit_status, Some(9), "`{name}`");
    }
    daemon.remove(&id("pod")).unwrap();
    assert_nothing_left(&world, &"in the end");
}

/// A container can create any file in its sandbox, and the agent works there as root for nested containers. So it must
/// not follow links in the parent's sandbox.
#[test]
fn the_agent_does_not_follow_links_out_of_a_sandbox() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let host = world.directory().join("host");
    fs::create_dir_all(host.join("web")).unwrap();
    fs::write(host.join("web/precious"), "").unwrap();
    let link = format!("ln -s {} containers; echo ready; sleep 1000", host.display());
    daemon.launch(&request(&world, "pod", &link)).unwrap();
    cofferdam_tests::wait_for_text(&stdout(&daemon, "pod"), "ready");
    for name in ["pod.web", "pod.db"] {
        daemon.launch(&request(&world, name, "echo words")).unwrap();
        daemon.wait(&id(name)).unwrap();
        daemon.remove(&id(name)).unwrap();
    }
    daemon.destroy(&id("pod")).unwrap();
    daemon.remove(&id("pod")).unwrap();
    let left: Vec<_> = fs::read_dir(&host).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["web"]);
    let left: Vec<_> =
        fs::read_dir(host.join("web")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["precious"]);
    assert_nothing_left(&world, &"in the end");
}

#[test]
fn a_nested_launch_that_fails_anywhere_does_not_affect_its_parent() {
    if !is_root("a failing launch") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    daemon.launch(&request(&world, "pod", COUNTING)).unwrap();
    let log = stdout(&daemon, "pod");
    let web = request(&world, "pod.web", COUNTING);
    let below = |hierarchy: &str| world.cgroup(hierarchy, &web.id).is_some_and(|path| path.exists());
    for step in 1..MAX_STEPS {
        injector.arm(Fault::Fail, &[step]);
        let outcome = daemon.launch(&web);
        let hit = injector.disarm().hit;
        let when = format!("step {step}: {:?}", hit.first().map(ToString::to_string));
        if outcome.is_ok() {
            daemon.destroy(&web.id).unwrap();
            daemon.remove(&web.id).unwrap();
        }
        assert_eq!(state(&daemon, &web.id), None, "{when}");
        let left = ["unified", "freezer", "cpu", "cpuacct", "memory"].map(below);
        assert_eq!(left, [false; 5], "{when}");
        if hit.is_empty() {
            outcome.unwrap();
            eprintln!("{step} steps");
            assert_keeps_counting(&log);
            daemon.destroy(&id("pod")).unwrap();
            daemon.remove(&id("pod")).unwrap();
            assert_nothing_left(&world, &"in the end");
            return;
        }
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}

#[test]
fn an_agent_killed_anywhere_in_a_nested_launch_keeps_the_parent() {
    let world = World::posix();
    let (mut daemon, mut injector) = Daemon::start_with_injector(&world);
    daemon.launch(&request(&world, "pod", COUNTING)).unwrap();
    let log = stdout(&daemon, "pod");
    let web = request(&world, "pod.web", COUNTING);
    for step in 1..MAX_STEPS {
        injector.arm(Fault::Kill, &[step]);
        let outcome = daemon.launch(&web);
        let hit = injector.disarm().hit;
        if !hit.is_empty() {
            daemon.wait_ended();
            (daemon, injector) = Daemon::start_with_injector(&world);
        }
        let when = format!("step {step}: {:?}", hit.first().map(ToString::to_string));
        assert_eq!(state(&daemon, &id("pod")).as_deref(), Some("RUNNING"), "{when}");
        if state(&daemon, &web.id).is_some_and(|state| state == "RUNNING") {
            daemon.destroy(&web.id).unwrap();
        }
        if state(&daemon, &web.id).is_some() {
            daemon.wait(&web.id).unwrap();
            daemon.remove(&web.id).unwrap();
        }
        assert_keeps_counting(&log);
        if hit.is_empty() {
            outcome.unwrap();
            eprintln!("{step} steps");
            daemon.destroy(&id("pod")).unwrap();
            daemon.remove(&id("pod")).unwrap();
            assert_nothing_left(&world, &"in the end");
            return;
        }
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}

/// The API cannot launch one, so this agent is embedded.
#[test]
fn a_debug_container_ends_when_the_agent_restarts() {
    if !is_root("a debug container") {
        return;
    }
    let world = World::shipped();
    let (pod, probe) = (request(&world, "pod", COUNTING), id("pod.probe"));
    let mut debug = request(&world, "pod.probe", COUNTING);
    debug.class = ContainerClass::Debug;
    debug.rootfs = None;
    let first = Runtime::new().unwrap();
    first.block_on(async {
        let agent = world.start().await.unwrap();
        agent.launch(pod.clone()).await.unwrap();
        agent.launch(debug).await.unwrap();
    });
    // All tasks of the agent end with the runtime.
    first.shutdown_timeout(Duration::from_secs(10));

    Runtime::new().unwrap().block_on(async {
        let agent = world.start().await.unwrap();
        let ended = agent.wait(&probe).await.unwrap();
        assert_eq!(ended.reason, Some(Reason::Unrecoverable));
        assert_eq!(agent.inspect(&pod.id).unwrap().summary.phase, Phase::Running);
        assert!(agent.remove(&probe).await.unwrap());
        agent.destroy(&pod.id).await.unwrap();
        assert!(agent.remove(&pod.id).await.unwrap());
    });
    assert_nothing_left(&world, &"in the end");
}
