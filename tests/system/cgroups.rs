//! The isolators of single cgroup controllers, each added to a chain without them.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use cofferdam_core::agent::Agent;
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::{ContainerClass, ContainerId, Limit, Request, Resources, Value};
use cofferdam_linux::cgroup::{Cgroups, Layout};
use cofferdam_tests::world::{World, id, launch_error, run, shipped, with_agent};
use cofferdam_tests::{is_root, text, wait_for_text};
use serde_json::{Value as Json, json};

/// A chain without isolators of single controllers beside CPU and memory, and one more.
fn world(isolator: &str, table: Json) -> World {
    let mut world = World::privileged();
    let mut entry = shipped(isolator);
    entry.table = table;
    world.config.isolators.push(entry);
    world
}

fn request(world: &World, name: &str, script: &str) -> Request {
    let mut request = Request::shell(id(name), script);
    request.rootfs = Some(world.rootfs());
    request
}

/// A container nested in a running one, with cgroups of its own.
fn nested(world: &World, name: &str, script: &str) -> Request {
    let mut request = request(world, name, script);
    request.linux.share_cgroups = false;
    request
}

fn stdout(agent: &Agent, id: &ContainerId) -> PathBuf {
    agent.inspect(id).unwrap().logs.stdout.unwrap()
}

/// Launches a container and waits until it has printed a line.
async fn launch(agent: &Agent, request: Request, line: &str) {
    let id = request.id.clone();
    agent.launch(request).await.unwrap();
    wait_for_text(&stdout(agent, &id), line);
}

