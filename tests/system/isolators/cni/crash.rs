//! Agents that are killed, and what they leave.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::disk::{Full, Resource};
use cofferdam_tests::injector::Fault;
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{wait_for_text, watch};
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
fn an_add_of_a_killed_agent_that_does_not_end_is_killed_before_del() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({ "network_cni_timeout": "1s" }));
        let mut daemon = Daemon::start(&world);
        let fifo = lab.fifo("stuck");
        // Read to its end when all processes that can write have ended.
        let ended = std::thread::spawn(move || fs::read(fifo).unwrap());
        assert!(daemon.launch(&request(&world, "web")).unwrap_err().is_disconnected());
        daemon.wait_ended();
        let daemon = Daemon::start(&world);
        remove(&daemon, "web");
        assert!(ended.join().unwrap().is_empty());
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0 netns"], "{}", daemon.log());
        assert!(daemon.log().contains("does not end and is killed"), "{}", daemon.log());
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

/// Like a container that nobody knows.
fn copy_record(world: &World, from: &str, to: &str) {
    let from_directory = kept(world).into_iter().find(|path| path.ends_with(from)).unwrap();
    let directory = from_directory.with_file_name(to);
    fs::create_dir(&directory).unwrap();
    let record = fs::read_to_string(from_directory.join("record")).unwrap();
    let record = record.replace(&format!("\"id\":\"{from}\""), &format!("\"id\":\"{to}\""));
    fs::write(directory.join("record"), record).unwrap();
}

#[test]
fn a_del_of_an_unknown_container_that_hangs_delays_no_other_container() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({}));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        daemon.kill();
        copy_record(&world, "web", "ghost");
        copy_record(&world, "web", "other");
        let hangs = lab.fifo("hang-ghost");
        let daemon = Daemon::start(&world);
        // The first one was ended, as it delayed the start.
        watch::content(&lab.path("log"), TIMEOUT, |log| log.matches("DEL ghost ").count() >= 2);
        daemon.launch(&request(&world, "new")).unwrap();
        daemon.destroy(&id("new")).unwrap();
        daemon.remove(&id("new")).unwrap();
        wait_for_text(&lab.path("log"), "DEL other eth0 \n");
        // It hangs until now; without a reader, this would fail.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let writer = fs::OpenOptions::new().write(true).custom_flags(flags).open(&hangs).unwrap();
        fs::remove_file(&hangs).unwrap();
        drop(writer);
        let released = |log: &str| log.matches("released the networks of an unknown container").count() == 2;
        watch::content(&world.directory().join("agent.log"), TIMEOUT, released);
        daemon.destroy(&id("web")).unwrap();
        daemon.remove(&id("web")).unwrap();
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

