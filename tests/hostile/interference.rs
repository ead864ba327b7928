//! Hostile parents that stop, kill or trace the processes that are created for nested containers.

use std::time::Duration;

use cofferdam_core::agent::Agent;
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::{Phase, Request};
use cofferdam_linux::process::{Process, Stat, children_of};
use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{assert_contains, is_root};
use nix::sys::signal::Signal;

use super::{
    Attack, Kind, assert_nothing_left, attacker, is_privileged, of_kind, wait_for_text, world, worlds,
};

const KINDS: [Kind; 2] = [Kind::Shared, Kind::Debug];

/// Reported by the attacker when it is not permitted to trace a process.
const NOT_TRACED: &str = "not traced: Operation not permitted";

/// The agent still launches containers, also below the attacker.
async fn assert_works(agent: &Agent, world: &World) {
    for name in ["works", "pod.works"] {
        let mut launches = 0..MAX_LAUNCHES;
        loop {
            launches.next().unwrap_or_else(|| panic!("no launch succeeds"));
            match agent.launch(of_kind(attacker(world, name, 0, &["self"]), Kind::Own)).await {
                Ok(_) => break,
                // The attacker has the CPU.
                Err(error) => assert_contains(&describe(&error), &["not set up within 2s"]),
            }
        }
        agent.wait(&id(name)).await.unwrap();
        assert!(agent.remove(&id(name)).await.unwrap());
    }
    assert_eq!(agent.inspect(&id("pod")).unwrap().summary.phase, Phase::Running);
}

/// Limit for the launches until the attacker has hit one: it misses those during which it does not get the CPU.
const MAX_LAUNCHES: usize = 50;

/// Launches `pod.web`. Returns the error, if the launch fails; otherwise the container is destroyed and removed, as it
/// may have been stopped after its launch.
async fn launch(agent: &Agent, world: &World, uid: u32, kind: Kind) -> Option<String> {
    match agent.launch(of_kind(attacker(world, "pod.web", uid, &["self"]), kind)).await {
        Err(error) => Some(describe(&error)),
        Ok(_) => {
            agent.destroy(&id("pod.web")).await.unwrap();
            assert!(agent.remove(&id("pod.web")).await.unwrap());
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_whose_process_is_stopped_or_traced_fails_at_its_deadline() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        stop_or_trace(world).await;
    }
}

async fn stop_or_trace(mut world: World) {
    world.config.launch_timeout = Duration::from_secs(2);
    let agent = world.start().await.unwrap();
    for action in ["stop", "seize"] {
        // With fewer capabilities than the process, the attacker may not trace it; but it may always send signals.
        let succeeds = action == "stop" || is_privileged(&world);
        let attack = Attack::start(&agent, &world, 0, &[action]).await;
        for (kind, uid) in [(Kind::Shared, 0), (Kind::Debug, 1000)] {
            let refused = attack.count(NOT_TRACED);
            let mut launches = 0..MAX_LAUNCHES;
            loop {
                launches.next().unwrap_or_else(|| panic!("{action}: {:#?}", attack.report()));
                let message = launch(&agent, &world, uid, kind).await;
                assert_eq!(attack.visible(), [].into(), "{action}, {kind:?}: it is not killed");
                if let Some(message) = message {
                    assert_contains(&message, &["`pod.web`", "not set up within 2s", "`launch_timeout`"]);
                    break;
                }
                if !succeeds && attack.count(NOT_TRACED) >= refused + 3 {
                    break;
                }
            }
        }
        assert_works(&agent, &world).await;
        attack.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_cannot_interfere_with_processes_of_root() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        interfere_with_root(&world).await;
    }
}

async fn interfere_with_root(world: &World) {
    let agent = world.start().await.unwrap();
    for (action, refused) in [("stop", "not stopped"), ("kill", "not killed"), ("seize", "not traced")] {
        let refused = format!("{refused}: Operation not permitted");
        let attack = Attack::start(&agent, world, 1000, &[action]).await;
        for kind in KINDS {
            let before = attack.count(&refused);
            let mut launches = 0..MAX_LAUNCHES;
            while attack.count(&refused) == before {
                launches.next().unwrap_or_else(|| panic!("{action}: {:#?}", attack.report()));
                assert_eq!(launch(&agent, world, 0, kind).await, None);
            }
        }
        assert_works(&agent, world).await;
        for line in attack.end().await {
            assert!(line.what == "seen" || line.what == refused, "{line:?}");
        }
    }
}

/// A process of the attacker's own user is the attacker's, from the moment that it is: then the set-up is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_end_or_stop_containers_of_its_own_and_no_more() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        interfere_with_own(world).await;
    }
}

