//! What the kernel has of limits and of usage, in its own files. The same tests run with both versions of cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use cofferdam_core::model::{DockerNetwork, Limit, Resources};
use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::disk::LoopDevice;
use cofferdam_tests::engine::{engine, shell};
use cofferdam_tests::world::{id, run, with_agent};
use cofferdam_tests::{text, virtual_machine, watch};
use serde_json::json;

use super::parameter;

const MIB: u64 = 1 << 20;

/// The cgroup of a controller that a process is in.
fn cgroup(pid: i32, controller: &str) -> Cgroup {
    let cgroups = Cgroups::detect().unwrap();
    let (_, version) = cgroups.hierarchy(controller).expect("a controller");
    let of_process = text(format!("/proc/{pid}/cgroup").as_ref());
    let mut lines = of_process.lines().map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>());
    let is_it = |controllers: &str| match version {
        Version::V1 => controllers.split(',').any(|it| it == controller),
        Version::V2 => controllers.is_empty(),
    };
    let line = lines.find(|fields| is_it(fields[0])).expect("a cgroup");
    cgroups.cgroup(controller, line[1]).unwrap()
}

/// What the kernel limits a container to.
#[derive(Debug, PartialEq)]
struct Limits {
    /// Shares on v1, the weight on v2.
    weight: u64,
    /// Microseconds of each tenth of a second.
    quota: Option<u64>,
    /// Bytes.
    memory: u64,
}

impl Limits {
    fn of(pid: i32) -> Self {
        let (cpu, memory) = (cgroup(pid, "cpu"), cgroup(pid, "memory"));
        match cpu.version() {
            Version::V1 => {
                assert_eq!(cpu.read_as::<u64>("cpu.cfs_period_us").unwrap(), 100_000);
                Self {
                    weight: cpu.read_as("cpu.shares").unwrap(),
                    quota: u64::try_from(cpu.read_as::<i64>("cpu.cfs_quota_us").unwrap()).ok(),
                    memory: memory.read_as("memory.limit_in_bytes").unwrap(),
                }
            }
            Version::V2 => {
                let max = cpu.read("cpu.max").unwrap();
                let (quota, period) = max.trim().split_once(' ').expect("a quota and a period");
                assert_eq!(period, "100000");
                Self {
                    weight: cpu.read_as("cpu.weight").unwrap(),
                    quota: quota.parse().ok(),
                    // `max` is more than any number.
                    memory: memory.read("memory.max").unwrap().trim().parse().unwrap_or(u64::MAX),
                }
            }
        }
    }
}

