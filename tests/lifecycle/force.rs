//! The forced end of a container whose plugin does not clean up.

use std::fs;
use std::process::Command;

use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::world::World;
use cofferdam_tests::{assert_contains, is_root, paths};

use super::{COUNTING, assert_nothing_left, id, request, state};

#[test]
fn the_end_of_a_container_is_forced_and_its_cleanup_performed_when_the_plugin_is_back() {
    if !is_root("cgroups") {
        return;
    }
    let mut world = World::shipped();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    daemon.launch(&request(&world, "web.nested", COUNTING)).unwrap();
    daemon.launch(&request(&world, "other", COUNTING)).unwrap();
    let cgroup = world.cgroup("cpu", &web.id);
    daemon.kill();
    let position = world.config.isolators.iter().position(|plugin| plugin.name == "cgroups/cpu").unwrap();
    let plugin = world.config.isolators.remove(position);

    let daemon = Daemon::start(&world);
    let process = Process::open_any(daemon.inspect(&web.id).unwrap().pid.unwrap()).unwrap();
    daemon.signal(&web.id, nix::sys::signal::Signal::SIGKILL).unwrap();
    // Its nested container is not cleaned up either, which it waits for.
    assert!(process.wait(Some(TIMEOUT)).unwrap(), "{}", daemon.log());
    assert_eq!(state(&daemon, &web.id).as_deref(), Some("DESTROYING"));
    daemon.force(&web.id).unwrap();
    for name in ["web.nested", "web"] {
        assert_eq!(daemon.wait(&id(name)).unwrap().exit_status, Some(9));
        let ended = daemon.inspect(&id(name)).unwrap();
        assert_eq!(ended.state, "ENDED");
        assert_contains(&ended.cleanup_errors.join("\n"), &["was forced", "`cgroups/cpu`"]);
    }
    if let Some(cgroup) = &cgroup {
        assert!(cgroup.exists(), "nobody cleaned up");
    }
    // What is left to do is not forgotten, neither by a removal nor by a restart.
    let Err(CallError::Status(409, message)) = daemon.remove(&web.id) else { panic!("it was removed") };
    assert_contains(&message, &["`cgroups/cpu`", "restart the agent"]);
    assert!(daemon.force(&web.id).unwrap_err().is_unknown(), "it has ended");
    daemon.kill();
    let daemon = Daemon::start(&world);
    assert_contains(&daemon.inspect(&web.id).unwrap().cleanup_errors.join("\n"), &["`cgroups/cpu`"]);
    assert_eq!(state(&daemon, &id("other")).as_deref(), Some("RUNNING"));
    daemon.kill();

    world.config.isolators.insert(position, plugin);
    let daemon = Daemon::start(&world);
    for name in ["web", "web.nested"] {
        while !daemon.inspect(&id(name)).unwrap().cleanup_errors.is_empty() {
            std::thread::yield_now();
        }
    }
    assert!(cgroup.is_none_or(|cgroup| !cgroup.exists()));
    assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(9));
    daemon.remove(&web.id).unwrap();
    assert!(fs::read_dir(world.config.work_dir.join("containers")).unwrap().count() <= 1);
    daemon.destroy(&id("other")).unwrap();
    daemon.remove(&id("other")).unwrap();
    assert_nothing_left(&world, &"in the end");
}

/// What cannot end does not keep the command that kills all from ending.
#[test]
fn killing_all_containers_finishes_and_names_those_that_cannot_end() {
    if !is_root("cgroups") {
        return;
    }
    let mut world = World::shipped();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    daemon.kill();
    let position = world.config.isolators.iter().position(|plugin| plugin.name == "cgroups/cpu").unwrap();
    let plugin = world.config.isolators.remove(position);

    let daemon = Daemon::start(&world);
    let other = request(&world, "other", COUNTING);
    daemon.launch(&other).unwrap();
    let cofferdam = |arguments: &[&str]| {
        Command::new(paths::program()).arg("--socket").arg(world.socket()).args(arguments).output().unwrap()
    };
    let killed = cofferdam(&["kill", "--all", "--timeout", "1s"]);
    assert_eq!(killed.status.code(), Some(124), "{killed:?}");
    assert_contains(&String::from_utf8_lossy(&killed.stderr), &["`web`", "kill --force"]);
    assert_eq!(daemon.wait(&other.id).unwrap().exit_status, Some(9));
    // The others are killed although the first one is unknown.
    let third = request(&world, "third", COUNTING);
    daemon.launch(&third).unwrap();
    let killed = cofferdam(&["kill", "no-such-container", "third", "nor-this"]);
    assert_eq!(killed.status.code(), Some(1), "{killed:?}");
    assert_contains(&String::from_utf8_lossy(&killed.stderr), &["no-such-container", "nor-this"]);
    assert_eq!(daemon.wait(&third.id).unwrap().exit_status, Some(9));

    assert!(cofferdam(&["kill", "--force", "web"]).status.success());
    daemon.wait(&web.id).unwrap();
    assert!(cofferdam(&["kill", "--all"]).status.success());
    daemon.kill();
    world.config.isolators.insert(position, plugin);
    let daemon = Daemon::start(&world);
    while !daemon.inspect(&web.id).unwrap().cleanup_errors.is_empty() {
        std::thread::yield_now();
    }
    for container in [&web.id, &other.id, &third.id] {
        daemon.remove(container).unwrap();
    }
    assert_nothing_left(&world, &"in the end");
}

/// Forcing changes nothing if all plugins clean up.
#[test]
fn forcing_a_healthy_container_destroys_it() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    daemon.force(&web.id).unwrap();
    assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(9));
    assert_eq!(daemon.inspect(&web.id).unwrap().cleanup_errors, Vec::<String>::new());
    daemon.remove(&web.id).unwrap();
    assert!(daemon.force(&web.id).unwrap_err().is_unknown());
    assert_nothing_left(&world, &"in the end");
}
