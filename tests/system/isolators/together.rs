//! All isolators in one chain, as an operator would configure them for containers that are not trusted.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{
    ContainerClass, NetworkRequest, Request, Resources, Secret, Volume, VolumeSource,
};
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_tests::world::{id, run, shipped};
use serde_json::{Value as Json, json};

use super::cni;
use super::docker_volume::lab::{Lab, volume as docker_volume};
use super::{FOURTEEN, Fixture, across_restart, isolator, value, world};

/// Those that cannot be in it: one conflicts with `disk/du`, the other one with volumes.
const APART: [&str; 2] = ["disk/xfs", "filesystem/shared"];

/// The isolators with a cgroup controller that not every machine has, and what that is called on v1 and on v2. On v2, some are
/// part of every cgroup, and some do not exist.
const CONTROLLERS: [(&str, &str, Option<&str>); 10] = [
    ("cgroups/cpu", "cpu", Some("cpu")),
    ("cgroups/mem", "memory", Some("memory")),
    ("cgroups/pids", "pids", Some("pids")),
    ("cgroups/devices", "devices", Some("")),
    ("cgroups/blkio", "blkio", Some("io")),
    ("cgroups/cpuset", "cpuset", Some("cpuset")),
    ("cgroups/hugetlb", "hugetlb", Some("hugetlb")),
    ("cgroups/net_cls", "net_cls", None),
    ("cgroups/net_prio", "net_prio", None),
    ("cgroups/perf_event", "perf_event", Some("")),
];

/// All that this machine has the controllers for.
fn chain(lab: &Lab, cni: &Path) -> Vec<PluginConfig> {
    let networks = lab.path("networks");
    fs::create_dir(&networks).unwrap();
    let list = json!({ "cniVersion": "1.0.0", "name": "own", "plugins": [{ "type": "loopback" }] });
    fs::write(networks.join("own.conflist"), list.to_string()).unwrap();
    let perf = json!({ "perf_events": ["task-clock"], "perf_interval": "1s", "perf_duration": "100ms" });
    let du = json!({ "container_disk_watch_interval": "50ms", "enforce_container_disk_quota": true });
    let cni = json!({ "network_cni_config_dir": networks, "network_cni_plugins_dir": cni });
    let mut chain = vec![
        shipped("cgroups/cpu"),
        shipped("cgroups/mem"),
        shipped("cgroups/pids"),
        shipped("cgroups/devices"),
        shipped("cgroups/blkio"),
        shipped("cgroups/cpuset"),
        shipped("cgroups/hugetlb"),
        isolator("cgroups/net_cls", json!({ "primary_handle": 16 })),
        isolator("cgroups/net_prio", json!({ "priorities": { "lo": 5 } })),
        isolator("cgroups/perf_event", perf),
        isolator("disk/du", du),
        shipped("namespaces/ipc"),
        shipped("namespaces/uts"),
        shipped("namespaces/cgroup"),
        isolator("linux/devices", json!({ "allowed_devices": [{ "path": "/dev/full" }] })),
        isolator("network/cni", cni),
        shipped("volume/host_path"),
        shipped("volume/sandbox_path"),
        shipped("volume/image"),
        shipped("volume/secret"),
        isolator("docker/volume", lab.table(json!({}))),
        shipped("docker/runtime"),
        shipped("environment_secret"),
        shipped("posix/cpu"),
        shipped("posix/mem"),
        isolator("posix/rlimits", json!({ "defaults": { "CORE": { "soft": 0, "hard": 0 } } })),
        isolator("linux/capabilities", json!({ "bounding_capabilities": FOURTEEN })),
        shipped("linux/nnp"),
        shipped("linux/seccomp"),
    ];
    let machine = Cgroups::detect().unwrap();
    let has = |(_, on_v1, on_v2): (&str, &str, Option<&str>)| {
        let on_v1 = machine.legacy.iter().any(|legacy| legacy.controllers.iter().any(|name| name == on_v1));
        let unified = machine.unified.as_ref().zip(on_v2);
        on_v1
            || unified.is_some_and(|(unified, name)| {
                name.is_empty() || unified.controllers.iter().any(|offered| offered == name)
            })
    };
    let missing: BTreeSet<&str> =
        CONTROLLERS.into_iter().filter(|row| !has(*row)).map(|(name, ..)| name).collect();
    if !missing.is_empty() {
        eprintln!("this machine has no controllers for {missing:?}");
    }
    chain.retain(|isolator| !missing.contains(&*isolator.name));
    let in_chain = chain.iter().map(|isolator| isolator.name.as_str());
    let known: BTreeSet<&str> =
        in_chain.chain(missing).chain(APART).chain(["filesystem/linux", "namespaces/pid"]).collect();
    assert_eq!(known.into_iter().map(plain).collect::<BTreeSet<_>>(), shipped_isolators());
    chain
}

/// A name as one of a directory, in which separators differ.
fn plain(name: &str) -> String {
    name.replace(['/', '-'], "_")
}

/// By the directories of plugins.
fn shipped_isolators() -> BTreeSet<String> {
    let plugins = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")).unwrap();
    let names = plugins.map(|entry| plain(entry.unwrap().file_name().to_str().unwrap()));
    names.filter(|name| !name.starts_with("logger_") && name != "docker_credentials").collect()
}