async fn end(world: &World, agent: &Agent, name: &str) {
    agent.destroy(&id(name)).await.unwrap();
    agent.remove(&id(name)).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Prints a line for each process that it could start, until that fails.
const FORK_BOMB: &str = "i=0; while sleep 1000 & do i=$((i+1)); echo process $i; done; echo end";

/// How many processes a container could start.
fn started(output: &str) -> usize {
    output.lines().filter(|line| line.starts_with("process ")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_fails_in_its_container() {
    if !is_root("the pids controller") {
        return;
    }
    let world = world("cgroups/pids", json!({ "default": 20, "maximum": 50 }));
    let agent = world.start().await.unwrap();
    let bounded = run(&agent, request(&world, "bomb", FORK_BOMB)).await;
    assert!((10..20).contains(&started(&bounded)), "{bounded}");
    let mut larger = request(&world, "larger", FORK_BOMB);
    larger.resources = Resources::default().with("pids", 40.0);
    let bounded = run(&agent, larger).await;
    assert!((30..40).contains(&started(&bounded)), "{bounded}");
    let mut refused = request(&world, "refused", "true");
    refused.resources = Resources::default().with("pids", 51.0);
    let error = launch_error(&agent, refused).await;
    assert!(error.contains("cgroups/pids") && error.contains("at most 50 are permitted"), "{error}");
    for name in ["bomb", "larger"] {
        agent.remove(&id(name)).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_limit_of_processes_holds_without_an_agent_and_for_nested_containers() {
    if !is_root("the pids controller") {
        return;
    }
    let world = world("cgroups/pids", json!({ "default": 30 }));
    with_agent(&world, async |agent| {
        launch(&agent, request(&world, "pod", "echo up; sleep 1000"), "up").await
    });
    with_agent(&world, async |agent| {
        let usage = agent.usage(&id("pod")).await.unwrap();
        assert_eq!(usage.number("pids_limit"), Some(30.0), "{usage:?}");
        assert!(usage.number("processes") >= Some(1.0), "{usage:?}");
        let mut child = nested(&world, "pod.bomb", &format!("{FORK_BOMB}; sleep 1000"));
        child.resources = Resources::default().with("pids", 1000.0);
        agent.launch(child).await.unwrap();
        // The shell ends at the first fork that fails.
        agent.wait(&id("pod.bomb")).await.unwrap();
        let output = text(&stdout(&agent, &id("pod.bomb")));
        assert!((10..30).contains(&started(&output)), "{output}");
        agent.update(&id("pod"), Resources::default().with("pids", 60.0)).await.unwrap();
        let usage = agent.usage(&id("pod")).await.unwrap();
        assert_eq!(usage.number("pids_limit"), Some(60.0), "{usage:?}");
        end(&world, &agent, "pod").await;
    });
}

#[test]
fn an_update_that_a_later_isolator_refuses_leaves_nothing_in_force() {
    if !is_root("the pids controller") {
        return;
    }
    let mut world = world("cgroups/pids", json!({ "default": 30 }));
    world.config.isolators.push(shipped("cgroups/hugetlb"));
    let world = world;
    with_agent(&world, async |agent| {
        launch(&agent, request(&world, "pod", "echo up; sleep 1000"), "up").await;
        let limit = async || agent.usage(&id("pod")).await.unwrap().number("pids_limit");
        // Huge pages of a size that no host has.
        let refused = |pids| Resources::default().with("pids", pids).with("hugepages-3MB", 1.0);
        assert!(agent.update(&id("pod"), refused(60.0)).await.is_err());
        assert_eq!(limit().await, Some(30.0), "the default, as it has requested none");
        agent.update(&id("pod"), Resources::default().with("pids", 40.0)).await.unwrap();
        agent.update(&id("pod"), Resources::default().with("mem", 64.0)).await.unwrap();
        assert!(agent.update(&id("pod"), refused(60.0)).await.is_err());
        assert_eq!(limit().await, Some(40.0), "an update of another resource has not changed it");
        let resources = agent.inspect(&id("pod")).unwrap().summary.resources;
        assert_eq!(resources, Resources::default().with("pids", 40.0).with("mem", 64.0));
        end(&world, &agent, "pod").await;
    });
}

/// A container that has had a limit only, and one that an operator permits no longer.
#[test]
fn an_update_changes_nothing_but_the_resources_that_it_names() {
    if !is_root("control groups") {
        return;
    }
    let mut world = world("cgroups/pids", json!({}));
    world.config.isolators.push(shipped("cgroups/hugetlb"));
    let mut pod = request(&world, "pod", "echo up; sleep 1000");
    pod.resources = Resources::default().with_limit("cpus", Limit::At(2.0)).with("pids", 40.0);
    let weight = |world: &World| {
        let cgroup = world.cgroup_of_any_version("cpu", &id("pod")).unwrap();
        let file =
            ["cpu.shares", "cpu.weight"].map(|file| cgroup.join(file)).into_iter().find(|file| file.exists());
        std::fs::read_to_string(file.unwrap()).unwrap()
    };
    let refused = Resources::default().with("cpus", 1.5).with("hugepages-3MB", 1.0);
    with_agent(&world, async |agent| {
        launch(&agent, pod, "up").await;
        let default = weight(&world);
        assert!(agent.update(&id("pod"), refused).await.is_err());
        assert_eq!(weight(&world), default, "the request that is rolled back");
        agent.update(&id("pod"), Resources::default().with("cpus", 1.5)).await.unwrap();
        assert_ne!(weight(&world), default);
        let limit = Resources::default().with_limit("cpus", Limit::At(2.0));
        agent.update(&id("pod"), limit).await.unwrap();
        assert_eq!(weight(&world), default, "the request that is replaced by a limit");
    });
    let pids = world.config.isolators.iter_mut().find(|entry| entry.name == "cgroups/pids").unwrap();
    pids.table = json!({ "default": 10, "maximum": 20 });
    with_agent(&world, async |agent| {
        agent.update(&id("pod"), Resources::default().with("mem", 64.0)).await.unwrap();
        let usage = agent.usage(&id("pod")).await.unwrap();
        assert_eq!(usage.number("pids_limit"), Some(40.0), "{usage:?}");
        let error = agent.update(&id("pod"), Resources::default().with("pids", 30.0)).await.unwrap_err();
        assert!(describe(&error).contains("at most 20 are permitted"), "{error}");
        end(&world, &agent, "pod").await;
    });
}

/// Creates the device file of the kernel's log, and tries to read it.
const READ_KMSG: &str = "mknod /dev/log c 1 11 && head -c 1 /dev/zero | wc -c; \
     if cat </dev/null >/dev/null && true </dev/log; then echo readable; else echo refused; fi";

#[tokio::test(flavor = "multi_thread")]
async fn a_container_can_use_the_devices_that_are_permitted() {
    if !is_root("the devices of containers") {
        return;
    }
    for (rules, expected) in [(json!([]), "1\nrefused\n"), (json!(["c 1:11 r"]), "1\nreadable\n")] {
        let world = world("cgroups/devices", json!({ "rules": rules }));
        let agent = world.start().await.unwrap();
        assert_eq!(run(&agent, request(&world, "log", READ_KMSG)).await, expected);
        agent.remove(&id("log")).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn devices_stay_restricted_without_an_agent_and_for_nested_containers() {
    if !is_root("the devices of containers") {
        return;
    }
    let mut world = world("cgroups/devices", json!({}));
    let pod = "echo up; while ! [ -e /go ]; do sleep 0.05; done; mknod /dev/log c 1 11; \
               if true </dev/log; then echo readable; else echo refused; fi; sleep 1000";
    with_agent(&world, async |agent| launch(&agent, request(&world, "pod", pod), "up").await);
    // The next agent permits more.
    world.config.isolators.last_mut().unwrap().table = json!({ "rules": ["c 1:11 r"] });
    with_agent(&world, async |agent| {
        let mut probe = Request::shell(id("pod.probe"), "touch /go");
        probe.class = ContainerClass::Debug;
        agent.launch(probe).await.unwrap();
        wait_for_text(&stdout(&agent, &id("pod")), "refused");
        let child = nested(&world, "pod.child", READ_KMSG);
        assert_eq!(run(&agent, child).await, "1\nrefused\n");
        end(&world, &agent, "pod").await;
    });
}

/// Whether a test with a controller of cgroup v1 can run here. If its hierarchy is not mounted, the test is run once more,
/// by this call, in a mount namespace in which it is.
fn has_hierarchy(controller: &str, test: &str) -> bool {
    const INSIDE: &str = "COFFERDAM_TEST_HIERARCHY";
    if !is_root("mounting a hierarchy of cgroup v1") {
        return false;
    }
    let machine = Cgroups::detect().unwrap();
    if std::env::var_os(INSIDE).is_some() || machine.layout() == Layout::Unified && crate::guest::inside() {
        return machine.hierarchy(controller).is_some();
    }
    // Those of other tests may be unmounted at any time.
    if machine.hierarchy(controller).is_some_and(|(found, _)| found.mount.starts_with("/sys/fs/cgroup")) {
        return true;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = "for other in \"${TMPDIR:-/tmp}\"/cofferdam-hierarchy-*; do umount -l \"$other\"; done 2>/dev/null; \
         mount -t cgroup -o \"$1\" cgroup \"$2\" && exec \"$3\" --exact \"$4\" --nocapture";
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", controller])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .arg(format!("cgroups::{test}"))
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "in a mount namespace with `{controller}`: {status}");
    false
}

async fn class(agent: &Agent, name: &str) -> Option<u64> {
    let status = agent.status(&id(name)).await.unwrap().status;
    status.get("cgroup_info")?["net_cls"]["classid"].as_u64()
}

#[test]
fn a_container_keeps_its_class_when_the_agent_restarts_with_another_range() {
    if !has_hierarchy("net_cls", "a_container_keeps_its_class_when_the_agent_restarts_with_another_range") {
        return;
    }
    let mut world = world("cgroups/net_cls", json!({ "primary_handle": 16 }));
    with_agent(&world, async |agent| {
        launch(&agent, request(&world, "first", "echo up; sleep 1000"), "up").await;
        assert_eq!(class(&agent, "first").await, Some(0x10_0001));
    });
    world.config.isolators.last_mut().unwrap().table =
        json!({ "primary_handle": 16, "first_secondary_handle": 1, "last_secondary_handle": 2 });
    with_agent(&world, async |agent| {
        assert_eq!(class(&agent, "first").await, Some(0x10_0001));
        launch(&agent, request(&world, "second", "echo up; sleep 1000"), "up").await;
        assert_eq!(class(&agent, "second").await, Some(0x10_0002));
        let error = launch_error(&agent, request(&world, "third", "true")).await;
        assert!(error.contains("no class is free for container `third`"), "{error}");
    });
    world.config.isolators.last_mut().unwrap().table = json!({ "primary_handle": 32 });
    with_agent(&world, async |agent| {
        assert_eq!(class(&agent, "first").await, Some(0x10_0001));
        launch(&agent, request(&world, "third", "echo up; sleep 1000"), "up").await;
        assert_eq!(class(&agent, "third").await, Some(0x20_0001));
        let file = world.cgroup("net_cls", &id("third")).unwrap().join("net_cls.classid");
        assert_eq!(text(&file).trim(), 0x20_0001.to_string());
        // With their parents' class until they have their own: those of nested containers differ.
        launch(&agent, nested(&world, "third.child", "echo up; sleep 1000"), "up").await;
        assert_eq!(class(&agent, "third.child").await, Some(0x20_0002));
        agent.destroy(&id("first")).await.unwrap();
        agent.remove(&id("first")).await.unwrap();
        agent.destroy(&id("second")).await.unwrap();
        agent.remove(&id("second")).await.unwrap();
        end(&world, &agent, "third").await;
    });
}

/// In a network namespace with a class per container and the filter of tc that finds them: sends packets, and shows how
/// many each class has sent.
const CLASSIFY: &str = "exec 2>&1; ip link set lo up; tc qdisc add dev lo root handle 10: htb; \
     for class in 10:1 10:2; do tc class add dev lo parent 10: classid $class htb rate 100mbit; done; \
     tc filter add dev lo parent 10: protocol ip prio 10 handle 1: cgroup && \
     ping -c 3 127.0.0.1 >/dev/null && tc -s class show dev lo";

/// How many packets a class has sent, by the output of tc.
fn packets(output: &str, class: &str) -> u64 {
    let after = output.split_once(&format!("class htb {class} ")).unwrap_or_else(|| panic!("{output}")).1;
    let sent = after.split_once("Sent ").unwrap().1;
    let count = sent.split(' ').nth(2).unwrap();
    count.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_of_a_container_are_classified_by_a_filter() {
    if !has_hierarchy("net_cls", "packets_of_a_container_are_classified_by_a_filter") {
        return;
    }
    let world = world("cgroups/net_cls", json!({ "primary_handle": 16 }));
    let agent = world.start().await.unwrap();
    launch(&agent, request(&world, "first", "echo up; sleep 1000"), "up").await;
    // With the files of the host.
    let script = world.directory().join("classify");
    std::fs::write(&script, CLASSIFY.replace("ping", "busybox ping")).unwrap();
    let output =
        run(&agent, Request::shell(id("second"), format!("unshare -n sh {}", script.display()))).await;
    if output.contains("TC classifier not found") && !crate::guest::inside() {
        // Unlike `eprintln!`, this is not captured when the test passes. An error cannot be reported.
        let skipped =
            "\nSKIPPED: this kernel has no filter for net_cls; packets are classified in a virtual machine";
        writeln!(std::io::stderr(), "{skipped} of `guests::`").ok();
    } else {
        assert!(packets(&output, "10:2") >= 3, "{output}");
        assert_eq!(packets(&output, "10:1"), 0, "{output}");
    }
    agent.destroy(&id("first")).await.unwrap();
    agent.remove(&id("first")).await.unwrap();
    agent.remove(&id("second")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_container_runs_on_its_cpus_only_without_an_agent_too() {
    if !is_root("the cpuset controller") {
        return;
    }
    let world = world("cgroups/cpuset", json!({ "cpus": "0-1" }));
    let script = "while ! grep -q 'list:.0$' /proc/self/status; do sleep 0.05; done; echo moved; sleep 1000";
    let show = "grep Cpus_allowed_list /proc/self/status | grep -o '[0-9]*$'";
    let mut on_second = request(&world, "pod", &format!("{show}; {script}"));
    on_second.resources.requests.insert("cpuset_cpus".into(), Value::Ranges(vec![(1, 1)]));
    with_agent(&world, async |agent| launch(&agent, on_second, "1").await);
    with_agent(&world, async |agent| {
        assert_eq!(run(&agent, nested(&world, "pod.child", show)).await, "1\n");
        let usage = agent.usage(&id("pod")).await.unwrap();
        assert_eq!(usage.number("cpuset_cpus_effective"), Some(1.0), "{usage:?}");
        let cpu = |number| {
            let mut resources = Resources::default();
            resources.requests.insert("cpuset_cpus".into(), Value::Ranges(vec![(number, number)]));
            resources
        };
        let error = agent.update(&id("pod"), cpu(2)).await.unwrap_err();
        assert!(describe(&error).contains("permits only 0-1"), "{}", describe(&error));
        agent.update(&id("pod"), cpu(0)).await.unwrap();
        wait_for_text(&stdout(&agent, &id("pod")), "moved");
        end(&world, &agent, "pod").await;
    });
}

#[test]
fn a_container_keeps_the_priority_of_its_packets() {
    if !has_hierarchy("net_prio", "a_container_keeps_the_priority_of_its_packets") {
        return;
    }
    let mut world = world("cgroups/net_prio", json!({ "priorities": { "lo": 5 } }));
    with_agent(&world, async |agent| {
        launch(&agent, request(&world, "web", "echo up; sleep 1000"), "up").await
    });
    world.config.isolators.last_mut().unwrap().table = json!({ "priorities": { "lo": 6 } });
    with_agent(&world, async |agent| {
        let cgroup = world.cgroup("net_prio", &id("web")).unwrap();
        assert!(text(&cgroup.join("net_prio.ifpriomap")).contains("lo 5\n"));
        assert_ne!(text(&cgroup.join("cgroup.procs")), "");
        end(&world, &agent, "web").await;
    });
}

/// Some huge pages of the host, for the time of a test.
struct HugePages {
    before: String,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// `None` if the host does not give them, which is reported.
    fn reserve(count: usize) -> Option<Self> {
        let before = std::fs::read_to_string(NR_HUGEPAGES).ok()?;
        let pages = Self { before };
        std::fs::write(NR_HUGEPAGES, count.to_string()).ok()?;
        if text(NR_HUGEPAGES.as_ref()).trim() == count.to_string() {
            return Some(pages);
        }
        eprintln!("SKIPPED: this host has no {count} huge pages");
        None
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        std::fs::write(NR_HUGEPAGES, self.before.trim()).unwrap();
    }
}

#[test]
fn a_container_gets_no_more_huge_pages_than_its_limit_also_after_a_restart() {
    if !is_root("the hugetlb controller") {
        return;
    }
    let Some(pages) = HugePages::reserve(8) else { return };
    let program = cofferdam_tests::program::compiled("huge_pages", include_str!("huge_pages.c"));
    let mut world = world("cgroups/hugetlb", json!({ "limits": { "2MB": "4 MiB" } }));
    std::fs::copy(program, world.rootfs().join("huge_pages")).unwrap();
    with_agent(&world, async |agent| {
        assert_eq!(run(&agent, request(&world, "web", "/huge_pages")).await, "page 1\npage 2\nrefused\n");
        let mut more = request(&world, "more", "/huge_pages");
        more.resources = Resources::default().with("hugepages-2MB", 6.0);
        assert_eq!(run(&agent, more).await, "page 1\npage 2\npage 3\nrefused\n");
        launch(&agent, request(&world, "pod", "echo up; sleep 1000"), "up").await;
    });
    world.config.isolators.last_mut().unwrap().table = json!({ "limits": { "2MB": "16 MiB" } });
    with_agent(&world, async |agent| {
        let mut child = nested(&world, "pod.child", "/huge_pages");
        child.resources = Resources::default().with("hugepages-2MB", 16.0);
        assert_eq!(run(&agent, child).await, "page 1\npage 2\nrefused\n", "the limit of its parent");
        let usage = agent.usage(&id("pod")).await.unwrap();
        assert_eq!(usage.number("hugetlb_2MB_limit_bytes"), Some(f64::from(4 << 20)), "{usage:?}");
        assert!(usage.number("hugetlb_2MB_limit_events") >= Some(1.0), "{usage:?}");
        let mut update = Resources::default().with("hugepages-2MB", 2.0);
        agent.update(&id("pod"), update.clone()).await.unwrap();
        let mut child = nested(&world, "pod.other", "/huge_pages");
        child.resources = update.clone();
        assert_eq!(run(&agent, child).await, "page 1\nrefused\n");
        update = Resources::default().with("hugepages-3MB", 2.0);
        assert!(agent.update(&id("pod"), update).await.is_err());
        for name in ["web", "more"] {
            agent.remove(&id(name)).await.unwrap();
        }
        end(&world, &agent, "pod").await;
    });
    drop(pages);
}

#[test]
fn block_io_of_a_container_is_counted_across_a_restart() {
    if !is_root("the blkio controller") {
        return;
    }
    let world = world("cgroups/blkio", json!({ "psi": true }));
    with_agent(&world, async |agent| {
        launch(&agent, request(&world, "web", "echo up; sleep 1000"), "up").await
    });
    with_agent(&world, async |agent| {
        let usage = agent.usage(&id("web")).await.unwrap();
        assert!(usage.failed.is_empty(), "{usage:?}");
        let all = &usage.statistics["blkio_statistics"]["throttling"][0];
        assert_eq!(all["io_service_bytes"][0]["op"], "TOTAL", "{usage:?}");
        assert!(all["io_serviced"][0]["value"].is_u64(), "{usage:?}");
        let has_pressure =
            PathBuf::from("/proc/pressure/io").exists() && Cgroups::detect().unwrap().unified.is_some();
        assert_eq!(usage.statistics.contains_key("io_pressure_some_secs"), has_pressure, "{usage:?}");
        end(&world, &agent, "web").await;
    });
}
