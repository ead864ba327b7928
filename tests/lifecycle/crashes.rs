//! An agent that is killed at each step of an operation, and the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cofferdam::api::operator::types::Termination;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_plugin_model::Tty;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::injector::{Fault, Seen};
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;

use super::{COUNTING, MAX_STEPS, assert_keeps_counting, assert_nothing_left, id, keeper, request, state};

/// Kills an agent at each step of `act` in turn. Before each, `set` prepares the state; after it, `check` inspects a new
/// agent.
fn kill_at_each_step(
    fault: Fault,
    world: &World,
    set: impl Fn(&Daemon),
    act: impl Fn(&Daemon) -> Result<(), CallError>,
    check: impl Fn(&Daemon, &str),
) {
    let (mut daemon, mut injector) = Daemon::start_with_injector(world);
    for step in 1..MAX_STEPS {
        set(&daemon);
        injector.arm(fault, &[step]);
        let outcome = act(&daemon);
        let Seen { hit, .. } = injector.disarm();
        let Some(hit) = hit.first() else {
            outcome.expect("the agent was not killed");
            daemon.kill();
            let daemon = Daemon::start(world);
            check(&daemon, "after the last step");
            assert_nothing_left(world, &"in the end");
            eprintln!("{step} steps");
            return;
        };
        daemon.wait_ended();
        let next = Daemon::start(world);
        let when = format!("step {step}: {hit}");
        check(&next, &when);
        assert_nothing_left(world, &format_args!("{when}\n{}", next.log()));
        // With its keeper, whose calls an injector of another agent would not see.
        assert!(next.terminate().success(), "{when}");
        (daemon, injector) = Daemon::start_with_injector(world);
    }
    panic!("the operation has more than {MAX_STEPS} steps");
}

/// Checks that a container runs as its record says, or has ended. Returns its termination in the latter case.
fn runs_or_has_ended(world: &World, daemon: &Daemon, id: &ContainerId, when: &str) -> Option<Termination> {
    let container = daemon.inspect(id).unwrap_or_else(|| panic!("{when}: it is not known any more"));
    if container.state != "RUNNING" {
        return Some(daemon.wait(id).unwrap());
    }
    let record = world.record(id);
    assert_eq!(container.pid, record.process.map(|process| process.pid), "{when}");
    assert_keeps_counting(&PathBuf::from(container.stdout.unwrap()));
    None
}

/// Kills the agent, also its keeper if `fault` says so, at each step of a launch.
fn killed_while_launching(fault: Fault, world: &World) {
    killed_while_launching_as(fault, world, &request(world, "web", COUNTING));
}

/// The process that passes the streams of a container on.
const SWITCHBOARD: &str = "cofferdam-io\n";

/// Whether a process passes streams of a container of this world on: it has files in its directories open.
fn is_switchboard(world: &World, process: &Path) -> bool {
    let of_world = |link: PathBuf| fs::read_link(link).is_ok_and(|file| file.starts_with(world.directory()));
    fs::read_to_string(process.join("comm")).is_ok_and(|name| name == SWITCHBOARD)
        && fs::read_dir(process.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| of_world(fd.path())))
}

/// Waits until no process passes streams of a container of this world on.
fn wait_until_switchboards_end(world: &World, when: &str) {
    let begin = Instant::now();
    let processes = || fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
    while processes().any(|process| is_switchboard(world, &process)) {
        assert!(begin.elapsed() < TIMEOUT, "{when}: a switchboard does not end");
        std::thread::yield_now();
    }
}

/// As [`killed_while_launching`], with another container `web`.
fn killed_while_launching_as(fault: Fault, world: &World, web: &Request) {
    let check = |daemon: &Daemon, when: &str| {
        // Killed before the record was written, so nothing exists.
        if state(daemon, &web.id).is_none() {
            return;
        }
        match runs_or_has_ended(world, daemon, &web.id, when) {
            // The launch was not confirmed, so the command must not have run.
            Some(ended) => assert_eq!(ended.exit_status, None, "{when}: {ended:?}"),
            None => drop(daemon.destroy(&web.id).unwrap()),
        }
        daemon.remove(&web.id).unwrap();
    };
    let check = |daemon: &Daemon, when: &str| {
        check(daemon, when);
        wait_until_switchboards_end(world, when);
    };
    kill_at_each_step(fault, world, |_| {}, |daemon| daemon.launch(web), check);
}

#[test]
fn an_agent_killed_anywhere_in_a_launch_is_followed_by_one_that_recovers_it() {
    if is_root("a killed agent") {
        killed_while_launching(Fault::Kill, &World::shipped());
    }
}

#[test]
fn an_agent_of_plain_processes_killed_anywhere_in_a_launch_is_followed_by_one_that_recovers_it() {
    killed_while_launching(Fault::Kill, &World::posix());
}