impl Fixture {
    /// A container with something of every isolator that a request can ask for.
    fn with_everything(&self, name: &str, line: &str) -> Request {
        let data = self.world.directory().join("data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("file"), "of the host\n").unwrap();
        let volume = |source, target: &str| Volume { container_path: target.into(), read_only: true, source };
        let mut request = self.request(name, "root", line);
        request.volumes = vec![
            volume(VolumeSource::HostPath { path: data, propagation: None }, "/data"),
            volume(VolumeSource::SandboxPath { parent: false, path: "own".into() }, "/own"),
            volume(VolumeSource::Secret { secret: Secret::Value("key".into()) }, "/run/key"),
            docker_volume("shared", "/shared"),
        ];
        request.networks = vec![NetworkRequest { name: Some("own".into()), ..NetworkRequest::default() }];
        request.command.secrets.insert("TOKEN".into(), Secret::Value("token".into()));
        request
    }
}

/// Whether a container has namespaces of its own.
fn assert_own_namespaces(output: &str) {
    for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let own = fs::read_link(format!("/proc/thread-self/ns/{namespace}")).unwrap();
        assert!(output.contains(&format!("{namespace}:[")), "{namespace}: {output}");
        assert!(!output.contains(own.to_str().unwrap()), "{namespace}: {output}");
    }
}

const SHOW_NAMESPACES: &str =
    "for ns in cgroup ipc mnt net pid uts; do busybox readlink /proc/self/ns/$ns; done";

#[tokio::test(flavor = "multi_thread")]
async fn all_isolators_work_in_one_chain() {
    let (Some(lab), Some(cni)) = (Lab::new(), cni::lab::installed()) else { return };
    let fixture = Fixture::start(chain(&lab, &cni)).await;
    let line = "busybox hostname; cat /data/file /run/key; echo \" $TOKEN\"; ulimit -c; ls /own | wc -l; \
                busybox mount -t tmpfs none /data 2>/dev/null || echo refused; \
                echo of web > /shared/file; cat /shared/file; busybox ifconfig -a | grep -c '^[a-z]'; \
                probe status CapEff NoNewPrivs Seccomp";
    let request = fixture.with_everything("web", &format!("{line}; {SHOW_NAMESPACES}"));
    let output = fixture.run(request).await;
    let lines: Vec<&str> = output.lines().collect();
    let expected = ["web", "of the host", "key token", "0", "0", "refused", "of web", "1"];
    assert_eq!(lines[..8], expected, "{output}");
    assert_eq!(value(&output, "CapEff"), "00000000a80425fb");
    assert_eq!((value(&output, "NoNewPrivs"), value(&output, "Seccomp")), ("1", "2"));
    assert_own_namespaces(&output);
    assert_eq!(lab.log(), ["Mount shared", "Unmount shared"]);
    lab.assert_nothing_left(&fixture.world);
}

#[test]
fn all_isolators_serve_nested_containers_also_with_a_later_agent() {
    let (Some(lab), Some(cni)) = (Lab::new(), cni::lab::installed()) else { return };
    let limits = |cpus: f64| Resources::default().with("cpus", cpus).with("mem", 128.0).with("disk", 64.0);
    let world = world(chain(&lab, &cni));
    across_restart(
        &world,
        async |fixture| {
            let mut pod = fixture.with_everything("pod", "echo of pod > /shared/file");
            pod.resources = limits(1.0);
            fixture.launch(pod).await;
            assert_usage(fixture, "pod").await;
        },
        async |fixture| {
            assert_usage(fixture, "pod").await;
            fixture.agent.update(&id("pod"), limits(0.5)).await.unwrap();
            let usage = assert_usage(fixture, "pod").await;
            assert_eq!(usage["cpus_limit"].as_f64(), Some(0.5), "{usage}");

            let line = "cat /data/file /run/key /shared/file; busybox hostname; \
                        probe status CapEff NoNewPrivs Seccomp; busybox readlink /proc/self/ns/net";
            let mut nested = fixture.with_everything("pod.nested", line);
            // It has those of its parent, or those of the request.
            nested.networks.clear();
            nested.resources = Resources::default().with("cpus", 0.25).with("mem", 32.0);
            nested.linux.share_cgroups = false;
            let output = run(&fixture.agent, nested).await;
            assert!(output.starts_with("of the host\nkeyof pod\n"), "{output}");
            assert_eq!(value(&output, "CapEff"), "00000000a80425fb");
            assert_eq!((value(&output, "NoNewPrivs"), value(&output, "Seccomp")), ("1", "2"));
            let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
            assert!(!output.contains(own.to_str().unwrap()), "{output}");
            assert_eq!(lab.count("Unmount"), 0, "the pod has the volume");

            let line = "cat /data/file /run/key; probe status CapEff NoNewPrivs Seccomp; busybox hostname";
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            let output = run(&fixture.agent, debug).await;
            assert!(output.starts_with("of the host\nkey") && output.ends_with("\npod\n"), "{output}");
            assert_eq!((value(&output, "NoNewPrivs"), value(&output, "Seccomp")), ("1", "2"));
            fixture.destroy("pod").await;
        },
    );
    assert_eq!(lab.count("Mount"), lab.count("Unmount"), "{:?}", lab.log());
    lab.assert_nothing_left(&world);
}

/// What all isolators say about a running container.
async fn assert_usage(fixture: &Fixture, name: &str) -> Json {
    let usage = fixture.agent.usage(&id(name)).await.unwrap();
    assert_eq!(usage.failed, [].into());
    for statistic in ["cpus_limit", "cpus_user_time_secs", "mem_rss_bytes", "mem_limit_bytes", "processes"] {
        assert!(usage.statistics.contains_key(statistic), "{statistic}: {usage:?}");
    }
    let status = fixture.agent.status(&id(name)).await.unwrap().status;
    assert!(status.contains_key("executor_pid"), "{status:?}");
    serde_json::to_value(&usage.statistics).unwrap()
}
