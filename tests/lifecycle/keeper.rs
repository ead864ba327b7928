//! A keeper that is killed or stopped, at each step of a launch and between them, and one of another build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam::api::operator::types::Termination;
use cofferdam_core::agent::Agent;
use cofferdam_core::model::{ContainerId, Phase};
use cofferdam_init::client::Connection;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::injector::{Actor, Effect, Fault, Injector};
use cofferdam_tests::world::World;
use cofferdam_tests::{is_root, wait_for_text, watch};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;

use super::restarts::{end, rewrite, stdout};
use super::{COUNTING, MAX_STEPS, assert_keeps_counting, assert_nothing_left, request, state};

/// Ends with a status when a line is written to a FIFO in its sandbox.
const WAITING: &str = "mkfifo word && echo ready && read word < word; exit 7";

/// The worlds that a test can use: with the `linux` launcher, if this is root, and with the `posix` launcher.
fn worlds(test: &str) -> Vec<World> {
    let linux = is_root(test).then(World::shipped);
    linux.into_iter().chain([World::posix()]).collect()
}

/// Whether the kernel tells others than the parent how a process ended.
fn kernel_tells_statuses() -> bool {
    let mut child = Command::new("sh").args(["-c", "exit 7"]).stdin(Stdio::null()).spawn().unwrap();
    let process = Process::open_any(i32::try_from(child.id()).unwrap()).unwrap();
    child.wait().unwrap();
    process.wait_status(Duration::ZERO).unwrap().is_some()
}

/// Checks the exit status of a container whose keeper was killed, and whose agent was not.
#[track_caller]
fn assert_status(ended: &Termination, status: i32, when: &str) {
    assert_not_invented(ended, status, when);
    assert!(ended.exit_status.is_some() || !kernel_tells_statuses(), "{when}: {ended:?}");
}

/// Checks that an exit status is the right one, or unknown.
#[track_caller]
pub(super) fn assert_not_invented(ended: &Termination, status: i32, when: &str) {
    match ended.exit_status {
        Some(found) => assert_eq!(found, status, "{when}: {ended:?}"),
        None => assert!(ended.message.is_some(), "{when}: {ended:?}"),
    }
}

/// Kills a keeper and waits until it has ended.
fn kill(keeper: &Process) {
    keeper.kill().unwrap();
    assert!(keeper.wait(Some(TIMEOUT)).unwrap());
}

/// The directory of a container's keeper.
fn keeper_of(world: &World, id: &ContainerId) -> PathBuf {
    world.config.runtime_dir.join("keepers").join(world.record(id).part.keeper.unwrap().keeper)
}

/// Waits until the directory of a keeper is removed.
fn wait_removed(directory: &Path) {
    let removed = watch::until(directory.parent().unwrap(), TIMEOUT, || !directory.exists());
    assert!(removed, "{} is left", directory.display());
}

/// Launches a container with the current keeper, and ends it.
#[track_caller]
fn launch_another(world: &World, daemon: &Daemon, when: &str) {
    let other = request(world, "other", COUNTING);
    daemon.launch(&other).unwrap_or_else(|error| panic!("{when}: {error:?}\n{}", daemon.log()));
    assert_eq!(daemon.destroy(&other.id).unwrap().exit_status, Some(9), "{when}");
    daemon.remove(&other.id).unwrap();
}