#[test]
fn an_update_raises_and_lowers_cpu_and_memory() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut request = shell("update", "sleep 1000");
        request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
        let pid = agent.launch(request).await.unwrap();
        let limit = async || agent.usage(&id("update")).await.unwrap().number("mem_limit_bytes");
        let mib = |number: u32| Some(f64::from(number << 20));
        assert_eq!(limit().await, mib(64));
        let begin = Limits::of(pid);
        assert_eq!((begin.quota, begin.memory), (None, 64 * MIB));
        let mut weights = vec![begin.weight];
        for (cpus, mem, quota) in [(1.0, 256, 100_000), (0.25, 48, 25_000)] {
            let to = Resources::default().with("cpus", cpus).with("mem", f64::from(mem));
            agent.update(&id("update"), to.with_limit("cpus", Limit::At(cpus))).await.unwrap();
            assert_eq!(limit().await, mib(mem));
            let host = engine.inspect("mesos-update")["HostConfig"].take();
            #[expect(clippy::cast_possible_truncation, reason = "it is small")]
            let shares = (cpus * 1024.0) as i64;
            assert_eq!((&host["CpuShares"], &host["CpuQuota"]), (&json!(shares), &json!(quota)));
            let kernel = Limits::of(pid);
            assert_eq!((kernel.quota, kernel.memory), (Some(quota), u64::from(mem) * MIB));
            weights.push(kernel.weight);
        }
        // Of 512, 1024 and 256 shares, which runtimes turn into weights differently.
        assert!(weights[1] > weights[0] && weights[0] > weights[2], "{weights:?}");
        if cgroup(pid, "cpu").version() == Version::V1 {
            assert_eq!(weights, [512, 1024, 256]);
        }
        let unlimited = Resources::default().with("cpus", 0.25).with("mem", 48.0);
        let unlimited = unlimited.with_limit("mem", Limit::Unlimited);
        agent.update(&id("update"), unlimited).await.unwrap();
        assert_eq!(limit().await, None);
        assert_eq!(engine.inspect("mesos-update")["HostConfig"]["CpuQuota"], -1);
        let kernel = Limits::of(pid);
        assert_eq!((kernel.quota, kernel.weight), (None, weights[2]));
        assert!(kernel.memory >= 1 << 60, "{kernel:?}");
        // All of it or nothing.
        let refused = agent.update(&id("update"), Resources::default().with("mem", -1.0)).await;
        assert!(refused.is_err());
        assert_eq!(Limits::of(pid), kernel);
        agent.destroy(&id("update")).await.unwrap();
        agent.remove(&id("update")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_privileged_container_has_the_capabilities_of_the_host() {
    /// The number of `CAP_SYS_ADMIN`.
    const SYS_ADMIN: u64 = 21;
    if !virtual_machine::is_inside() {
        // Hosts of CI do not permit it.
        return;
    }
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        for (name, privileged) in [("all", true), ("few", false)] {
            let mut request = shell(
                name,
                "while read key value; do [ $key != CapEff: ] || echo $value; done < /proc/self/status",
            );
            request.docker.as_mut().unwrap().privileged = privileged;
            let effective = u64::from_str_radix(run(&agent, request).await.trim(), 16).unwrap();
            assert_eq!(effective >> SYS_ADMIN & 1, u64::from(privileged), "{effective:x}");
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

/// CPU time of a container in seconds, and what it has sent and received, by the kernel.
fn counters(pid: i32) -> BTreeMap<&'static str, f64> {
    let cpu = cgroup(pid, "cpu");
    let (user, system) = match cpu.version() {
        Version::V1 => {
            let accounting = cgroup(pid, "cpuacct");
            let seconds = |file: &str| accounting.read_as::<u64>(file).unwrap() as f64 / 1e9;
            (seconds("cpuacct.usage_user"), seconds("cpuacct.usage_sys"))
        }
        Version::V2 => {
            let stat = cpu.read_table("cpu.stat").unwrap();
            (stat["user_usec"] as f64 / 1e6, stat["system_usec"] as f64 / 1e6)
        }
    };
    let devices = text(format!("/proc/{pid}/net/dev").as_ref());
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("an interface");
    let columns: Vec<f64> = line.split_whitespace().map(|it| it.parse().unwrap()).collect();
    let found = [
        ("cpus_user_time_secs", user),
        ("cpus_system_time_secs", system),
        ("net_rx_bytes", columns[0]),
        ("net_rx_packets", columns[1]),
        ("net_tx_bytes", columns[8]),
        ("net_tx_packets", columns[9]),
    ];
    found.into()
}

#[test]
fn usage_is_what_the_kernel_counts() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    let disk = LoopDevice::of_zeros(&world.directory().join("zeros"), 16 * MIB);
    with_agent(&world, async |agent| {
        // Reads from the disk, sends and receives, fills memory, and computes.
        let line = "dd if=/dev/disk of=/dev/null bs=1M count=3 iflag=direct 2>/dev/null && \
                    busybox ping -c 3 10.213.0.1 >/dev/null && head -c 8388608 /dev/zero > /dev/shm/file && \
                    i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; echo ready; sleep 1000";
        let mut request = shell("usage", line);
        request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
        let docker = request.docker.as_mut().unwrap();
        docker.network = DockerNetwork::Bridge;
        docker.parameters = vec![parameter("device", &format!("{}:/dev/disk:r", disk.path().display()))];
        let pid = agent.launch(request).await.unwrap();
        let stdout = agent.inspect(&id("usage")).unwrap().logs.stdout.unwrap();
        watch::content(&stdout, TIMEOUT, |found| found.contains("ready\n"));

        let before = counters(pid);
        let usage = agent.usage(&id("usage")).await.unwrap();
        let after = counters(pid);
        assert!(usage.failed.is_empty(), "{:?}", usage.failed);
        for (name, least) in &before {
            let found = usage.number(name).unwrap();
            assert!((*least..=after[name]).contains(&found), "{name}: {found} of {least} to {}", after[name]);
        }
        assert!(before["cpus_user_time_secs"] > 0.0, "{before:?}");
        for name in ["net_rx_packets", "net_tx_packets"] {
            assert!(before[name] >= 3.0, "{before:?}");
        }
        // The file is in memory, of which there are 64 MiB.
        for name in ["mem_total_bytes", "mem_file_bytes", "mem_cache_bytes"] {
            let bytes = usage.number(name).unwrap();
            assert!((8.0 * MIB as f64..=64.0 * MIB as f64).contains(&bytes), "{name}: {bytes}");
        }
        assert_eq!(usage.number("mem_limit_bytes"), Some(64.0 * MIB as f64));
        // Nobody but the container has read from the device, directly.
        let number = fs::metadata(disk.path()).unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let devices = usage.statistics["blkio_statistics"]["throttling"].as_array().unwrap();
        let device = json!({ "major_number": major, "minor_number": minor });
        let found = devices.iter().find(|it| it["device"] == device);
        let found = found.unwrap_or_else(|| panic!("{device} is not in {devices:?}"));
        let bytes = json!([{ "op": "READ", "value": 3 * MIB }, { "op": "WRITE", "value": 0 }]);
        assert_eq!(found["io_service_bytes"], bytes);
        agent.destroy(&id("usage")).await.unwrap();
        agent.remove(&id("usage")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}
