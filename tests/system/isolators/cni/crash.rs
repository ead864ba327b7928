//! Agents that are killed, and what they leave.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::wait_for_text;
use cofferdam_tests::world::{World, id};
use serde_json::json;

use super::lab::{Lab, kept, lab_without_agent, named, shell};

fn request(world: &World, name: &str) -> Request {
    let mut request = Request::shell(id(name), "echo launched; sleep 1000");
    request.rootfs = Some(world.rootfs());
    request.networks = vec![named("net")];
    request
}

fn assert_nothing_left(world: &World, lab: &Lab) {
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_eq!(kept(world), Vec::<std::path::PathBuf>::new());
    lab.assert_nothing_left();
}

/// Whatever became of a launch: removes the container.
fn remove(daemon: &Daemon, name: &str) {
    if daemon.inspect(&id(name)).is_some() {
        daemon.wait(&id(name)).unwrap();
        daemon.remove(&id(name)).unwrap();
    }
}

#[test]
fn an_agent_killed_after_add_is_followed_by_one_that_calls_del_once() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({}));
        let mut daemon = Daemon::start(&world);
        lab.set("kill", true);
        assert!(daemon.launch(&request(&world, "web")).unwrap_err().is_disconnected());
        daemon.wait_ended();
        assert_eq!(lab.addresses(), ["10.88.0.2"]);
        let daemon = Daemon::start(&world);
        remove(&daemon, "web");
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0 netns"], "{}", daemon.log());
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

#[test]
fn del_waits_for_an_add_that_a_killed_agent_has_started() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({}));
        let mut daemon = Daemon::start(&world);
        shell(&format!("mkfifo {}", lab.path("slow").display()));
        assert!(daemon.launch(&request(&world, "web")).unwrap_err().is_disconnected());
        daemon.wait_ended();
        let daemon = Daemon::start(&world);
        // ADD continues when the FIFO has a writer, and ends when it has none any more.
        drop(
            fs::OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(lab.path("slow")).unwrap(),
        );
        remove(&daemon, "web");
        assert_eq!(
            lab.log(),
            ["ADD web eth0 netns", "ADD has ended", "DEL web eth0 netns"],
            "{}",
            daemon.log()
        );
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

#[test]
fn a_container_that_ends_while_no_agent_runs_is_detached_by_the_next() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({}));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        let inspected = daemon.inspect(&id("web")).unwrap();
        wait_for_text(inspected.stdout.as_deref().unwrap().as_ref(), "launched");
        daemon.kill();
        shell(&format!("kill -9 {}", inspected.pid.unwrap()));
        let daemon = Daemon::start(&world);
        remove(&daemon, "web");
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0 netns"]);
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

#[test]
fn networks_of_containers_that_nobody_knows_are_released_by_the_next_agent() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({}));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        let ghost = |name: &str| {
            let web = kept(&world).into_iter().find(|path| path.ends_with("web")).unwrap();
            let ghost = web.with_file_name(name);
            fs::create_dir(&ghost).unwrap();
            let record = fs::read_to_string(web.join("record")).unwrap();
            fs::write(ghost.join("record"), record.replace("\"id\":\"web\"", &format!("\"id\":\"{name}\"")))
                .unwrap();
        };
        daemon.kill();
        ghost("ghost");
        let daemon = Daemon::start(&world);
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL ghost eth0"]);
        assert_eq!(kept(&world).len(), 1);
        // If that fails, it is repeated while the agent runs.
        daemon.kill();
        ghost("stubborn");
        lab.set("busy", true);
        let daemon = Daemon::start(&world);
        assert_eq!(lab.calls("DEL", "stubborn"), 1);
        wait_for_text(&lab.path("log"), "DEL stubborn eth0 \nDEL stubborn eth0 \n");
        lab.set("busy", false);
        wait_for_text(&world.directory().join("agent.log"), "released the networks of an unknown container");
        daemon.destroy(&id("web")).unwrap();
        daemon.remove(&id("web")).unwrap();
        assert_eq!(lab.calls("DEL", "web"), 1);
        daemon.terminate();
    });
}

#[test]
fn running_containers_are_checked_and_garbage_is_collected_if_configured() {
    lab_without_agent(|lab| {
        let plugin = json!({ "type": "recorder" });
        lab.configure("net.conflist", &json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [plugin] }));
        fs::write(lab.path("new"), r#"{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.9/32"}]}"#)
            .unwrap();
        let world = lab.world(json!({ "network_cni_check": true, "network_cni_gc": true }));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        daemon.kill();
        lab.set("broken", true);
        fs::remove_file(lab.path("gc")).unwrap();
        let daemon = Daemon::start(&world);
        assert!(daemon.log().contains("code 120: the cable is cut"), "{}", daemon.log());
        let collected: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(lab.path("gc")).unwrap()).unwrap();
        let valid = json!([{ "containerID": "web", "ifname": "eth0" }]);
        assert_eq!(collected["cni.dev/valid-attachments"], valid);
        daemon.destroy(&id("web")).unwrap();
        daemon.remove(&id("web")).unwrap();
        assert_eq!(lab.calls("CHECK", "web"), 1);
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}
