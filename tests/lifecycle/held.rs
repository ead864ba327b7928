//! A launch whose setup process, or command before its exec, does not go on, at each step: it ends with a kill of the
//! container, also if the keeper is killed, and with the next agent if the agent is killed, or both.
//!
//! On v2 the setup process is in no cgroup of the container, so it does not end with that.

use std::fs;
use std::thread;
use std::time::Instant;

use cofferdam_core::ledger::nested_directory;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_linux::cgroup::{Cgroup, Cgroups};
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::injector::{Effect, Fault};
use cofferdam_tests::world::World;
use cofferdam_tests::{is_root, watch};
use nix::sys::signal::Signal;
use serde_json::Value as Json;

use super::{COUNTING, assert_nothing_left, request, state};

/// What happens while a process of the launch is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The container is killed.
    Request,
    /// The keeper is killed, and then the container.
    Keeper,
    /// The agent is killed, and followed by another one.
    Agent,
    /// Likewise, after its keeper.
    Both,
}

const ENDS: [End; 4] = [End::Request, End::Keeper, End::Agent, End::Both];

/// Calls after which there is another process, or one is in other namespaces or another root.
const CREATING: [&str; 5] = ["clone3", "unshare", "setns", "pivot_root", "execve"];

/// The steps of a launch at which to hold it.
fn steps(world: &World, parent: Option<&Request>, launched: &Request) -> Vec<usize> {
    let launch = || {
        let (daemon, injector) = Daemon::start_with_injector(world);
        if let Some(parent) = parent {
            daemon.launch(parent).unwrap();
        }
        injector.arm(Fault::Hold, &[]);
        daemon.launch(launched).unwrap();
        let effects = injector.disarm().effects;
        end_all(daemon, parent, launched);
        effects
    };
    // The first launch in a world creates directories for all.
    launch();
    let effects = launch();
    let is_chosen = |effect: &Effect| effect.is_by_init() && CREATING.contains(&effect.call);
    let numbered = (1..).zip(&effects).filter(|(_, effect)| is_chosen(effect));
    let steps: Vec<usize> = numbered.map(|(number, _)| number).collect();
    assert!(!steps.is_empty(), "{effects:?}");
    steps
}

/// Ends and removes what is there, and then the agent.
fn end_all(daemon: Daemon, parent: Option<&Request>, launched: &Request) {
    for id in [Some(launched), parent].into_iter().flatten().map(|request| &request.id) {
        if end_if_known(&daemon, id) {
            daemon.remove(id).unwrap();
        }
    }
    assert!(daemon.terminate().success());
}

/// Ends a container. Returns whether there is one.
fn end_if_known(daemon: &Daemon, id: &ContainerId) -> bool {
    let state = state(daemon, id);
    match state.as_deref() {
        Some("RUNNING") => drop(daemon.destroy(id).unwrap()),
        Some(_) => drop(daemon.wait(id).unwrap()),
        None => {}
    }
    state.is_some()
}

/// Whether the first process of a container is on record.
fn is_recorded(world: &World, id: &ContainerId) -> bool {
    let record = fs::read(nested_directory(&world.config.runtime_dir, id).join("record")).unwrap_or_default();
    let body = record.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    serde_json::from_slice::<Json>(&record[body..]).is_ok_and(|record| record["process"].is_object())
}