#[test]
fn an_agent_of_plain_processes_killed_anywhere_in_a_launch_with_a_terminal_is_followed_by_one_that_recovers_it()
 {
    let world = World::posix();
    let tty = Some(Tty { rows: 24, columns: 80 });
    killed_while_launching_as(Fault::Kill, &world, &Request { tty, ..request(&world, "web", COUNTING) });
}

#[test]
fn an_agent_of_plain_processes_killed_anywhere_in_a_launch_with_input_is_followed_by_one_that_recovers_it() {
    let world = World::posix();
    let web = Request { interactive: true, ..request(&world, "web", COUNTING) };
    killed_while_launching_as(Fault::Kill, &world, &web);
}

/// Kills the agent, also its keeper if `fault` says so, at each step of destroying a container.
fn killed_while_ending(fault: Fault, world: &World) {
    let web = request(world, "web", COUNTING);
    let check = |daemon: &Daemon, when: &str| {
        let ended = runs_or_has_ended(world, daemon, &web.id, when);
        let ended = ended.unwrap_or_else(|| daemon.destroy(&web.id).unwrap());
        match fault {
            // Without a keeper, the kernel may not tell.
            Fault::KillBoth => keeper::assert_not_invented(&ended, 9, when),
            _ => assert_eq!(ended.exit_status, Some(9), "{when}: {ended:?}"),
        }
        daemon.remove(&web.id).unwrap();
    };
    let act = |daemon: &Daemon| daemon.destroy(&web.id).map(drop);
    kill_at_each_step(fault, world, |daemon| daemon.launch(&web).unwrap(), act, check);
}

#[test]
fn an_agent_killed_anywhere_in_a_destroy_is_followed_by_one_that_completes_it() {
    if is_root("a killed agent") {
        killed_while_ending(Fault::Kill, &World::shipped());
    }
}

#[test]
fn an_agent_of_plain_processes_killed_anywhere_in_a_destroy_is_followed_by_one_that_completes_it() {
    killed_while_ending(Fault::Kill, &World::posix());
}

#[test]
fn an_agent_and_a_keeper_killed_anywhere_in_a_launch_leave_nothing_to_the_next_agent() {
    if is_root("a killed agent and keeper") {
        killed_while_launching(Fault::KillBoth, &World::shipped());
    }
}

#[test]
fn an_agent_and_a_keeper_of_plain_processes_killed_anywhere_in_a_launch_leave_nothing_to_the_next_agent() {
    killed_while_launching(Fault::KillBoth, &World::posix());
}

#[test]
fn an_agent_and_a_keeper_of_plain_processes_killed_anywhere_in_a_destroy_are_followed_by_one_that_completes_it()
 {
    killed_while_ending(Fault::KillBoth, &World::posix());
}

#[test]
fn an_agent_and_a_keeper_killed_anywhere_in_a_destroy_are_followed_by_an_agent_that_completes_it() {
    if is_root("a killed agent and keeper") {
        killed_while_ending(Fault::KillBoth, &World::shipped());
    }
}

#[test]
fn an_agent_killed_anywhere_in_a_removal_removes_all_or_nothing() {
    let world = World::posix();
    let web = request(&world, "web", "exit 3");
    let set = |daemon: &Daemon| {
        daemon.launch(&web).unwrap();
        daemon.wait(&web.id).unwrap();
    };
    let check = |daemon: &Daemon, when: &str| {
        if state(daemon, &web.id).is_none() {
            return;
        }
        let ended = daemon.wait(&web.id).unwrap();
        assert_eq!(ended.exit_status, Some(3 << 8), "{when}: {ended:?}");
        daemon.remove(&web.id).unwrap();
    };
    kill_at_each_step(Fault::Kill, &world, set, |daemon| daemon.remove(&web.id), check);
}

#[test]
fn an_agent_killed_anywhere_in_an_update_leaves_limits_as_recorded() {
    if !is_root("an update") {
        return;
    }
    let world = World::shipped();
    let web = request(&world, "web", COUNTING);
    let Some(memory) = world.cgroup("memory", &web.id) else {
        eprintln!("SKIPPED: this machine has no memory controller on v1");
        return;
    };
    let cpu = world.cgroup("cpu", &web.id).unwrap();
    let check = |daemon: &Daemon, when: &str| {
        assert!(runs_or_has_ended(&world, daemon, &web.id, when).is_none(), "{when}: an update ended it");
        let read = |path: PathBuf| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
        let is = (read(memory.join("memory.limit_in_bytes")) >> 20, read(cpu.join("cpu.shares")));
        let record = world.record(&web.id);
        let (mem, cpus) = (record.resources.scalar("mem").unwrap(), record.resources.scalar("cpus").unwrap());
        assert_eq!(is, (mem as u64, (cpus * 1024.0) as u64), "{when}");
        daemon.destroy(&web.id).unwrap();
        daemon.remove(&web.id).unwrap();
    };
    let act = |daemon: &Daemon| daemon.update(&id("web"), &[("cpus", 0.25), ("mem", 128.0)]);
    kill_at_each_step(Fault::Kill, &world, |daemon| daemon.launch(&web).unwrap(), act, check);
}