/// Kills the keeper at each step of a launch.
fn killed_while_launching(world: &World) {
    let (daemon, injector) = Daemon::start_with_injector(world);
    // Its command may have forked by the time that the launch fails.
    let web = request(world, "web", &format!("sleep 100000 & {COUNTING}"));
    for step in 1..MAX_STEPS {
        let keeper = daemon.keeper();
        injector.arm(Fault::KillKeeper, &[step]);
        let outcome = daemon.launch(&web);
        let hit = injector.disarm().hit;
        let when = format!("step {step}: {:?}: {outcome:?}", hit.first().map(ToString::to_string));
        if outcome.is_ok() {
            assert_eq!(state(&daemon, &web.id).as_deref(), Some("RUNNING"), "{when}");
            let ended = daemon.destroy(&web.id).unwrap();
            assert_status(&ended, 9, &when);
            daemon.remove(&web.id).unwrap();
        } else {
            assert_eq!(state(&daemon, &web.id), None, "{when}");
        }
        if hit.is_empty() {
            outcome.expect("the keeper was not killed");
            assert_nothing_left(world, &"in the end");
            eprintln!("{step} steps");
            return;
        }
        // A launch uses a new one, before the agent itself starts one.
        assert!(keeper.wait(Some(TIMEOUT)).unwrap(), "{when}");
        launch_another(world, &daemon, &when);
        assert_nothing_left(world, &format_args!("{when}\n{}", daemon.log()));
        assert_ne!(daemon.keeper().pid(), keeper.pid(), "{when}");
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}

#[test]
fn a_keeper_killed_anywhere_in_a_launch_is_replaced() {
    if is_root("a killed keeper") {
        killed_while_launching(&World::shipped());
    }
}

#[test]
fn a_keeper_of_plain_processes_killed_anywhere_in_a_launch_is_replaced() {
    killed_while_launching(&World::posix());
}

/// Kills the keeper at each step of destroying a container.
fn killed_while_ending(world: &World) {
    let (daemon, injector) = Daemon::start_with_injector(world);
    let web = request(world, "web", COUNTING);
    for step in 1..MAX_STEPS {
        daemon.launch(&web).unwrap();
        let directory = keeper_of(world, &web.id);
        injector.arm(Fault::KillKeeper, &[step]);
        let ended = daemon.destroy(&web.id).unwrap();
        daemon.remove(&web.id).unwrap();
        let hit = injector.disarm().hit;
        let when = format!("step {step}: {:?}", hit.first().map(ToString::to_string));
        assert_status(&ended, 9, &when);
        if !hit.is_empty() {
            // When the agent has noticed that it is gone.
            wait_removed(&directory);
        }
        assert_nothing_left(world, &format_args!("{when}\n{}", daemon.log()));
        if hit.is_empty() {
            eprintln!("{step} steps");
            return;
        }
        launch_another(world, &daemon, &when);
    }
    panic!("a destroy has more than {MAX_STEPS} steps");
}

#[test]
fn a_keeper_killed_anywhere_in_a_destroy_is_not_missed() {
    for world in worlds("a killed keeper") {
        killed_while_ending(&world);
    }
}

#[test]
fn containers_of_a_killed_keeper_run_on_under_control() {
    for world in worlds("a killed keeper") {
        let daemon = Daemon::start(&world);
        let counter = request(&world, "counter", COUNTING);
        let short = request(&world, "short", WAITING);
        daemon.launch(&counter).unwrap();
        daemon.launch(&short).unwrap();
        let log = stdout(&daemon, &counter.id);
        wait_for_text(&stdout(&daemon, &short.id), "ready");
        let directory = keeper_of(&world, &counter.id);
        let fifo = Path::new(&daemon.inspect(&short.id).unwrap().sandbox).join("word");

        let keeper = daemon.keeper();
        kill(&keeper);
        // The agent reaps it, and starts another one without being asked.
        keeper.wait_status(TIMEOUT).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        let keepers = loop {
            let health = daemon.health();
            assert!(health.healthy && Instant::now() < deadline, "{}", daemon.log());
            match health.keepers.unwrap() {
                keepers if keepers.pid.is_some_and(|pid| pid != keeper.pid()) => break keepers,
                _ => std::thread::yield_now(),
            }
        };
        assert_eq!((keepers.pid, keepers.older, keepers.lost), (Some(daemon.keeper().pid()), 0, 1));
        assert_keeps_counting(&log);
        let used = daemon.list().into_iter().find(|container| container.container_id.value == "counter");
        assert!(used.unwrap().resource_statistics.is_some_and(|used| used.mem_rss_bytes > Some(0)));
        launch_another(&world, &daemon, "beside containers of a killed keeper");
        fs::write(fifo, "word\n").unwrap();
        assert_status(&daemon.wait(&short.id).unwrap(), 7 << 8, "its command has ended");
        daemon.signal(&counter.id, Signal::SIGTERM).unwrap();
        assert_status(&daemon.wait(&counter.id).unwrap(), 15, "it was signalled");
        daemon.remove(&short.id).unwrap();
        daemon.remove(&counter.id).unwrap();
        assert!(!directory.exists());
        assert_nothing_left(&world, &"in the end");
    }
}

#[test]
fn without_keeper_and_agent_containers_run_on_and_a_status_is_unknown() {
    for world in worlds("a killed keeper") {
        let daemon = Daemon::start(&world);
        let counter = request(&world, "counter", COUNTING);
        let short = request(&world, "short", WAITING);
        daemon.launch(&counter).unwrap();
        daemon.launch(&short).unwrap();
        let log = stdout(&daemon, &counter.id);
        wait_for_text(&stdout(&daemon, &short.id), "ready");
        let waiting = daemon.inspect(&short.id).unwrap();
        let process = Process::open_any(waiting.pid.unwrap()).unwrap();
        let (pid, directory) = (daemon.inspect(&counter.id).unwrap().pid, keeper_of(&world, &counter.id));

        let keeper = daemon.keeper();
        daemon.kill();
        kill(&keeper);
        fs::write(Path::new(&waiting.sandbox).join("word"), "word\n").unwrap();
        assert!(process.wait(Some(TIMEOUT)).unwrap());

        let daemon = Daemon::start(&world);
        assert_not_invented(&daemon.wait(&short.id).unwrap(), 7 << 8, "it ended without agent and keeper");
        let found = daemon.inspect(&counter.id).unwrap();
        assert_eq!((found.state.as_str(), found.pid), ("RUNNING", pid));
        assert_keeps_counting(&log);
        launch_another(&world, &daemon, "after both were killed");
        assert_status(&daemon.destroy(&counter.id).unwrap(), 9, "it was destroyed");
        daemon.remove(&counter.id).unwrap();
        daemon.remove(&short.id).unwrap();
        assert!(!directory.exists());
        assert_nothing_left(&world, &"in the end");
    }
}

/// Stops the keeper at each step of a launch from the first one that it makes itself. It is continued afterwards.
fn stopped_while_launching(world: &World) {
    let (daemon, injector) = Daemon::start_with_injector(world);
    let web = request(world, "web", COUNTING);
    launch_another(world, &daemon, "at first");
    injector.arm(Fault::KillKeeper, &[]);
    daemon.launch(&web).unwrap();
    let effects = injector.disarm().effects;
    end(&daemon, &web.id);
    let first = 1 + effects.iter().position(|effect| effect.by == Actor::Keeper).unwrap();
    for step in first..MAX_STEPS {
        if stop_at(world, &daemon, &injector, step) {
            eprintln!("{} steps", step - first);
            return;
        }
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}

/// Stops the keeper at a step of a launch. Returns whether the launch has fewer steps.
fn stop_at(world: &World, daemon: &Daemon, injector: &Injector, step: usize) -> bool {
    let web = request(world, "web", COUNTING);
    let keeper = daemon.keeper();
    injector.arm(Fault::StopKeeper, &[step]);
    let outcome = daemon.launch(&web);
    let hit = injector.disarm().hit;
    let when = format!("step {step}: {:?}: {outcome:?}", hit.first().map(ToString::to_string));
    outcome.unwrap_or_else(|error| panic!("{when}: {error:?}\n{}", daemon.log()));
    let replaced = daemon.health().keepers.unwrap().pid != Some(keeper.pid());
    keeper.signal(Signal::SIGCONT as i32).unwrap();
    if replaced {
        // It finds a closed connection and has no container.
        assert!(keeper.wait(Some(TIMEOUT)).unwrap(), "{when}");
    }
    assert_keeps_counting(&stdout(daemon, &web.id));
    assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9), "{when}");
    daemon.remove(&web.id).unwrap();
    launch_another(world, daemon, &when);
    assert_nothing_left(world, &format_args!("{when}\n{}", daemon.log()));
    hit.is_empty()
}