/// A container can fill the disk, and must be detached nevertheless, also by the next agent.
#[test]
fn del_needs_no_space() {
    for resource in [Resource::Blocks, Resource::Inodes] {
        in_own_namespace(|| {
            lab_without_agent(|lab| {
                lab.list("net", json!([lab.plugin("recorder", "net", 88, json!({})), lab.portmap()]));
                let world = lab.world(json!({}));
                let full = world.config.runtime_dir.clone();
                let memory = Memory::mount(&full, "size=4m,nr_inodes=300");
                let daemon = Daemon::start(&world);
                for name in ["web", "other"] {
                    daemon.launch(&request(&world, name)).unwrap();
                }
                let filled = Full::make(&full, resource);
                daemon.destroy(&id("web")).unwrap();
                daemon.remove(&id("web")).unwrap();
                // What that has freed.
                let more = Full::make_more(&full, resource);
                daemon.kill();
                lab.set("busy", true);
                let daemon = Daemon::start(&world);
                let destroyed = std::thread::scope(|scope| {
                    let destroyed = scope.spawn(|| daemon.destroy(&id("other")));
                    wait_for_text(&lab.path("log"), &"DEL other eth0 netns\n".repeat(3));
                    lab.set("busy", false);
                    destroyed.join().unwrap()
                });
                destroyed.unwrap_or_else(|error| panic!("{error:?}: {}", daemon.log()));
                daemon.remove(&id("other")).unwrap();
                assert!(!daemon.log().contains("cannot record that DEL has succeeded"), "{}", daemon.log());
                lab.assert_nothing_left();
                assert_eq!(kept(&world), Vec::<std::path::PathBuf>::new());
                drop((filled, more));
                daemon.terminate();
                drop(memory);
            });
        });
    }
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
        daemon.kill();
        copy_record(&world, "web", "ghost");
        let daemon = Daemon::start(&world);
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL ghost eth0"]);
        assert_eq!(kept(&world).len(), 1);
        // If that fails, it is repeated while the agent runs.
        daemon.kill();
        copy_record(&world, "web", "stubborn");
        lab.set("busy", true);
        let daemon = Daemon::start(&world);
        assert_eq!(lab.calls("DEL", "stubborn"), 1);
        wait_for_text(&lab.path("log"), "DEL stubborn eth0 \nDEL stubborn eth0 \n");
        lab.set("busy", false);
        let released = |log: &str| log.matches("released the networks of an unknown container").count() == 2;
        watch::content(&world.directory().join("agent.log"), TIMEOUT, released);
        daemon.destroy(&id("web")).unwrap();
        daemon.remove(&id("web")).unwrap();
        assert_eq!(lab.calls("DEL", "web"), 1);
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

/// What a reboot takes: processes, mounts, packet filters, and the runtime directory.
#[test]
fn after_a_reboot_addresses_are_released_if_the_records_persist() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = lab.world(json!({ "network_cni_root_dir_persist": true }));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        let pid = daemon.inspect(&id("web")).unwrap().pid.unwrap();
        let keeper = daemon.keeper();
        daemon.kill();
        keeper.kill().unwrap();
        shell(&format!("kill -9 {pid}"));
        let containers = world.config.work_dir.join("isolators/network-cni/containers");
        shell(&format!("umount {0}/web/ns && umount {0}", containers.display()));
        shell("iptables -t nat -F && iptables -t nat -X");
        fs::remove_dir_all(&world.config.runtime_dir).unwrap();
        assert_eq!(lab.addresses(), ["10.88.0.2"]);
        let daemon = Daemon::start(&world);
        // Its cgroup is still there, by which the agent knows of it.
        remove(&daemon, "web");
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0"], "{}", daemon.log());
        assert_eq!(lab.addresses(), Vec::<String>::new());
        assert!(!containers.exists());
        daemon.terminate();
    });
}

#[test]
fn running_containers_and_networks_are_checked_and_garbage_is_collected_if_configured() {
    lab_without_agent(|lab| {
        let plugin = json!({ "type": "recorder" });
        lab.configure("net.conflist", &json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [plugin] }));
        // With what 1.1.0 has added.
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "br", "mtu": 1400, "socketPath": "/run/switch.sock" },
                { "name": "eth0", "mtu": 1400, "pciID": "0000:00:1f.6", "sandbox": "/proc/self/ns/net" },
            ],
            "ips": [{ "address": "192.0.2.9/32", "interface": 1 }],
            "routes": [
                { "dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1360, "priority": 9, "table": 100, "scope": 0 },
            ],
        });
        fs::write(lab.path("new"), result.to_string()).unwrap();
        let world = lab.world(json!({ "network_cni_check": true, "network_cni_gc": true }));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        daemon.kill();
        assert!(lab.log().contains(&"STATUS".to_owned()), "{:?}", lab.log());
        lab.set("broken", true);
        lab.set("down", true);
        fs::remove_file(lab.path("gc")).unwrap();
        let daemon = Daemon::start(&world);
        assert!(daemon.log().contains("code 120: the cable is cut"), "{}", daemon.log());
        assert!(daemon.log().contains("code 50: the switch is off"), "{}", daemon.log());
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