async fn interfere_with_own(mut world: World) {
    world.config.launch_timeout = Duration::from_secs(2);
    let agent = world.start().await.unwrap();
    for (action, reports) in [
        ("own-stop", &["stopped"][..]),
        ("own-kill", &["killed"]),
        // Until it executes its program, it must not be traced.
        ("own-seize", &["stopped", NOT_TRACED]),
    ] {
        let attack = Attack::start(&agent, &world, 1000, &[action]).await;
        for kind in KINDS.repeat(2) {
            let mut request = Request::shell(id("pod.web"), "exec sleep 1000");
            request.rootfs = Some(world.rootfs());
            request.command.user = Some("1000".into());
            let seen = attack.count("seen");
            match agent.launch(of_kind(request, kind)).await {
                Err(error) => {
                    let error = describe(&error);
                    let expected = ["not set up within 2s", "was killed before its program ran"];
                    assert!(expected.iter().any(|text| error.contains(text)), "{action}, {kind:?}: {error}");
                }
                Ok(_) => {
                    attack.await_lines("seen", seen + 1);
                    agent.destroy(&id("pod.web")).await.unwrap();
                    assert!(agent.remove(&id("pod.web")).await.unwrap());
                }
            }
            assert_eq!(attack.visible(), [].into(), "{action}, {kind:?}");
        }
        assert_works(&agent, &world).await;
        let ended =
            ["not stopped", "not killed", "not traced"].map(|what| format!("{what}: No such process"));
        for line in attack.end().await {
            let is_expected =
                line.what == "seen" || reports.contains(&&*line.what) || ended.contains(&line.what);
            assert!(is_expected, "{action}: {line:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_whose_process_is_killed_or_overwritten_fails_or_has_ended() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        kill_or_overwrite(&world).await;
    }
}

async fn kill_or_overwrite(world: &World) {
    let agent = world.start().await.unwrap();
    for action in ["kill", "scribble"] {
        // Memory cannot be written until the process has given up the capabilities that the attacker lacks.
        let succeeds = action == "kill" || is_privileged(world);
        let attack = Attack::start(&agent, world, 0, &[action]).await;
        for kind in KINDS {
            let tried = || attack.count("not written") + attack.count("overwritten");
            let before = tried();
            let (mut launches, mut failed) = (0..MAX_LAUNCHES, 0);
            while failed < 3 && (succeeds || tried() < before + 3) {
                launches.next().unwrap_or_else(|| panic!("{action}: {:#?}", attack.report()));
                // Otherwise it was hit after its exec.
                if let Some(message) = launch(&agent, world, 0, kind).await {
                    assert_contains(&message, &["`pod.web`", "was killed before its program ran"]);
                    failed += 1;
                }
                assert_eq!(attack.visible(), [].into(), "{action}, {kind:?}");
            }
        }
        assert_works(&agent, world).await;
        attack.end().await;
    }
}

/// The pipes between the command's process and the one that sets it up are all that the attacker can take: with them,
/// it can let the launch fail, or let the agent take a process that it has killed for one that ran.
#[tokio::test(flavor = "multi_thread")]
async fn forged_reports_of_a_process_fail_its_launch_at_most() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        forge(world).await;
    }
}

