//! What a new agent does with the containers that it finds.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam::api::operator::types::Reason;
use cofferdam_core::keeper::KeeperSlot;
use cofferdam_core::ledger::Ledger;
use cofferdam_core::model::{ContainerId, ProcessId, Record};
use cofferdam_init::client::Statuses;
use cofferdam_init::protocol::{Entry, Slot, State};
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::injector::{Effect, Fault};
use cofferdam_tests::world::World;
use cofferdam_tests::{is_root, watch};
use nix::sys::signal::Signal;

use super::{COUNTING, MAX_STEPS, assert_keeps_counting, assert_nothing_left, id, request, state};

/// A container's standard output.
pub(super) fn stdout(daemon: &Daemon, id: &ContainerId) -> PathBuf {
    PathBuf::from(daemon.inspect(id).unwrap().stdout.unwrap())
}

/// Destroys a container and removes it.
pub(super) fn end(daemon: &Daemon, id: &ContainerId) {
    daemon.destroy(id).unwrap();
    daemon.remove(id).unwrap();
}

#[test]
fn containers_are_not_affected_when_their_agent_is_killed_or_stops() {
    if !is_root("containers without an agent") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let counter = request(&world, "counter", COUNTING);
    let short = request(&world, "short", "mkfifo word && echo ready && read word < word; exit 3");
    daemon.launch(&counter).unwrap();
    daemon.launch(&short).unwrap();
    let (counting, waiting) = (daemon.inspect(&counter.id).unwrap(), daemon.inspect(&short.id).unwrap());
    let (pid, log) = (counting.pid, stdout(&daemon, &counter.id));
    cofferdam_tests::wait_for_text(&stdout(&daemon, &short.id), "ready");
    let first = Process::open_any(waiting.pid.unwrap()).unwrap();
    let fifo = Path::new(&waiting.sandbox).join("word");

    // Without an agent, one container keeps running and the other ends.
    daemon.kill();
    assert_keeps_counting(&log);
    fs::write(&fifo, "word\n").unwrap();
    assert!(first.wait(Some(TIMEOUT)).unwrap(), "it does not end without an agent");

    let daemon = Daemon::start(&world);
    assert_eq!(daemon.wait(&short.id).unwrap().exit_status, Some(3 << 8));
    daemon.remove(&short.id).unwrap();
    let found = daemon.inspect(&counter.id).unwrap();
    assert_eq!((found.state.as_str(), found.pid), ("RUNNING", pid));
    assert_keeps_counting(&log);

    // The agent stops, its containers do not.
    assert!(daemon.terminate().success());
    assert_keeps_counting(&log);
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.inspect(&counter.id).unwrap().pid, pid);
    assert_keeps_counting(&log);

    // The new agent can signal, await and remove the container.
    daemon.signal(&counter.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&counter.id).unwrap().exit_status, Some(Signal::SIGTERM as i32));
    daemon.remove(&counter.id).unwrap();
    assert_nothing_left(&world, &"in the end");
}

/// Changes the record of a container while no agent is running.
pub(super) fn rewrite(world: &World, id: &ContainerId, change: impl FnOnce(&mut Record)) {
    let ledger = Ledger::open(&world.config.runtime_dir).unwrap();
    let entries = ledger.entries().unwrap();
    let record = entries.into_iter().find(|entry| entry.id == *id).unwrap().record.unwrap();
    let mut record = record.try_map_part(|part| serde_json::from_str(part.get())).unwrap();
    change(&mut record);
    ledger.write(&record).unwrap();
}

#[test]
fn after_a_reboot_containers_have_ended_and_other_processes_are_not_killed() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", "exit 0");
    daemon.launch(&web).unwrap();
    daemon.wait(&web.id).unwrap();
    daemon.kill();
    // After the reboot, another process has the same pid and start time.
    let mut other = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let process = Process::open_any(i32::try_from(other.id()).unwrap()).unwrap();
    rewrite(&world, &web.id, |record| {
        record.phase = cofferdam_core::model::Phase::Running;
        record.termination = None;
        record.boot_id = "00000000-0000-0000-0000-000000000000".into();
        record.process = Some(ProcessId { pid: process.pid(), start_time: process.start_time() });
    });

    let daemon = Daemon::start(&world);
    let ended = daemon.wait(&web.id).unwrap();
    assert_eq!(ended.reason, Some(Reason::ReasonAgentRestarted), "{ended:?}");
    assert!(!process.has_ended().unwrap(), "another process was killed");
    daemon.remove(&web.id).unwrap();
    assert_nothing_left(&world, &"after the reboot");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Writes what a keeper leaves behind when its last process has ended.