#[test]
fn a_keeper_stopped_anywhere_in_a_launch_is_replaced_or_not_needed() {
    if is_root("a stopped keeper") {
        stopped_while_launching(&World::shipped());
    }
}

#[test]
fn a_keeper_of_plain_processes_stopped_anywhere_in_a_launch_is_replaced_or_not_needed() {
    stopped_while_launching(&World::posix());
}

/// Stops the keeper when a container is destroyed: at the first step, and at its own first and last. It is continued
/// afterwards. The agent waits for it once each time, which is why these are not all steps.
fn stopped_while_ending(world: &World) {
    let (daemon, injector) = Daemon::start_with_injector(world);
    let web = request(world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    injector.arm(Fault::StopKeeper, &[]);
    end(&daemon, &web.id);
    let effects = injector.disarm().effects;
    let by_keeper = |effect: &Effect| effect.by == Actor::Keeper;
    let first = effects.iter().position(by_keeper).unwrap();
    let last = effects.iter().rposition(by_keeper).unwrap();
    for step in [1, 1 + first, 1 + last] {
        daemon.launch(&web).unwrap();
        let (keeper, directory) = (daemon.keeper(), keeper_of(world, &web.id));
        injector.arm(Fault::StopKeeper, &[step]);
        let ended = daemon.destroy(&web.id).unwrap();
        daemon.remove(&web.id).unwrap();
        let hit = injector.disarm().hit;
        let when = format!("step {step}: {:?}", hit.first().map(ToString::to_string));
        assert_status(&ended, 9, &when);
        // A launch replaces it if it does not answer.
        launch_another(world, &daemon, &when);
        keeper.signal(Signal::SIGCONT as i32).unwrap();
        if daemon.health().keepers.unwrap().pid != Some(keeper.pid()) {
            assert!(keeper.wait(Some(TIMEOUT)).unwrap(), "{when}");
            wait_removed(&directory);
        }
        assert_nothing_left(world, &format_args!("{when}\n{}", daemon.log()));
    }
}

#[test]
fn a_keeper_stopped_in_a_destroy_keeps_nothing_from_ending() {
    if is_root("a stopped keeper") {
        stopped_while_ending(&World::shipped());
    }
}

/// An agent in this process that does not wait long for its keeper.
async fn impatient(world: &mut World) -> Agent {
    world.config.keeper_timeout = Duration::from_millis(200);
    world.start().await.unwrap()
}

fn current_keeper(agent: &Agent) -> Process {
    Process::open_any(agent.keepers().pid.unwrap()).unwrap()
}

#[test]
fn a_keeper_stopped_between_launches_is_replaced_and_then_ends() {
    for mut world in worlds("a stopped keeper") {
        Runtime::new().unwrap().block_on(async {
            let agent = impatient(&mut world).await;
            let first = request(&world, "first", COUNTING);
            agent.launch(first.clone()).await.unwrap();
            let stopped = current_keeper(&agent);
            let directory = keeper_of(&world, &first.id);
            stopped.signal(Signal::SIGSTOP as i32).unwrap();
            // The second launch does not wait.
            for name in ["second", "third"] {
                agent.launch(request(&world, name, COUNTING)).await.unwrap();
            }
            let keepers = agent.keepers();
            assert_eq!((keepers.older, keepers.lost), (0, 1));
            assert_ne!(keepers.pid, Some(stopped.pid()));
            // Its container is under control. It is a zombie, so that `/proc` tells its status.
            let ended = agent.destroy(&first.id).await.unwrap();
            assert_eq!(ended.status, Some(9), "{ended:?}");
            assert!(directory.exists() && !stopped.has_ended().unwrap());

            stopped.signal(Signal::SIGCONT as i32).unwrap();
            assert!(stopped.wait(Some(TIMEOUT)).unwrap());
            wait_removed(&directory);
            for name in ["second", "third"] {
                let id = super::id(name);
                assert_keeps_counting(&agent.inspect(&id).unwrap().logs.stdout.unwrap());
                assert_eq!(agent.destroy(&id).await.unwrap().status, Some(9));
            }
            for container in agent.containers() {
                assert_eq!(container.phase, Phase::Ended);
                agent.remove(&container.id).await.unwrap();
            }
            assert_nothing_left(&world, &"in the end");
            agent.shutdown().await;
        });
    }
}

/// A keeper that is stopped and has a container serves it when it is continued, even without an agent.
#[test]
fn a_keeper_that_is_continued_records_how_its_containers_end() {
    for mut world in worlds("a stopped keeper") {
        Runtime::new().unwrap().block_on(async {
            let agent = impatient(&mut world).await;
            let short = request(&world, "short", WAITING);
            agent.launch(short.clone()).await.unwrap();
            let inspection = agent.inspect(&short.id).unwrap();
            wait_for_text(&inspection.logs.stdout.unwrap(), "ready");
            let stopped = current_keeper(&agent);
            stopped.signal(Signal::SIGSTOP as i32).unwrap();
            // Notices that it does not answer.
            agent.launch(request(&world, "other", COUNTING)).await.unwrap();
            stopped.signal(Signal::SIGCONT as i32).unwrap();
            fs::write(inspection.sandbox.join("word"), "word\n").unwrap();
            let ended = agent.wait(&short.id).await.unwrap();
            assert!(ended.status == Some(7 << 8) || ended.message.is_some(), "{ended:?}");
            assert!(stopped.wait(Some(TIMEOUT)).unwrap());
            agent.destroy(&super::id("other")).await.unwrap();
            agent.shutdown().await;
        });
    }
}

#[test]
fn a_keeper_of_another_build_serves_its_containers_until_they_end() {
    for world in worlds("a keeper of another build") {
        let daemon = Daemon::start(&world);
        let short = request(&world, "short", WAITING);
        daemon.launch(&short).unwrap();
        wait_for_text(&stdout(&daemon, &short.id), "ready");
        let fifo = Path::new(&daemon.inspect(&short.id).unwrap().sandbox).join("word");
        let old = daemon.keeper();
        let directory = keeper_of(&world, &short.id);
        daemon.kill();
        let renamed = directory.with_file_name("000000000000-0");
        fs::rename(&directory, &renamed).unwrap();
        rewrite(&world, &short.id, |record| record.part["keeper"]["keeper"] = "000000000000-0".into());

        let daemon = Daemon::start(&world);
        let keepers = daemon.health().keepers.unwrap();
        assert_eq!((keepers.pid, keepers.older, keepers.lost), (Some(daemon.keeper().pid()), 1, 0));
        let counter = request(&world, "counter", COUNTING);
        daemon.launch(&counter).unwrap();
        assert_ne!(keeper_of(&world, &counter.id), renamed);
        assert!(!old.has_ended().unwrap());
        fs::write(fifo, "word\n").unwrap();
        assert_eq!(daemon.wait(&short.id).unwrap().exit_status, Some(7 << 8));
        assert!(old.wait(Some(TIMEOUT)).unwrap());
        wait_removed(&renamed);
        assert_eq!(daemon.health().keepers.unwrap().older, 0);
        end(&daemon, &counter.id);
        daemon.remove(&short.id).unwrap();
        assert_nothing_left(&world, &"in the end");
    }
}

#[test]
fn garbage_on_its_socket_does_not_keep_a_keeper_from_the_next_agent() {
    for world in worlds("a keeper without an agent") {
        let daemon = Daemon::start(&world);
        let web = request(&world, "web", COUNTING);
        daemon.launch(&web).unwrap();
        let log = stdout(&daemon, &web.id);
        let (keeper, socket) = (daemon.keeper(), keeper_of(&world, &web.id).join("socket"));
        let connect = || Connection::open(&socket, TIMEOUT).unwrap();
        // Not accepted before the agent has gone.
        let early = connect();
        daemon.kill();
        for message in [&[0xff; 4096][..], &[0xff; 48], &[1; 20], &[], &[0; 49]] {
            drop(early.raw(message, &[]));
        }
        drop(early);
        let mut hello = [0; 48];
        (hello[0], hello[4]) = (1, 99);
        assert_ne!(connect().raw(&hello, &[]).unwrap().version, 99);
        for _ in 0..50 {
            drop(connect().raw(&hello[..30], &[]));
            drop(connect());
        }
        assert_keeps_counting(&log);

        let daemon = Daemon::start(&world);
        let keepers = daemon.health().keepers.unwrap();
        assert_eq!((keepers.pid, keepers.older, keepers.lost), (Some(keeper.pid()), 0, 0));
        assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9));
        daemon.remove(&web.id).unwrap();
        launch_another(&world, &daemon, "after garbage");
        assert_nothing_left(&world, &"in the end");
    }
}
