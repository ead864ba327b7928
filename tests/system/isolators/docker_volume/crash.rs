//! Agents that are killed, and what they leave.

use std::fs;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::injector::Fault;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{wait_for_text, watch};
use serde_json::json;

use super::lab::{Lab, records, volume};

fn request(world: &World, name: &str) -> Request {
    let mut request = Request::shell(id(name), "echo launched; sleep 1000");
    request.rootfs = Some(world.rootfs());
    request.volumes = vec![volume("db", "/data")];
    request
}

fn assert_nothing_left(world: &World, lab: &Lab) {
    assert_eq!(world.leftovers(), Vec::<String>::new());
    lab.assert_nothing_left(world);
}

/// Whatever became of a launch: removes the container.
fn remove(daemon: &Daemon, name: &str) {
    if daemon.inspect(&id(name)).is_some() {
        daemon.wait(&id(name)).unwrap();
        daemon.remove(&id(name)).unwrap();
    }
}

#[test]
fn an_agent_killed_while_the_driver_mounts_is_followed_by_one_that_unmounts() {
    let Some(lab) = Lab::new() else { return };
    let world = lab.world(json!({}));
    lab.fault("Mount", "forget");
    let daemon = Daemon::start(&world);
    std::thread::scope(|scope| {
        let launch = scope.spawn(|| daemon.launch(&request(&world, "web")).unwrap_err().is_disconnected());
        wait_for_text(&lab.path("log"), "done: Mount");
        daemon.process().kill().unwrap();
        assert!(launch.join().unwrap());
    });
    daemon.kill();
    assert_eq!(lab.mounts().len(), 1);
    let daemon = Daemon::start(&world);
    remove(&daemon, "web");
    assert_eq!(lab.log(), ["Mount db", "Unmount db"], "{}", daemon.log());
    assert_nothing_left(&world, &lab);
    daemon.terminate();
}

#[test]
fn volumes_of_containers_that_nobody_knows_are_unmounted_by_the_next_agent() {
    let Some(lab) = Lab::new() else { return };
    let world = lab.world(json!({}));
    let daemon = Daemon::start(&world);
    daemon.launch(&request(&world, "web")).unwrap();
    daemon.kill();
    let users = records(&world)[0].join("users");
    // Another user that no agent knows changes nothing, but the last one does.
    fs::write(users.join("ghost"), "").unwrap();
    let daemon = Daemon::start(&world);
    assert!(!users.join("ghost").exists() && users.join("web").exists());
    assert_eq!(lab.log(), ["Mount db"]);
    let pid = daemon.inspect(&id("web")).unwrap().pid.unwrap();
    daemon.kill();
    // As if the agent's own directory were lost.
    fs::rename(users.join("web"), users.join("ghost")).unwrap();
    lab.fault("Unmount", "error it is busy");
    let daemon = Daemon::start(&world);
    assert!(daemon.log().contains("it is busy"), "{}", daemon.log());
    // It is repeated while the agent runs.
    lab.no_fault("Unmount");
    let released = |log: &str| log.contains("unmounted a volume");
    watch::content(&world.directory().join("agent.log"), TIMEOUT, released);
    assert!(pid > 0);
    daemon.destroy(&id("web")).unwrap();
    daemon.remove(&id("web")).unwrap();
    assert_nothing_left(&world, &lab);
    daemon.terminate();
}

#[test]
fn after_a_reboot_volumes_are_released_whether_the_driver_knows_them_or_not() {
    let Some(lab) = Lab::new() else { return };
    let world = lab.world(json!({}));
    let daemon = Daemon::start(&world);
    daemon.launch(&request(&world, "web")).unwrap();
    daemon.destroy(&id("web")).unwrap();
    daemon.remove(&id("web")).unwrap();
    daemon.terminate();
    // What a reboot leaves: the work directory, with a record of another boot.
    let root = {
        let plugins = fs::read_dir(world.config.work_dir.join("isolators")).unwrap().flatten();
        let mut roots = plugins.map(|entry| entry.path().join("volumes")).filter(|path| path.exists());
        roots.next().unwrap()
    };
    let record = json!({
        "driver": "lab", "name": "db", "options": {}, "id": "f".repeat(64), "boot": "earlier",
    });
    fs::create_dir_all(root.join("lab,db/users")).unwrap();
    fs::write(root.join("lab,db/volume"), record.to_string()).unwrap();
    fs::write(root.join("lab,db/users/old"), "").unwrap();
    let daemon = Daemon::start(&world);
    assert!(daemon.log().contains("a volume was not mounted any more"), "{}", daemon.log());
    assert_nothing_left(&world, &lab);
    daemon.terminate();
}

