//! The keeper: what it answers, what it refuses, and what it records when the agent has gone.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Instant;

use cofferdam_init::client::{Control, Outcome, RequestError};
use cofferdam_init::plan::flag;
use cofferdam_init::protocol::{MAX_SLOTS, Slot, Spawn, State};
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, Stat};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

use crate::harness::{Answer, Container, Keeper, TIMEOUT, own, pipe, privileged, script_on_host};

/// Replaces the keeper's connection, as when the agent is restarted.
fn reconnect(keeper: &mut Keeper) {
    keeper.disconnect();
    keeper.connection = keeper.connect();
    assert_eq!(keeper.connection.hello(false).unwrap(), keeper.process.pid());
}

fn refusal(error: RequestError) -> i32 {
    match error {
        RequestError::Refused(error) => error.raw_os_error().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The state of a slot once its setup process has ended.
fn final_state(keeper: &Keeper, slot: Slot) -> (State, i32) {
    loop {
        match keeper.connection.collect(slot).unwrap() {
            (State::Exited, _) => std::thread::yield_now(),
            state => return state,
        }
    }
}

#[test]
fn a_keeper_is_alone_in_its_session_and_not_dumpable() {
    let keeper = Keeper::start();
    let pid = keeper.process.pid();
    let stat = Stat::read(pid).unwrap();
    assert_eq!((stat.name.as_str(), stat.session), ("cofferdam-keep", pid));
    if privileged() {
        // Files of a process that is not dumpable belong to root, so the check needs another user.
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
    }
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(descriptors, 9, "three of /dev/null, a listener, a file, a connection, a pipe, signals");
}

/// Without it, nobody records how containers end.
#[test]
fn a_keeper_is_exempt_from_the_out_of_memory_killer_where_that_is_permitted() {
    let score = |pid: &str| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let may_lower = u64::from_str_radix(effective.trim(), 16).unwrap() >> 24 & 1 == 1;
    let own = score("self");
    let keeper = Keeper::start();
    let found = score(&keeper.process.pid().to_string());
    // Otherwise as likely a victim as any other process, but not a more likely one than the agent.
    let expected = if may_lower { [-1000, -1000] } else { [0, own] };
    assert!(expected.contains(&found), "{found}, and {own} of its creator, CAP_SYS_RESOURCE: {may_lower}");
}

#[test]
fn it_has_no_descriptor_for_a_container_and_little_memory() {
    let keeper = Arc::new(Keeper::start());
    let pid = keeper.process.pid();
    let count = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = count();
    let containers: Vec<_> = (0..30)
        .map(|_| {
            let (_, writer) = pipe();
            let keeper = Arc::clone(&keeper);
            let mut container = Container::spawn_with(keeper, Namespaces::EMPTY, File::from(writer));
            assert_eq!(container.release(&script_on_host("exec sleep 1000", 0)), Answer::Runs);
            container
        })
        .collect();
    assert_eq!(count(), before);
    assert_eq!(keeper.connection.count().unwrap(), 30);
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    let kib: usize = pss.trim_end_matches("kB").trim().parse().unwrap();
    assert!(kib <= 1024, "{kib} kB");
    drop(containers);
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let keeper = Keeper::start();
    let null = File::open("/dev/null").unwrap();
    let spawn = Spawn::default();
    let badmsg = 74;
    assert_eq!(refusal(keeper.connection.spawn(spawn, &[]).unwrap_err()), badmsg);
    assert_eq!(refusal(keeper.connection.spawn(spawn, &[null.as_fd(); 5]).unwrap_err()), badmsg);
    let huge = Spawn { plan_descriptors: u32::MAX, early_tasks: u32::MAX, ..spawn };
    assert_eq!(refusal(keeper.connection.spawn(huge, &[null.as_fd(); 4]).unwrap_err()), badmsg);
    for slot in [
        Slot::default(),
        Slot { index: 0, generation: 1 },
        Slot { index: MAX_SLOTS as u32, generation: 0 },
        Slot { index: u32::MAX, generation: u32::MAX },
    ] {
        assert_eq!(refusal(keeper.connection.collect(slot).unwrap_err()), 3, "{slot:?}");
        assert_eq!(refusal(keeper.connection.forget(slot).unwrap_err()), 3, "{slot:?}");
    }
    for length in [1, 47, 48, 49, 4096] {
        let request = vec![0xff; length];
        let answer = keeper.connection.raw(&request, &[null.as_fd(); 3]);
        match length {
            48 => assert_eq!(answer.unwrap().errno, 38, "of an unknown kind"),
            _ => assert_eq!(answer.unwrap().errno, badmsg, "{length}"),
        }
    }
    assert_eq!(keeper.connection.count().unwrap(), 0);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", keeper.process.pid())).unwrap().count();
    assert_eq!(descriptors, 9, "descriptors of a refused request are kept");
}

#[test]
fn a_slot_is_used_again_with_another_generation() {
    let keeper = Arc::new(Keeper::start());
    let run = |script: &str| {
        let (_, writer) = pipe();
        let mut container = Container::spawn_with(Arc::clone(&keeper), Namespaces::EMPTY, File::from(writer));
        assert_eq!(container.release(&script_on_host(script, 0)), Answer::Runs);
        container.process.wait(None).unwrap();
        (container.slot, final_state(&keeper, container.slot))
    };
    let (first, status) = run("exit 3");
    assert_eq!(status, (State::Ended, 3 << 8));
    let (second, status) = run("exit 4");
    assert_eq!(status, (State::Ended, 4 << 8));
    assert_ne!(first.index, second.index, "the status was not forgotten");
    keeper.connection.forget(first).unwrap();
    assert_eq!(refusal(keeper.connection.collect(first).unwrap_err()), 3);
    assert_eq!(keeper.statuses.all().unwrap().len(), 1);
    let (third, status) = run("exit 5");
    assert_eq!((third.index, status), (first.index, (State::Ended, 5 << 8)));
    assert_ne!(third.generation, first.generation);
    assert_eq!(keeper.statuses.read(first).unwrap(), None);
}

#[test]
fn a_forgotten_container_is_on_record_no_more_and_its_slot_is_used_until_it_ends() {
    let keeper = Arc::new(Keeper::start());
    let spawn = || {
        let (_, writer) = pipe();
        let keeper = Arc::clone(&keeper);
        let mut container = Container::spawn_with(keeper, Namespaces::EMPTY, File::from(writer));
        assert_eq!(container.release(&script_on_host("exec sleep 1000", 0)), Answer::Runs);
        container
    };
    let forgotten = spawn();
    keeper.connection.forget(forgotten.slot).unwrap();
    assert_eq!(keeper.statuses.all().unwrap(), []);
    let other = spawn();
    assert_ne!(other.slot.index, forgotten.slot.index);
    assert_eq!(keeper.connection.count().unwrap(), 2);
    forgotten.process.kill().unwrap();
    forgotten.process.wait(None).unwrap();
    assert_eq!(refusal(keeper.connection.collect(forgotten.slot).unwrap_err()), 3);
    let recorded = keeper.statuses.all().unwrap();
    assert_eq!(recorded.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [other.slot]);
}

#[test]
fn statuses_are_kept_for_the_next_agent() {
    let mut keeper = Keeper::start_with(false);
    let (reader, writer) = pipe();
    // Its end is the only thing that the first agent does not live to see.
    let (slot, process) = {
        let (mut control, theirs) = Control::pair().unwrap();
        let stdin = reader.as_fd();
        let null = File::options().write(true).open("/dev/null").unwrap();
        let descriptors = [stdin, null.as_fd(), null.as_fd(), theirs.as_fd()];
        let spawned =
            keeper.connection.spawn(Spawn { stays: true, ..Spawn::default() }, &descriptors).unwrap();
        drop(theirs);
        let deadline = Instant::now() + TIMEOUT;
        let plan = script_on_host("read line; exit 7", 0).encode().unwrap();
        control.send_plan(&plan, deadline).unwrap();
        assert!(matches!(control.outcome(deadline).unwrap(), Outcome::Started { .. }));
        (spawned.slot, Process::from_spawned(spawned.pid, spawned.pidfd))
    };
    reconnect(&mut keeper);
    assert_eq!(keeper.connection.collect(slot).unwrap(), (State::Running, 0));
    reconnect(&mut keeper);
    drop(writer);
    assert!(process.wait(Some(TIMEOUT)).unwrap());
    assert_eq!(final_state(&keeper, slot), (State::Ended, 7 << 8));
    // Without an agent and without a container, it has nothing to keep that is not in the file.
    keeper.disconnect();
    assert!(keeper.process.wait(Some(TIMEOUT)).unwrap());
    let entry = keeper.statuses.read(slot).unwrap().unwrap();
    assert_eq!((entry.state, entry.status), (State::Ended, 7 << 8));
}

#[test]
fn everything_ends_with_the_agent_if_requested() {
    if !privileged() {
        return;
    }
    for (clone, flags) in [(Namespaces::EMPTY, 0), (own(), flag::REAPER | flag::MOUNT_NAMESPACE)] {
        // The writing end is open in every process of the container.
        let (output, writer) = pipe();
        let mut container = Container::spawn_with(Arc::new(Keeper::start()), clone, File::from(writer));
        let script = "(sleep 1000 & sleep 1000) & echo ready; wait";
        assert_eq!(container.release(&script_on_host(script, flags)), Answer::Runs);
        container.close_output();
        let mut output = File::from(output);
        output.read_exact(&mut [0; 6]).unwrap();
        container.keeper.disconnect();
        assert!(container.keeper.process.wait(Some(TIMEOUT)).unwrap());
        assert!(container.process.has_ended().unwrap());
        assert_eq!(output.read(&mut [0]).unwrap(), 0, "a process of the container is left");
    }
}

/// The mode of its directory keeps other users out; the keeper does not depend on that.
#[test]
fn another_user_is_refused() {
    if !privileged() {
        return;
    }
    let keeper = Arc::new(Keeper::start_with(false));
    let (_, writer) = pipe();
    let mut container = Container::spawn_with(Arc::clone(&keeper), Namespaces::EMPTY, File::from(writer));
    assert_eq!(container.release(&script_on_host("exec sleep 1000", 0)), Answer::Runs);
    let socket = keeper.directory.path().join("socket");
    for (path, mode) in [(keeper.directory.path(), 0o755), (&socket, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    keeper.disconnect();
    let refused = std::thread::scope(|scope| {
        let as_another_user = || {
            let user = Uid::from_raw(1234);
            // Of this thread alone.
            set_thread_res_uid(user, user, user).unwrap();
            keeper.connect().hello(true)
        };
        scope.spawn(as_another_user).join().unwrap()
    });
    assert!(matches!(refused, Err(RequestError::Connection(_))), "{refused:?}");
    assert!(!container.process.has_ended().unwrap());
    assert_eq!(keeper.connect().hello(false).unwrap(), keeper.process.pid());
}

#[test]
fn garbage_without_an_agent_changes_nothing() {
    let keeper = Arc::new(Keeper::start_with(false));
    let (_, writer) = pipe();
    let mut container = Container::spawn_with(Arc::clone(&keeper), Namespaces::EMPTY, File::from(writer));
    assert_eq!(container.release(&script_on_host("exec sleep 1000", 0)), Answer::Runs);
    // It is accepted when the agent has gone.
    let early = keeper.connect();
    keeper.disconnect();
    drop(early.raw(&[0xff; 48], &[]));
    drop(early);
    for message in [&[1; 47][..], &[1; 49], &[0; 4096], &[]] {
        // The answer does not matter, and an empty message has none.
        drop(keeper.connect().raw(message, &[]));
    }
    for _ in 0..50 {
        // Closed before it is accepted.
        drop(keeper.connect());
    }
    let agent = keeper.connect();
    assert_eq!(agent.hello(false).unwrap(), keeper.process.pid());
    assert_eq!(agent.collect(container.slot).unwrap(), (State::Running, 0));
    assert_eq!(agent.count().unwrap(), 1);
}

/// A setup process is stopped: the others are not delayed.
#[test]
fn a_stopped_setup_process_delays_nobody() {
    let keeper = Arc::new(Keeper::start());
    let spawn = || {
        let (_, writer) = pipe();
        Container::spawn_with(Arc::clone(&keeper), Namespaces::EMPTY, File::from(writer))
    };
    let mut stopped = spawn();
    assert!(stopped.control.wait_until_ready(Instant::now() + TIMEOUT));
    stopped.process.signal(19).unwrap();
    let plan = script_on_host("true", 0).encode().unwrap();
    stopped.control.send_plan(&plan, Instant::now() + TIMEOUT).unwrap();
    for _ in 0..3 {
        let mut other = spawn();
        assert_eq!(other.release(&script_on_host("exit 2", 0)), Answer::Runs);
        other.process.wait(None).unwrap();
        assert_eq!(final_state(&keeper, other.slot), (State::Ended, 2 << 8));
    }
    let at_once = stopped.control.outcome(Instant::now()).unwrap();
    assert!(matches!(at_once, Outcome::TimedOut), "{at_once:?}");
    stopped.process.kill().unwrap();
    assert!(matches!(stopped.control.outcome(Instant::now() + TIMEOUT).unwrap(), Outcome::Ended));
    // The connection ends a moment before the process.
    stopped.process.wait(None).unwrap();
    assert_eq!(keeper.connection.collect(stopped.slot).unwrap(), (State::NotStarted, 0));
}

/// Many end at once: the kernel signals one of them.
#[test]
fn ends_at_the_same_time_are_all_recorded() {
    let keeper = Arc::new(Keeper::start_with(false));
    let containers: Vec<_> = (0..20)
        .map(|number| {
            let (_, writer) = pipe();
            let mut container =
                Container::spawn_with(Arc::clone(&keeper), Namespaces::EMPTY, File::from(writer));
            let script = format!("trap 'exit {number}' TERM; while :; do sleep 1000 & wait; done");
            assert_eq!(container.release(&script_on_host(&script, 0)), Answer::Runs);
            container
        })
        .collect();
    containers.iter().for_each(|container| container.process.signal(15).unwrap());
    containers.iter().for_each(|container| {
        container.process.wait(None).unwrap();
    });
    // From the file, which the keeper writes without being asked.
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let ended = keeper.statuses.all().unwrap();
        let ended = ended.iter().filter(|(_, entry)| entry.state == State::Ended).count();
        if ended == containers.len() {
            break;
        }
        assert!(Instant::now() < deadline, "{ended} are recorded");
        std::thread::yield_now();
    }
    for (number, container) in containers.iter().enumerate() {
        let status = i32::try_from(number).unwrap() << 8;
        let entry = keeper.statuses.read(container.slot).unwrap().unwrap();
        // A shell that is signalled before its trap is set is killed.
        assert!(entry.status == status || entry.status == 15, "{number}: {entry:?}");
    }
}