/// Those of Debian know CHECK, and neither GC nor STATUS, which version 1.1.0 has added.
#[test]
fn what_a_reference_plugin_finds_wrong_with_a_running_container_is_logged() {
    lab_without_agent(|lab| {
        lab.list("net", json!([lab.plugin("bridge", "br", 88, json!({}))]));
        let world = lab.world(json!({ "network_cni_check": true }));
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "web")).unwrap();
        daemon.kill();
        let daemon = Daemon::start(&world);
        let complaint = "its network is not as the CNI plugins have left it";
        assert!(!daemon.log().contains(complaint), "{}", daemon.log());
        let pid = daemon.inspect(&id("web")).unwrap().pid.unwrap();
        daemon.kill();
        shell(&format!("nsenter -t {pid} -n ip address flush dev eth0"));
        let daemon = Daemon::start(&world);
        assert!(daemon.log().contains(complaint), "{}", daemon.log());
        daemon.destroy(&id("web")).unwrap();
        daemon.remove(&id("web")).unwrap();
        assert_nothing_left(&world, lab);
        daemon.terminate();
    });
}

const MAX_STEPS: usize = 1000;

/// A world with this plugin alone, and a network whose CNI plugin does nothing but to log its calls.
fn quick_world(lab: &Lab) -> World {
    lab.list("net", json!([{ "type": "recorder" }]));
    fs::write(lab.path("new"), r#"{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.9/32"}]}"#).unwrap();
    let mut world = lab.world(json!({}));
    world.config.isolators.retain(|isolator| isolator.name == "network/cni");
    world
}

fn quick_request(world: &World) -> Request {
    Request { rootfs: None, ..request(world, "web") }
}

/// Kills the agent at each step of `act` in turn, after `set`, and removes the container with the next one.
/// `is_balanced` is told how often ADD and DEL were called.
fn kill_anywhere(
    set: impl Fn(&Daemon, &Request) + Sync,
    act: impl Fn(&Daemon, &Request) -> Result<(), CallError> + Sync,
    is_balanced: impl Fn(usize, usize) -> bool + Sync,
) {
    lab_without_agent(|lab| {
        let world = quick_world(lab);
        let web = quick_request(&world);
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
            assert!(
                is_balanced(lab.calls("ADD", "web"), lab.calls("DEL", "web")),
                "{hit:?}: {:?}",
                lab.log()
            );
            assert_nothing_left(&world, lab);
            drop(fs::remove_file(lab.path("log")));
            if hit.is_none() {
                eprintln!("{step} steps");
                return;
            }
        }
        panic!("there are more than {MAX_STEPS} steps");
    });
}

#[test]
fn an_agent_killed_anywhere_in_a_launch_is_followed_by_one_del() {
    // An ADD of which only the record exists is followed by DEL, too.
    kill_anywhere(
        |_, _| {},
        |daemon, web| daemon.launch(web),
        |added, deleted| added <= deleted && deleted <= 1,
    );
}

#[test]
fn an_agent_killed_anywhere_in_a_destroy_is_followed_by_one_that_detaches_the_container() {
    let launch = |daemon: &Daemon, web: &Request| daemon.launch(web).unwrap();
    // If it was not recorded that DEL has succeeded, it is called again.
    kill_anywhere(
        launch,
        |daemon, web| daemon.destroy(&web.id).map(drop),
        |added, deleted| added == 1 && (1..=2).contains(&deleted),
    );
}

#[test]
fn whatever_fails_in_a_launch_nothing_is_left() {
    lab_without_agent(|lab| {
        let world = quick_world(lab);
        let web = quick_request(&world);
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
            let (added, deleted) = (lab.calls("ADD", "web"), lab.calls("DEL", "web"));
            // If it was not recorded that DEL has succeeded, it is called again.
            assert!(added <= 1 && added <= deleted, "{when}: {:?}", lab.log());
            drop(fs::remove_file(lab.path("log")));
            assert_nothing_left(&world, lab);
        }
        panic!("the launch has more than {MAX_STEPS} steps");
    });
}