/// Holds a launch at a step, and ends it. Returns whether it was held in a process that the keeper has created.
fn hold(world: &World, parent: Option<&Request>, launched: &Request, step: usize, end: End) -> bool {
    let id = &launched.id;
    let (mut daemon, injector) = Daemon::start_with_injector(world);
    if let Some(parent) = parent {
        daemon.launch(parent).unwrap();
    }
    injector.arm(Fault::Hold, &[step]);
    let found = thread::scope(|scope| {
        let launch = scope.spawn(|| {
            let outcome = daemon.launch(launched);
            drop(injector.disarm());
            outcome
        });
        if !injector.wait_held() {
            launch.join().unwrap().unwrap();
            return None;
        }
        let effect = injector.disarm().hit.remove(0);
        if !effect.is_by_init() {
            injector.release();
            launch.join().unwrap().unwrap();
            return None;
        }
        let when = format!("{end:?}, step {step}: {effect}");
        let held = Process::open_any(effect.pid).unwrap();
        // The agent does not wait for it before that.
        let directory = nested_directory(&world.config.runtime_dir, id);
        assert!(
            watch::until(&directory, TIMEOUT, || is_recorded(world, id)),
            "{when}: no process is recorded"
        );
        if matches!(end, End::Keeper | End::Both) {
            let keeper = daemon.keeper();
            keeper.kill().unwrap();
            assert!(keeper.wait(Some(TIMEOUT)).unwrap(), "{when}");
        }
        assert!(!held.has_ended().unwrap(), "{when}: it is not held");
        match end {
            End::Request | End::Keeper => daemon.signal(id, Signal::SIGKILL).unwrap(),
            End::Agent | End::Both => daemon.process().kill().unwrap(),
        }
        // What is held may be process 1, without which the command runs.
        if launch.join().unwrap().is_ok() && matches!(end, End::Request | End::Keeper) {
            daemon.wait(id).unwrap();
        }
        Some((held, when))
    });
    let Some((held, when)) = found else {
        end_all(daemon, parent, launched);
        return false;
    };
    if matches!(end, End::Agent | End::Both) {
        daemon.wait_ended();
        daemon = Daemon::start(world);
        end_if_known(&daemon, id);
    }
    // It leaves its cgroup a moment before it has ended; what is still held would never end.
    assert!(held.wait(Some(TIMEOUT)).unwrap(), "{when}: it has outlived its container\n{}", daemon.log());
    if let Some(parent) = parent {
        assert_eq!(state(&daemon, &parent.id).as_deref(), Some("RUNNING"), "{when}");
    }
    end_all(daemon, parent, launched);
    assert_nothing_left(world, &when);
    // Setup processes are where the keeper is, which may need a moment to end.
    let own = format!("cofferdam-test/{}/keeper", world.instance());
    if let Some(keepers) = Cgroups::detect().unwrap().unified(own).filter(Cgroup::exists) {
        let deadline = Instant::now() + TIMEOUT;
        while keepers.procs().is_ok_and(|pids| !pids.is_empty()) {
            assert!(Instant::now() < deadline, "{when}: beside the keeper: {:?}", keepers.procs());
            thread::yield_now();
        }
    }
    true
}

fn hold_at_each_step(world: &World, parent: Option<&Request>, launched: &Request) {
    let steps = steps(world, parent, launched);
    for end in ENDS {
        let held = steps.iter().filter(|step| hold(world, parent, launched, **step, end)).count();
        eprintln!("{end:?}: held at {held} of {} steps", steps.len());
        assert!(held > 0, "{end:?}: the launch was never held");
    }
}

#[test]
fn a_setup_process_that_does_not_go_on_ends_with_its_container() {
    if !is_root("a launch that is held") {
        return;
    }
    let world = World::shipped();
    hold_at_each_step(&world, None, &request(&world, "web", COUNTING));
}

/// The command of one that shares its parent's pid namespace is created by another process in between.
#[test]
fn a_setup_process_of_a_nested_container_that_does_not_go_on_ends_with_it_and_not_with_its_parent() {
    if !is_root("a launch that is held") {
        return;
    }
    let world = World::shipped();
    let pod = request(&world, "pod", COUNTING);
    let mut web = request(&world, "pod.web", COUNTING);
    web.linux.share_pid_namespace = true;
    hold_at_each_step(&world, Some(&pod), &web);
}

#[test]
fn a_setup_process_of_plain_processes_that_does_not_go_on_ends_with_its_container() {
    let world = World::posix();
    hold_at_each_step(&world, None, &request(&world, "web", COUNTING));
}
