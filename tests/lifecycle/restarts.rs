//! What a new agent makes of what it finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam::api::operator::types::Reason;
use cofferdam_core::ledger::Ledger;
use cofferdam_core::model::{ContainerId, ProcessId, Record};
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::injector::{Effect, Fault};
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;
use nix::sys::signal::Signal;

use super::{COUNTING, ENDLESS, assert_nothing_left, counts_on, id, request, state};

/// A container's standard output.
fn stdout(daemon: &Daemon, id: &ContainerId) -> PathBuf {
    PathBuf::from(daemon.inspect(id).unwrap().stdout.unwrap())
}

/// Ends a container and forgets it.
fn end(daemon: &Daemon, id: &ContainerId) {
    daemon.destroy(id).unwrap();
    daemon.remove(id).unwrap();
}

#[test]
fn containers_do_not_notice_that_their_agent_dies_or_stops() {
    if !is_root("containers without an agent") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let counter = request(&world, "counter", COUNTING);
    let brief = request(&world, "brief", "mkfifo word && echo ready && read word < word; exit 3");
    daemon.launch(&counter).unwrap();
    daemon.launch(&brief).unwrap();
    let (counting, waiting) = (daemon.inspect(&counter.id).unwrap(), daemon.inspect(&brief.id).unwrap());
    let (pid, log) = (counting.pid, stdout(&daemon, &counter.id));
    cofferdam_tests::wait_for_text(&stdout(&daemon, &brief.id), "ready");
    let first = Process::open_any(waiting.pid.unwrap()).unwrap();
    let fifo = Path::new(&waiting.sandbox).join("word");

    // Nobody is there: one counts on, the other ends.
    daemon.kill();
    counts_on(&log);
    fs::write(&fifo, "word\n").unwrap();
    assert!(first.wait(Some(TIMEOUT)).unwrap(), "it needs its agent to end");

    let daemon = Daemon::start(&world);
    assert_eq!(daemon.wait(&brief.id).unwrap().exit_status, Some(3 << 8));
    daemon.remove(&brief.id).unwrap();
    let found = daemon.inspect(&counter.id).unwrap();
    assert_eq!((found.state.as_str(), found.pid), ("RUNNING", pid));
    counts_on(&log);

    // Asked to stop, it stops, and its containers do not.
    assert!(daemon.terminate().success());
    counts_on(&log);
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.inspect(&counter.id).unwrap().pid, pid);
    counts_on(&log);

    // The agent that came after can do what the first could.
    daemon.signal(&counter.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&counter.id).unwrap().exit_status, Some(Signal::SIGTERM as i32));
    daemon.remove(&counter.id).unwrap();
    assert_nothing_left(&world, &"in the end");
}

/// Changes the record of a container of which no agent is in charge.
fn rewrite(world: &World, id: &ContainerId, change: impl FnOnce(&mut Record)) {
    let ledger = Ledger::open(&world.config.runtime_dir).unwrap();
    let entries = ledger.entries().unwrap();
    let mut record = entries.into_iter().find(|entry| entry.id == *id).unwrap().record.unwrap();
    change(&mut record);
    ledger.write(&record).unwrap();
}

