//! Namespaces, what is set in them, and cgroups.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, run};
use serde_json::json;

use super::{Fixture, namespace, own_namespace};

/// Kinds of namespaces, and their files in `/proc/<pid>/ns`.
const KINDS: [(&str, &str); 7] = [
    ("cgroup", "cgroup"),
    ("ipc", "ipc"),
    ("mount", "mnt"),
    ("network", "net"),
    ("pid", "pid"),
    ("time", "time"),
    ("uts", "uts"),
];

/// Prints the namespaces of a command, in the order of [`KINDS`].
const PRINT_NAMESPACES: &str =
    "for ns in cgroup ipc mnt net pid time uts; do busybox readlink /proc/self/ns/$ns; done";

#[tokio::test(flavor = "multi_thread")]
async fn the_container_has_the_namespaces_that_are_created_for_it() {
    if !is_root("namespaces") {
        return;
    }
    let all: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let fixture = Fixture::start().await;
    for created in [&["mount"][..], &all] {
        let output = fixture.output(json!({ "clone_namespaces": created }), PRINT_NAMESPACES).await;
        let namespaces: Vec<&str> = output.lines().collect();
        assert_eq!(namespaces.len(), KINDS.len(), "{output}");
        for ((kind, file), namespace) in KINDS.iter().zip(namespaces) {
            let is_own = namespace != own_namespace(file);
            // Without a cgroup namespace of its own, a container could leave its cgroups.
            let expected = created.contains(kind) || *kind == "cgroup";
            assert_eq!(is_own, expected, "{kind} of {created:?}: {namespace}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_container_enters_namespaces_of_its_parent() {
    if !is_root("namespaces") {
        return;
    }
    let fixture = Fixture::start().await;
    let Fixture { world, agent } = &fixture;
    let launch = json!({ "clone_namespaces": ["ipc", "network", "uts"] });
    let mut parent = fixture.request(&json!({ "launch": launch }), "exec sleep 1000");
    parent.id = id("pod");
    let pid = agent.launch(parent).await.unwrap();
    let of_parent = |file: &str| namespace(format!("/proc/{pid}/ns/{file}"));
    let launch = json!({ "enter_namespaces": ["ipc", "uts"] });
    let mut nested = fixture.request(&json!({ "launch": launch }), PRINT_NAMESPACES);
    nested.id = id("pod.web");
    let output = run(agent, nested).await;
    let namespaces: Vec<&str> = output.lines().collect();
    let [_, ipc, _, net, _, _, uts] = namespaces[..] else { panic!("{output}") };
    assert_eq!([ipc, uts], [of_parent("ipc"), of_parent("uts")]);
    assert_ne!(net, of_parent("net"));
    agent.destroy(&id("pod")).await.unwrap();
    agent.remove(&id("pod")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// A process in new namespaces, which ends with this value.
struct Namespaced(Child);

impl Namespaced {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--cgroup", "--ipc", "--net", "--uts", "sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn();
        let mut process = Self(child.unwrap());
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        process
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.0.id())
    }
}

impl Drop for Namespaced {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_enters_namespaces_by_descriptor() {
    if !is_root("namespaces") {
        return;
    }
    let process = Namespaced::new();
    let entered = [("cgroup", "cgroup"), ("ipc", "ipc"), ("network", "net"), ("uts", "uts")];
    let mut enter = json!({});
    for (kind, file) in entered {
        enter[kind] = process.file(file).into();
    }
    // The namespaces are the container's own, so that parameters can be set in them.
    let launch = json!({ "hostname": "entered", "sysctls": { "net.ipv4.ip_default_ttl": "77" } });
    let fixture = Fixture::start().await;
    let line = "for ns in cgroup ipc net uts; do busybox readlink /proc/self/ns/$ns; done; busybox hostname; \
                cat /proc/sys/net/ipv4/ip_default_ttl";
    let mut expected: Vec<String> = entered.iter().map(|(_, file)| namespace(process.file(file))).collect();
    expected.extend(["entered".to_owned(), "77".to_owned()]);
    let request = fixture.request(&json!({ "launch": launch, "enter": enter }), line);
    assert_eq!(fixture.run(request).await.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_parameters_are_set_in_the_containers_namespaces_only() {
    if !is_root("kernel parameters") {
        return;
    }
    let sysctls = [
        ("net.ipv4.ip_default_ttl", "/proc/sys/net/ipv4/ip_default_ttl", "78"),
        // With slashes, a dot is part of a name.
        ("net/ipv4/conf/lo/tag", "/proc/sys/net/ipv4/conf/lo/tag", "79"),
        ("kernel.msgmax", "/proc/sys/kernel/msgmax", "8193"),
        ("kernel.sem", "/proc/sys/kernel/sem", "31\t31001\t33\t127"),
        ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max", "11"),
    ];
    let paths: Vec<&str> = sysctls.iter().map(|(_, path, _)| *path).collect();
    let on_host = || paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>();
    let before = on_host();
    let mut requested = json!({});
    for (name, _, value) in sysctls {
        requested[name] = value.into();
    }
    let launch = json!({ "clone_namespaces": ["ipc", "network"], "sysctls": requested });
    let fixture = Fixture::start().await;
    let output = fixture.output(launch, &format!("cat {}", paths.join(" "))).await;
    assert_eq!(output.lines().collect::<Vec<_>>(), sysctls.map(|(_, _, value)| value));
    assert_eq!(on_host(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_name_is_that_of_the_container() {
    if !is_root("a UTS namespace") {
        return;
    }
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let launch = json!({ "clone_namespaces": ["uts"], "hostname": "web-7.example" });
    let fixture = Fixture::start().await;
    assert_eq!(fixture.output(launch, "busybox hostname").await, "web-7.example\n");
    // Without a request, it is the last value of the id.
    let launch = json!({ "clone_namespaces": ["uts"] });
    assert_eq!(fixture.output(launch, "busybox hostname").await, "web\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clocks_are_offset() {
    if !is_root("a time namespace") {
        return;
    }
    const DAY: i64 = 86_400;
    let offsets = json!({
        "monotonic_nanos": 1000 * DAY * 1_000_000_000 + 5, "boottime_nanos": 2000 * DAY * 1_000_000_000 + 7,
    });
    let launch = json!({ "clone_namespaces": ["time"], "time_offsets": offsets });
    let fixture = Fixture::start().await;
    let output = fixture.output(launch, "cat /proc/self/timens_offsets /proc/uptime").await;
    let words: Vec<Vec<&str>> = output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["monotonic", "86400000", "5"]);
    assert_eq!(words[1], ["boottime", "172800000", "7"]);
    let uptime: f64 = words[2][0].parse().unwrap();
    assert!(uptime > 2000.0 * DAY as f64, "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_starts_in_the_requested_v1_cgroups() {
    if !is_root("cgroups") {
        return;
    }
    let fixture = Fixture::start().await;
    // Beside those of containers, which are destroyed with this world if the test fails.
    let name = id("requested");
    let find = |controller| fixture.world.cgroup(controller, &name);
    let cgroups: Vec<_> = ["cpu", "memory", "pids"].into_iter().filter_map(find).collect();
    if cgroups.is_empty() {
        eprintln!("SKIPPED the requested cgroups: there is no v1 hierarchy");
        return;
    }
    for cgroup in &cgroups {
        fs::create_dir_all(cgroup).unwrap();
    }
    let table = json!({ "launch": { "cgroups": cgroups } });
    let pid = fixture.agent.launch(fixture.request(&table, "exec sleep 1000")).await.unwrap();
    let output = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    fixture.agent.destroy(&id("web")).await.unwrap();
    let found = output.lines().filter(|line| line.ends_with("/requested.container")).count();
    assert_eq!(found, cgroups.len(), "{output}");
    fixture.agent.remove(&id("web")).await.unwrap();
    for cgroup in &cgroups {
        fs::remove_dir(cgroup).unwrap();
    }
    fixture.assert_nothing_left(&output);
}