const MAX_STEPS: usize = 1000;

/// Kills the agent at each step of `act` in turn, after `set`, and removes the container with the next one.
/// `is_balanced` is told how often Mount and Unmount were called.
fn kill_anywhere(
    set: impl Fn(&Daemon, &Request),
    act: impl Fn(&Daemon, &Request) -> Result<(), CallError>,
    is_balanced: impl Fn(usize, usize) -> bool,
) {
    let Some(lab) = Lab::new() else { return };
    let world = lab.world(json!({}));
    let web = Request { rootfs: None, ..request(&world, "web") };
    let web = Request { volumes: vec![volume("db", "data")], ..web };
    for step in 1..MAX_STEPS {
        let (mut daemon, injector) = Daemon::start_with_injector(&world);
        set(&daemon, &web);
        injector.arm(Fault::Kill, &[step]);
        let outcome = act(&daemon, &web);
        let hit = injector.disarm().hit.first().map(ToString::to_string);
        if hit.is_some() {
            daemon.wait_ended();
            daemon = Daemon::start(&world);
        } else {
            outcome.unwrap();
        }
        if daemon.inspect(&web.id).is_some() {
            // It may have ended already.
            drop(daemon.destroy(&web.id));
            remove(&daemon, "web");
        }
        daemon.terminate();
        let counts = (lab.count("Mount"), lab.count("Unmount"));
        assert!(is_balanced(counts.0, counts.1), "{hit:?}: {:?}", lab.log());
        assert_nothing_left(&world, &lab);
        lab.forget_log();
        if hit.is_none() {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("there are more than {MAX_STEPS} steps");
}

#[test]
fn an_agent_killed_anywhere_in_a_launch_is_followed_by_one_that_unmounts() {
    // A Mount of which only the record exists is followed by Unmount, too.
    kill_anywhere(
        |_, _| {},
        |daemon, web| daemon.launch(web),
        |mounted, unmounted| mounted <= 1 && mounted <= unmounted && unmounted <= 1,
    );
}

#[test]
fn an_agent_killed_anywhere_in_a_destroy_is_followed_by_one_that_unmounts() {
    let launch = |daemon: &Daemon, web: &Request| daemon.launch(web).unwrap();
    // If it was not recorded that Unmount has succeeded, it is called again.
    kill_anywhere(
        launch,
        |daemon, web| daemon.destroy(&web.id).map(drop),
        |mounted, unmounted| mounted == 1 && (1..=2).contains(&unmounted),
    );
}

#[test]
fn whatever_fails_in_a_launch_nothing_is_left() {
    let Some(lab) = Lab::new() else { return };
    let world = lab.world(json!({}));
    let web = Request { rootfs: None, volumes: vec![volume("db", "data")], ..request(&world, "web") };
    let (daemon, injector) = Daemon::start_with_injector(&world);
    for step in 1..MAX_STEPS {
        injector.arm(Fault::Fail, &[step]);
        let launched = daemon.launch(&web);
        let seen = injector.disarm();
        if launched.is_ok() {
            daemon.destroy(&web.id).unwrap();
            daemon.remove(&web.id).unwrap();
        }
        let Some(hit) = seen.hit.first() else {
            eprintln!("{step} steps");
            daemon.terminate();
            return;
        };
        let when = format!("step {step}: {hit}");
        assert!(lab.count("Mount") <= 1, "{when}: {:?}", lab.log());
        assert_nothing_left(&world, &lab);
        lab.forget_log();
    }
    panic!("the launch has more than {MAX_STEPS} steps");
}