#[test]
fn after_a_reboot_containers_have_ended_and_strangers_are_left_alone() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", "exit 0");
    daemon.launch(&web).unwrap();
    daemon.wait(&web.id).unwrap();
    daemon.kill();
    // After the reboot, its number is that of somebody else, who happens to be as old.
    let mut stranger = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let process = Process::open_any(i32::try_from(stranger.id()).unwrap()).unwrap();
    rewrite(&world, &web.id, |record| {
        record.phase = cofferdam_core::model::Phase::Running;
        record.termination = None;
        record.boot_id = "00000000-0000-0000-0000-000000000000".into();
        record.process = Some(ProcessId { pid: process.pid(), start_time: process.start_time() });
    });

    let daemon = Daemon::start(&world);
    let ended = daemon.wait(&web.id).unwrap();
    assert_eq!(ended.reason, Some(Reason::ReasonAgentRestarted), "{ended:?}");
    assert!(!process.has_ended().unwrap(), "a stranger was killed");
    daemon.remove(&web.id).unwrap();
    assert_nothing_left(&world, &"after the reboot");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_number_that_belongs_to_somebody_else_by_now_is_left_alone() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", "exit 3");
    daemon.launch(&web).unwrap();
    daemon.wait(&web.id).unwrap();
    daemon.kill();
    let mut stranger = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let process = Process::open_any(i32::try_from(stranger.id()).unwrap()).unwrap();
    for phase in [cofferdam_core::model::Phase::Running, cofferdam_core::model::Phase::Destroying] {
        rewrite(&world, &web.id, |record| {
            record.phase = phase;
            record.termination = None;
            let start_time = process.start_time() - 1;
            record.process = Some(ProcessId { pid: process.pid(), start_time });
        });
        let daemon = Daemon::start(&world);
        assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(3 << 8), "its status is on disk");
        assert!(!process.has_ended().unwrap(), "a stranger was killed");
        daemon.kill();
    }
    let daemon = Daemon::start(&world);
    daemon.remove(&web.id).unwrap();
    assert_nothing_left(&world, &"in the end");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_runtime_directory_that_a_reboot_emptied_leaves_no_scratch_and_keeps_logs() {
    if !is_root("a container with scratch") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", "echo words; exit 0");
    daemon.launch(&web).unwrap();
    daemon.wait(&web.id).unwrap();
    let log = stdout(&daemon, &web.id);
    daemon.kill();
    fs::remove_dir_all(&world.config.runtime_dir).unwrap();
    let scratch = world.config.work_dir.join("scratch/containers/web/upper");
    fs::create_dir_all(&scratch).unwrap();

    let daemon = Daemon::start(&world);
    assert!(!scratch.exists());
    assert_eq!(state(&daemon, &web.id).as_deref(), Some("ENDED"));
    assert_eq!(fs::read_to_string(log).unwrap(), "words\n");
    daemon.remove(&web.id).unwrap();
    assert_nothing_left(&world, &"after the reboot");
}

#[test]
fn records_that_are_damaged_cost_their_own_containers_and_no_others() {
    if !is_root("containers that are undone by name") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let good = request(&world, "good", COUNTING);
    daemon.launch(&good).unwrap();
    let log = stdout(&daemon, &good.id);
    type Damage = fn(&Path, &[u8]);
    let damages: [(&str, Damage); 4] = [
        ("empty", |path, _| fs::write(path, "").unwrap()),
        ("torn", |path, bytes| fs::write(path, &bytes[..bytes.len() / 2]).unwrap()),
        ("garbage", |path, _| fs::write(path, [0, 159, 146, 150, b'\n']).unwrap()),
        ("missing", |path, _| fs::remove_file(path).unwrap()),
    ];
    let mut processes = Vec::new();
    for (name, _) in &damages {
        let bad = request(&world, name, COUNTING);
        daemon.launch(&bad).unwrap();
        processes.push(Process::open_any(daemon.inspect(&bad.id).unwrap().pid.unwrap()).unwrap());
    }
    daemon.kill();
    for (name, damage) in &damages {
        let path = world.config.runtime_dir.join("containers").join(name).join("record");
        let bytes = fs::read(&path).unwrap();
        damage(&path, &bytes);
    }

    let daemon = Daemon::start(&world);
    for ((name, _), process) in damages.iter().zip(&processes) {
        let ended = daemon.wait(&id(name)).unwrap();
        assert!(ended.message.as_ref().is_some_and(|text| text.contains(name)), "{ended:?}");
        assert!(process.has_ended().unwrap(), "`{name}` outlived its record");
        daemon.remove(&id(name)).unwrap();
    }
    assert_eq!(state(&daemon, &good.id).as_deref(), Some("RUNNING"));
    counts_on(&log);
    end(&daemon, &good.id);
    assert_nothing_left(&world, &"in the end");
}

/// A record of a newer agent says that its container is well, in words that this one does not know.
#[test]
fn a_record_of_a_newer_agent_keeps_this_one_from_starting_and_its_container_alive() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    let log = stdout(&daemon, &web.id);
    daemon.kill();
    let path = world.config.runtime_dir.join("containers/web/record");
    let bytes = fs::read(&path).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let (version, rest) = text.strip_prefix("cofferdam-record ").unwrap().split_once(' ').unwrap();
    let newer = version.parse::<u32>().unwrap() + 1;
    fs::write(&path, format!("cofferdam-record {newer} {rest}")).unwrap();

    let (mut daemon, serves) = Daemon::try_start(&world);
    assert!(!serves, "it started:\n{}", daemon.log());
    assert!(!daemon.gone().success());
    counts_on(&log);
    fs::write(&path, bytes).unwrap();
    let daemon = Daemon::start(&world);
    assert_eq!(state(&daemon, &web.id).as_deref(), Some("RUNNING"));
    end(&daemon, &web.id);
    assert_nothing_left(&world, &"in the end");
}

