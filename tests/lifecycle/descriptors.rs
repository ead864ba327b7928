//! The limit of descriptors (`RLIMIT_NOFILE`), and more containers than descriptors.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use cofferdam_core::model::{ContainerId, Request};
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::world::World;
use cofferdam_tests::{assert_contains, is_root, paths};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::restarts::stdout;
use super::{COUNTING, assert_keeps_counting, assert_nothing_left, id, request, state};

/// More than there are descriptors with the limit of the test below.
const CONTAINERS: usize = 160;
const FEW: u64 = 128;

fn launch_many(world: &World, daemon: &Daemon) -> Vec<ContainerId> {
    let ids: Vec<ContainerId> = (0..CONTAINERS).map(|number| id(&format!("c{number}"))).collect();
    for container in &ids {
        daemon.launch(&request(world, container.as_str(), "exec sleep 100000")).unwrap();
    }
    ids
}

/// The agent waits for events of each, which takes no descriptor of its own table after a while.
#[test]
fn an_agent_with_fewer_descriptors_than_containers_takes_care_of_all_of_them() {
    if !is_root("containers of a restarted agent") {
        return;
    }
    let mut world = World::shipped();
    // `kill --all` needs several requests for so many.
    world.max_body = Some("2 KiB".to_owned());
    let daemon = Daemon::start(&world);
    let ids = launch_many(&world, &daemon);
    daemon.kill();
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let daemon = Daemon::start_with_descriptors(&world, FEW.min(soft));
    for container in &ids {
        assert_eq!(state(&daemon, container).as_deref(), Some("RUNNING"));
    }
    let listed = daemon.list();
    assert!(listed.iter().all(|container| container.failures.is_empty()), "{listed:?}");
    assert!(daemon.descriptors().len() < CONTAINERS, "{:?}", daemon.descriptors());

    // An exit is noticed.
    let pid = daemon.inspect(&ids[0]).unwrap().pid.unwrap();
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(daemon.wait(&ids[0]).unwrap().exit_status, Some(9));
    // A signal is sent.
    let first = Process::open_any(daemon.inspect(&ids[1]).unwrap().pid.unwrap()).unwrap();
    daemon.signal(&ids[1], Signal::SIGUSR1).unwrap();
    assert!(first.wait(Some(TIMEOUT)).unwrap());
    assert_eq!(daemon.wait(&ids[1]).unwrap().exit_status, Some(Signal::SIGUSR1 as i32));
    // Clients that do nothing keep no others away, and a kill needs no more than there is.
    let idle: Vec<UnixStream> = (0..2 * FEW).map(|_| UnixStream::connect(world.socket()).unwrap()).collect();
    let mut kill = Command::new(paths::program());
    let killed = kill.arg("--socket").arg(world.socket()).args(["kill", "--all"]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    assert_eq!(String::from_utf8(killed.stdout).unwrap().lines().count(), CONTAINERS - 2);
    for container in &ids {
        let termination = daemon.wait(container).unwrap();
        if !ids[..2].contains(container) {
            assert_eq!(termination.message.as_deref(), Some("the container was killed"), "{container}");
            assert_eq!(termination.exit_status, Some(9), "{container}");
        }
        daemon.remove(container).unwrap();
    }
    drop(idle);
    let log = daemon.log();
    assert!(!log.contains("Too many open files"), "{log}");
    daemon.terminate();
    assert_nothing_left(&world, &"after all were removed");
}

/// With however few, a launch fails as a whole, or not at all.
#[test]
fn a_launch_without_descriptors_is_refused_and_nothing_else_fails() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    let log = stdout(&daemon, &web.id);
    let new = request(&world, "new", "exec sleep 100000");
    let mut refused = 0;
    for free in 2.. {
        // One of them is for the connection.
        daemon.limit_descriptors(free);
        let Err(error) = daemon.launch(&new) else { break };
        let CallError::Status(500, message) = error else { panic!("{free}: {error:?}") };
        assert_contains(&message, &["`new`", "Too many open files"]);
        assert!(daemon.inspect(&new.id).is_none(), "{free}");
        refused += 1;
        assert!(free < 200, "{message}");
    }
    assert!(refused > 0);
    assert_keeps_counting(&log);
    for container in [&web.id, &new.id] {
        assert_eq!(daemon.destroy(container).unwrap().exit_status, Some(9));
        daemon.remove(container).unwrap();
    }
    assert!(daemon.terminate().success());
    assert_nothing_left(&world, &"in the end");
}

/// How many connections such an agent has, and how many of these may wait.
const CONNECTIONS: usize = 16;
const WAITS: usize = 12;

#[test]
fn clients_that_wait_leave_connections_to_others() {
    let world = World::posix();
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let daemon = Daemon::start_with_descriptors(&world, FEW.min(soft));
    daemon.launch(&Request::shell(id("waited-for"), "exec sleep 100000")).unwrap();
    let body = r#"{"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "waited-for"}}}"#;
    let wait = |_| {
        let mut stream = UnixStream::connect(world.socket()).unwrap();
        let head =
            "POST /api/v1 HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Type: application/json\r\n";
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    };
    let mut waiting: Vec<UnixStream> = (0..CONNECTIONS - 1).map(wait).collect();
    let answer = |mut stream: UnixStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    while waiting.len() > WAITS {
        let mut polled: Vec<_> = waiting.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs().try_into().unwrap(), tv_nsec: 0 };
        assert!(poll(&mut polled, Some(&timeout)).unwrap() > 0, "{}", daemon.log());
        let answered = polled.iter().position(|it| !it.revents().is_empty()).unwrap();
        let answer = answer(waiting.remove(answered));
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("wait for containers"), "{answer}");
    }
    daemon.health();
    daemon.signal(&id("waited-for"), Signal::SIGKILL).unwrap();
    for stream in waiting {
        assert!(answer(stream).starts_with("HTTP/1.1 200 "));
    }
    // Others may wait again.
    assert_eq!(daemon.wait(&id("waited-for")).unwrap().exit_status, Some(9));
    daemon.remove(&id("waited-for")).unwrap();
    daemon.terminate();
    assert_nothing_left(&world, &"after it was removed");
}
