//! The limit of descriptors (`RLIMIT_NOFILE`), and more containers than descriptors.

use std::os::unix::net::UnixStream;
use std::process::Command;

use cofferdam_core::model::ContainerId;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::World;
use cofferdam_tests::{is_root, paths};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{assert_nothing_left, id, request, state};

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