#[test]
fn two_agents_do_not_see_each_others_containers() {
    if !is_root("two agents with control groups") {
        return;
    }
    let (here, there) = (World::shipped(), World::shipped());
    let (left, right) = (Daemon::start(&here), Daemon::start(&there));
    let mine = request(&here, "web", COUNTING);
    left.launch(&mine).unwrap();
    assert_eq!(state(&right, &mine.id), None);
    assert!(right.destroy(&mine.id).unwrap_err().is_unknown());

    // Neither a container of the same name nor a new agent makes a difference.
    let theirs = request(&there, "web", COUNTING);
    right.launch(&theirs).unwrap();
    end(&right, &theirs.id);
    right.kill();
    let right = Daemon::start(&there);
    assert_eq!(right.list().len(), 0);
    assert_nothing_left(&there, &"beside another agent");
    counts_on(&stdout(&left, &mine.id));
    end(&left, &mine.id);
    assert_nothing_left(&here, &"in the end");
}

#[test]
fn an_agent_is_alone_in_its_directories() {
    let (here, mut there) = (World::posix(), World::posix());
    let daemon = Daemon::start(&here);
    let web = request(&here, "web", COUNTING);
    daemon.launch(&web).unwrap();
    let (mut second, serves) = Daemon::try_start(&here);
    assert!(!serves && !second.gone().success(), "two agents share a runtime directory");
    there.config.work_dir.clone_from(&here.config.work_dir);
    let (mut third, serves) = Daemon::try_start(&there);
    assert!(!serves && !third.gone().success(), "two agents share a work directory");
    counts_on(&stdout(&daemon, &web.id));
    end(&daemon, &web.id);
}

/// The agent is killed at each step of its start, in which it has one container to take over, one to undo that
/// was being launched, and one to leave as it is.
#[test]
fn an_agent_killed_anywhere_in_its_recovery_is_followed_by_one_that_recovers() {
    if !is_root("a recovery") {
        return;
    }
    let world = World::shipped();
    let (mut daemon, mut injector) = Daemon::start_watched(&world);
    let runs = request(&world, "runs", COUNTING);
    let ended = request(&world, "ended", "exit 3");
    let half = request(&world, "half", COUNTING);
    daemon.launch(&runs).unwrap();
    daemon.launch(&ended).unwrap();
    daemon.wait(&ended.id).unwrap();
    let pid = daemon.inspect(&runs.id).unwrap().pid;
    let log = stdout(&daemon, &runs.id);
    // The first effect of an init is in the middle of a launch: everything is there, and nothing runs.
    injector.arm(Fault::Fail, &[]);
    daemon.launch(&half).unwrap();
    let effects = injector.disarm().effects;
    let middle = 1 + effects.iter().position(Effect::is_inits).unwrap();
    end(&daemon, &half.id);
    for step in 1..ENDLESS {
        injector.arm(Fault::Kill, &[middle]);
        assert!(daemon.launch(&half).unwrap_err().is_broken());
        daemon.gone();

        let (mut next, doom, serves) =
            Daemon::start_doomed(&world, |injector| injector.arm(Fault::Kill, &[step]));
        if serves {
            // It may die while it undoes what it found, or not at all.
            drop(next.wait(&half.id));
        }
        let struck = doom.disarm().struck;
        (daemon, injector) = if struck.is_empty() {
            (next, doom)
        } else {
            next.gone();
            Daemon::start_watched(&world)
        };
        let when = format!("step {step}: {:?}", struck.first().map(ToString::to_string));
        let undone = daemon.wait(&half.id).unwrap();
        assert_eq!(undone.exit_status, None, "{when}");
        daemon.remove(&half.id).unwrap();
        assert_eq!(daemon.wait(&ended.id).unwrap().exit_status, Some(3 << 8), "{when}");
        let found = daemon.inspect(&runs.id).unwrap();
        assert_eq!((found.state.as_str(), found.pid), ("RUNNING", pid), "{when}");
        counts_on(&log);
        if struck.is_empty() {
            eprintln!("{step} steps");
            end(&daemon, &runs.id);
            daemon.remove(&ended.id).unwrap();
            assert_nothing_left(&world, &"in the end");
            return;
        }
    }
    panic!("no recovery comes to its end");
}