fn write_status(world: &World, status: i32) -> KeeperSlot {
    let keeper = "of-an-earlier-agent".to_owned();
    let directory = world.config.runtime_dir.join("keepers").join(&keeper);
    fs::create_dir(&directory).unwrap();
    drop(Statuses::create(&directory.join("statuses")).unwrap());
    let slot = Slot { index: 3, generation: 5 };
    let entry = Entry { generation: slot.generation, pid: 0, status, state: State::Ended };
    let file = File::options().write(true).open(directory.join("statuses")).unwrap();
    file.write_all_at(&entry.encode(), Entry::offset(slot.index)).unwrap();
    KeeperSlot { keeper, slot }
}

#[test]
fn a_process_that_reuses_the_pid_is_not_killed() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", "exit 3");
    daemon.launch(&web).unwrap();
    daemon.wait(&web.id).unwrap();
    daemon.kill();
    let mut other = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let process = Process::open_any(i32::try_from(other.id()).unwrap()).unwrap();
    for phase in [cofferdam_core::model::Phase::Running, cofferdam_core::model::Phase::Destroying] {
        // The command has ended, and no agent has recorded that: it is in the file of the keeper.
        let slot = write_status(&world, 3 << 8);
        rewrite(&world, &web.id, |record| {
            record.phase = phase;
            record.termination = None;
            let start_time = process.start_time() - 1;
            record.process = Some(ProcessId { pid: process.pid(), start_time });
            record.part["keeper"] = serde_json::to_value(&slot).unwrap();
        });
        let daemon = Daemon::start(&world);
        assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(3 << 8), "its status is on disk");
        assert!(!process.has_ended().unwrap(), "another process was killed");
        daemon.kill();
    }
    let daemon = Daemon::start(&world);
    daemon.remove(&web.id).unwrap();
    assert_nothing_left(&world, &"in the end");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn after_a_reboot_emptied_the_runtime_directory_scratch_is_removed_and_logs_are_kept() {
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
fn damaged_records_end_their_own_containers_and_no_others() {
    if !is_root("containers that are destroyed by id") {
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
        assert!(process.has_ended().unwrap(), "`{name}` is still running");
        daemon.remove(&id(name)).unwrap();
    }
    assert_eq!(state(&daemon, &good.id).as_deref(), Some("RUNNING"));
    assert_keeps_counting(&log);
    end(&daemon, &good.id);
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

    // Not even with the same container id or after a restart.
    let theirs = request(&there, "web", COUNTING);
    right.launch(&theirs).unwrap();
    end(&right, &theirs.id);
    right.kill();
    let right = Daemon::start(&there);
    assert_eq!(right.list().len(), 0);
    assert_nothing_left(&there, &"beside another agent");
    assert_keeps_counting(&stdout(&left, &mine.id));
    end(&left, &mine.id);
    assert_nothing_left(&here, &"in the end");
}

#[test]
fn two_agents_cannot_share_a_directory() {
    let (here, mut there) = (World::posix(), World::posix());
    let daemon = Daemon::start(&here);
    let web = request(&here, "web", COUNTING);
    daemon.launch(&web).unwrap();
    let (mut second, serves) = Daemon::try_start(&here);
    assert!(!serves && !second.wait_ended().success(), "two agents share a runtime directory");
    there.config.work_dir.clone_from(&here.config.work_dir);
    let (mut third, serves) = Daemon::try_start(&there);
    assert!(!serves && !third.wait_ended().success(), "two agents share a work directory");
    assert_keeps_counting(&stdout(&daemon, &web.id));
    end(&daemon, &web.id);
}

/// The agent is killed at each step of its start, in which it recovers a running container, undoes a launch, and leaves
/// an ended container as it is.
#[test]
fn an_agent_killed_anywhere_in_its_recovery_is_followed_by_one_that_recovers() {
    if !is_root("a recovery") {
        return;
    }
    let world = World::shipped();
    let (mut daemon, mut injector) = Daemon::start_with_injector(&world);
    let runs = request(&world, "runs", COUNTING);
    let ended = request(&world, "ended", "exit 3");
    let half = request(&world, "half", COUNTING);
    daemon.launch(&runs).unwrap();
    daemon.launch(&ended).unwrap();
    daemon.wait(&ended.id).unwrap();
    let pid = daemon.inspect(&runs.id).unwrap().pid;
    let log = stdout(&daemon, &runs.id);
    // At the first effect of an init, everything of the container exists, and its command does not run yet.
    injector.arm(Fault::Fail, &[]);
    daemon.launch(&half).unwrap();
    let effects = injector.disarm().effects;
    let middle = 1 + effects.iter().position(Effect::is_by_init).unwrap();
    end(&daemon, &half.id);
    for step in 1..MAX_STEPS {
        injector.arm(Fault::Kill, &[middle]);
        assert!(daemon.launch(&half).unwrap_err().is_disconnected());
        daemon.wait_ended();

        let (mut next, armed, serves) =
            Daemon::try_start_armed(&world, |injector| injector.arm(Fault::Kill, &[step]));
        if serves {
            // It may be killed while it undoes the launch, or not at all.
            drop(next.wait(&half.id));
        }
        let hit = armed.disarm().hit;
        (daemon, injector) = if hit.is_empty() {
            (next, armed)
        } else {
            next.wait_ended();
            Daemon::start_with_injector(&world)
        };
        let when = format!("step {step}: {:?}", hit.first().map(ToString::to_string));
        let undone = daemon.wait(&half.id).unwrap();
        assert_eq!(undone.exit_status, None, "{when}");
        daemon.remove(&half.id).unwrap();
        assert_eq!(daemon.wait(&ended.id).unwrap().exit_status, Some(3 << 8), "{when}");
        let found = daemon.inspect(&runs.id).unwrap();
        assert_eq!((found.state.as_str(), found.pid), ("RUNNING", pid), "{when}");
        assert_keeps_counting(&log);
        if hit.is_empty() {
            eprintln!("{step} steps");
            end(&daemon, &runs.id);
            daemon.remove(&ended.id).unwrap();
            assert_nothing_left(&world, &"in the end");
            return;
        }
    }
    panic!("a recovery has more than {MAX_STEPS} steps");
}

/// Processes are found by their cgroups, so the path of these must not change while there are any.
#[test]
fn another_cgroup_root_is_used_when_no_process_is_left_below_the_old_one() {
    if !is_root("cgroups") {
        return;
    }
    let mut world = World::shipped();
    let old = world.config.cgroup_root.clone();
    let new = old.join("moved");
    let daemon = Daemon::start(&world);
    // No pid namespace ends its processes.
    let mut web = request(&world, "web", "sleep 100000 & echo $!; exec sleep 100000");
    web.rootfs = None;
    web.linux.share_pid_namespace = true;
    daemon.launch(&web).unwrap();
    let text = watch::content(&stdout(&daemon, &web.id), TIMEOUT, |text| text.ends_with('\n'));
    let background = Process::open_any(text.trim().parse().unwrap()).unwrap();
    daemon.kill();

    world.config.cgroup_root.clone_from(&new);
    let daemon = Daemon::start(&world);
    let log = daemon.log();
    assert!(log.contains(&format!("`cgroup_root` stays `{}`", old.display())), "{log}");
    assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9));
    assert!(background.has_ended().unwrap(), "a process is left in the old cgroup");
    daemon.remove(&web.id).unwrap();
    assert_nothing_left(&world, &"below the old root");
    // Its keeper ends with it, as there is no container.
    assert!(daemon.terminate().success());

    let daemon = Daemon::start(&world);
    let counter = request(&world, "counter", COUNTING);
    daemon.launch(&counter).unwrap();
    let pid = daemon.inspect(&counter.id).unwrap().pid.unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let below = |root: &Path| format!("/{}/{}/", root.display(), world.instance());
    assert!(cgroups.contains(&below(&new)) && !cgroups.contains(&below(&old)), "{cgroups}");
    let remaining = world.cgroups();
    assert!(remaining.is_empty(), "{remaining:?}");
    end(&daemon, &counter.id);
    assert!(daemon.terminate().success());
    let Cgroups { legacy, unified } = Cgroups::detect().unwrap();
    for hierarchy in legacy.iter().chain(&unified) {
        // The agent leaves the parent of its own cgroup, as another agent may use it.
        let moved = hierarchy.mount.join(&new);
        assert!(!moved.exists() || fs::remove_dir(&moved).is_ok(), "{}", moved.display());
    }
}