async fn forge(mut world: World) {
    world.config.launch_timeout = Duration::from_secs(2);
    let agent = world.start().await.unwrap();
    for message in ["R", "S", "F", "FFFFFFFFFFFFFFFFFFFFF", &"R".repeat(4096)] {
        let attack = Attack::start(&agent, &world, 0, &["steal", message]).await;
        // The descriptors of a process with more capabilities cannot be opened, until it has given them up.
        let has_tried = || {
            let is_refused = !is_privileged(&world) && attack.count("not stolen") >= 3;
            is_refused || attack.count("stolen") > 0
        };
        let mut launches = 0..MAX_LAUNCHES;
        while !has_tried() {
            launches.next().unwrap_or_else(|| panic!("{:#?}", attack.report()));
            if let Some(error) = launch(&agent, &world, 0, Kind::Shared).await {
                let expected = ["not set up within 2s", "was killed before its program ran"];
                assert!(expected.iter().any(|text| error.contains(text)), "{error}");
            }
            assert_eq!(attack.visible(), [].into(), "{message}");
        }
        assert_works(&agent, &world).await;
        attack.end().await;
    }
}

/// Waits until a keeper creates a process of this name, and stops it.
fn stop_child(keeper: i32, name: &str) -> Process {
    loop {
        for pid in children_of(keeper).unwrap() {
            let Ok(process) = Process::open_any(pid) else { continue };
            if Stat::read(pid).is_ok_and(|stat| stat.name == name)
                && process.signal(Signal::SIGSTOP as i32).is_ok()
            {
                return process;
            }
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_launch_whose_setup_process_is_stopped_fails_at_its_deadline() {
    if !is_root("nested containers") {
        return;
    }
    let mut world = world();
    world.config.launch_timeout = Duration::from_secs(1);
    let daemon = Daemon::start(&world);
    let is_keeper = |pid: &i32| Stat::read(*pid).is_ok_and(|stat| stat.name == "cofferdam-keep");
    let keeper = children_of(daemon.pid()).unwrap().into_iter().find(is_keeper).unwrap();
    let request = attacker(&world, "web", 0, &["self"]);
    let (process, outcome) = std::thread::scope(|scope| {
        let launch = scope.spawn(|| daemon.launch(&request));
        (stop_child(keeper, "cofferdam-setup"), launch.join().unwrap())
    });
    let CallError::Status(_, message) = outcome.unwrap_err() else { panic!("the agent has ended") };
    assert_contains(&message, &["`web`", "not set up within 1s", "`launch_timeout`"]);
    assert!(process.has_ended().unwrap());
    daemon.launch(&request).unwrap();
    assert_eq!(daemon.wait(&request.id).unwrap().exit_status, Some(0));
    daemon.remove(&request.id).unwrap();
    assert_nothing_left(&world);
}

/// The lock of an agent is not held by any process that a container can stop.
#[test]
fn an_agent_that_is_killed_while_a_process_is_stopped_is_followed_by_one_that_recovers() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        kill_the_agent_meanwhile(&world);
    }
}

fn kill_the_agent_meanwhile(world: &World) {
    let daemon = Daemon::start(world);
    daemon.launch(&attacker(world, "pod", 0, &["stop"])).unwrap();
    let pod = daemon.inspect(&id("pod")).unwrap();
    let log = std::path::PathBuf::from(pod.stdout.unwrap());
    wait_for_text(&log, "ready");
    std::thread::scope(|scope| {
        let launch = scope.spawn(|| {
            let request = of_kind(attacker(world, "pod.web", 0, &["self"]), Kind::Shared);
            // Until the agent is killed, while the process of one of them is stopped.
            for _ in 0..MAX_LAUNCHES {
                let launched = daemon.launch(&request);
                let ended = launched.and_then(|()| daemon.destroy(&request.id));
                if let Err(error) = ended.and_then(|_| daemon.remove(&request.id)) {
                    return error;
                }
            }
            panic!("no process was stopped");
        });
        wait_for_text(&log, "stopped");
        daemon.process().kill().unwrap();
        assert!(launch.join().unwrap().is_disconnected());
    });
    drop(daemon);
    let daemon = Daemon::start(world);
    assert_eq!(daemon.inspect(&id("pod")).unwrap().pid, pod.pid);
    // It may have been stopped after its launch.
    if daemon.inspect(&id("pod.web")).is_some_and(|found| found.state != "ENDED") {
        drop(daemon.destroy(&id("pod.web")));
    }
    drop(daemon.remove(&id("pod.web")));
    daemon.destroy(&id("pod")).unwrap();
    daemon.remove(&id("pod")).unwrap();
    assert_nothing_left(world);
}
