//! Resource usage and status of a container.
//!
//! Both come from the kernel and the record, so that an engine that does not answer delays nobody. The cgroups are those of
//! the container's first process.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups, Version};
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;

use super::record::{DockerRecord, Handle};
use super::{NAME, Shared};
use crate::containerizer::lifecycle::STALL_WARNING;
use crate::containerizer::within::within;
use crate::model::view::{Report, StatusView, UsageView, WantedReports};
use crate::model::{ContainerId, Phase, Record, now_unix_ms};

/// Name in Mesos, and the line of `memory.stat` on v1 and v2.
const MEMORY: [(&str, &str, &str); 5] = [
    ("mem_rss_bytes", "total_rss", "anon"),
    ("mem_anon_bytes", "total_rss", "anon"),
    ("mem_cache_bytes", "total_cache", "file"),
    ("mem_file_bytes", "total_cache", "file"),
    ("mem_mapped_file_bytes", "total_mapped_file", "file_mapped"),
];

/// Names in Mesos of the columns of `/proc/PID/net/dev`.
const RECEIVED: [&str; 4] = ["net_rx_bytes", "net_rx_packets", "net_rx_errors", "net_rx_dropped"];
const SENT: [&str; 4] = ["net_tx_bytes", "net_tx_packets", "net_tx_errors", "net_tx_dropped"];

/// No limit is the largest multiple of the page size.
const UNLIMITED: u64 = 1 << 62;

/// Collects the reports on containers, in their order.
pub(super) async fn collect(shared: &Arc<Shared>, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
    let mut asking = JoinSet::new();
    for (index, id) in ids.iter().enumerate() {
        let Some(handle) = shared.table.get(id) else { continue };
        if handle.phase() == Phase::Running {
            let shared = Arc::clone(shared);
            asking.spawn(async move { (index, report(&shared, &handle, wanted).await) });
        }
    }
    let mut reports = vec![Report::default(); ids.len()];
    let collect = async {
        while let Some(asked) = asking.join_next().await {
            let Ok((index, report)) = asked else { continue };
            if let Some(slot) = reports.get_mut(index) {
                *slot = report;
            }
        }
    };
    within(wanted.within, collect).await;
    reports
}

/// What is reported about a running container.
async fn report(shared: &Arc<Shared>, handle: &Arc<Handle>, wanted: WantedReports) -> Report {
    let record = handle.record();
    let status = wanted.status.then(|| status(&record));
    if !wanted.usage {
        return Report { usage: None, status };
    }
    let cgroups = shared.backend.cgroups.clone();
    let usage = shared.pool.run(STALL_WARNING, move |_| usage(&cgroups, &record)).await;
    Report { usage: usage.ok(), status }
}

fn status(record: &Record<DockerRecord>) -> StatusView {
    let mut view = StatusView::default();
    let mut add = |name: &str, value: Json| {
        view.status.insert(name.to_owned(), value);
        view.owners.insert(name.to_owned(), NAME.to_owned());
    };
    if let Some(process) = record.process {
        add("executor_pid", process.pid.into());
    }
    let network = |(name, addresses): (&String, &Vec<String>)| {
        let addresses: Vec<_> = addresses.iter().map(|address| json!({ "ip_address": address })).collect();
        json!({ "name": name, "ip_addresses": addresses })
    };
    let networks: Vec<Json> = record.part.addresses.iter().map(network).collect();
    if !networks.is_empty() {
        add("network_infos", networks.into());
    }
    view
}

fn usage(cgroups: &Cgroups, record: &Record<DockerRecord>) -> UsageView {
    let mut view = UsageView {
        #[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
        timestamp: now_unix_ms() as f64 / 1000.0,
        ..UsageView::default()
    };
    let Some(process) = record.process else {
        view.failed.insert(NAME.to_owned(), "its processes are not visible to the agent".to_owned());
        return view;
    };
    let of_process = Membership::read(process.pid);
    let cgroup = |controller: &str| of_process.as_ref()?.cgroup(cgroups, controller);
    let mut statistics = BTreeMap::new();
    let mut failed = Vec::new();
    let mut add = |found: Result<Vec<(&'static str, Json)>, CgroupError>| match found {
        Ok(found) => statistics.extend(found),
        // One that has just ended has none.
        Err(error) if error.is_missing() => {}
        Err(error) => failed.push(error.to_string()),
    };
    if let Some(cpu) = cgroup("cpu") {
        add(cpu_time(&cpu, cgroup("cpuacct").as_ref()));
    }
    if let Some(memory) = cgroup("memory") {
        add(memory_use(&memory));
    }
    if let Some(io) = cgroup("blkio").or_else(|| cgroup("io")) {
        add(io_bytes(&io));
    }
    statistics.extend(network(process.pid));
    if let Some(limit) = cpu_limit(record) {
        statistics.insert("cpus_limit", limit.into());
    }
    view.owners = statistics.keys().map(|name| ((*name).to_owned(), NAME.to_owned())).collect();
    view.statistics = statistics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if !failed.is_empty() {
        view.failed.insert(NAME.to_owned(), failed.join("; "));
    }
    view
}

/// The limit of CPUs, or else the request.
fn cpu_limit(record: &Record<DockerRecord>) -> Option<f64> {
    match record.resources.limit("cpus")? {
        crate::model::Limit::At(cpus) => Some(cpus),
        _ => None,
    }
}

/// The cgroups of a process.
struct Membership(Vec<(Vec<String>, PathBuf)>);

impl Membership {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?.split(',').map(str::to_owned).collect();
            // Relative to the mount point.
            Some((controllers, PathBuf::from(fields.next()?.trim_start_matches('/'))))
        };
        Some(Self(text.lines().filter_map(line).collect()))
    }

    /// The cgroup of a controller. `None` if this machine does not have it.
    fn cgroup(&self, cgroups: &Cgroups, controller: &str) -> Option<Cgroup> {
        let (_, version) = cgroups.hierarchy(controller)?;
        let name = if version == Version::V1 { controller } else { "" };
        let (_, path) = self.0.iter().find(|(controllers, _)| controllers.iter().any(|it| it == name))?;
        // In the root, it is not one of the container, which has just ended.
        if path.as_os_str().is_empty() { None } else { cgroups.cgroup(controller, path) }
    }
}

type Figures = Result<Vec<(&'static str, Json)>, CgroupError>;

#[expect(clippy::cast_precision_loss, reason = "exact for a hundred days of CPU time")]
fn cpu_time(cpu: &Cgroup, accounting: Option<&Cgroup>) -> Figures {
    let seconds = |time: u64, unit: f64| Json::from(time as f64 / unit);
    Ok(match (cpu.version(), accounting) {
        (Version::V2, _) => {
            let stat = cpu.read_table("cpu.stat")?;
            let time = |name: &str| seconds(stat.get(name).copied().unwrap_or(0), 1e6);
            vec![("cpus_user_time_secs", time("user_usec")), ("cpus_system_time_secs", time("system_usec"))]
        }
        (Version::V1, Some(accounting)) => vec![
            ("cpus_user_time_secs", seconds(accounting.read_as("cpuacct.usage_user")?, 1e9)),
            ("cpus_system_time_secs", seconds(accounting.read_as("cpuacct.usage_sys")?, 1e9)),
        ],
        (Version::V1, None) => Vec::new(),
    })
}

fn memory_use(memory: &Cgroup) -> Figures {
    let v1 = memory.version() == Version::V1;
    let stat = memory.read_table("memory.stat")?;
    let (current, limit) = if v1 {
        (memory.read_as("memory.usage_in_bytes")?, memory.read("memory.limit_in_bytes")?)
    } else {
        (memory.read_as::<u64>("memory.current")?, memory.read("memory.max")?)
    };
    let mut found = vec![("mem_total_bytes", Json::from(current))];
    // `max` is none.
    if let Some(limit) = limit.trim().parse::<u64>().ok().filter(|limit| *limit < UNLIMITED) {
        found.push(("mem_limit_bytes", limit.into()));
    }
    for (name, line_v1, line_v2) in MEMORY {
        if let Some(bytes) = stat.get(if v1 { line_v1 } else { line_v2 }) {
            found.push((name, (*bytes).into()));
        }
    }
    Ok(found)
}

/// Bytes read and written, by device, as in Mesos.
fn io_bytes(io: &Cgroup) -> Figures {
    let mut devices = Vec::new();
    if io.version() == Version::V2 {
        for line in io.read("io.stat")?.lines() {
            let mut words = line.split(' ');
            let Some(device) = words.next().and_then(device) else { continue };
            let of = |name: &str| {
                let prefix = format!("{name}=");
                line.split(' ').find_map(|word| word.strip_prefix(&prefix)?.parse::<u64>().ok()).unwrap_or(0)
            };
            devices.push(bytes_of(device, of("rbytes"), of("wbytes")));
        }
    } else {
        let mut all: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        for line in io.read("blkio.throttle.io_service_bytes")?.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(kind), Some(bytes)) =
                (words.next().and_then(device), words.next(), words.next().and_then(|it| it.parse().ok()))
            else {
                continue;
            };
            let (read, written) = all.entry(device).or_default();
            match kind {
                "Read" => *read = bytes,
                "Write" => *written = bytes,
                _ => {}
            }
        }
        devices.extend(all.into_iter().map(|(device, (read, written))| bytes_of(device, read, written)));
    }
    Ok(vec![("blkio_statistics", json!({ "throttling": devices }))])
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn bytes_of((major, minor): (u64, u64), read: u64, written: u64) -> Json {
    json!({
        "device": { "major_number": major, "minor_number": minor },
        "io_service_bytes": [{ "op": "READ", "value": read }, { "op": "WRITE", "value": written }],
    })
}

/// Traffic of all interfaces but the loopback, of the network namespace of a process.
fn network(pid: i32) -> BTreeMap<&'static str, Json> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let others = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    // In the network of the host, the traffic is not the container's.
    if own == others {
        return BTreeMap::new();
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    traffic(&text).into_iter().map(|(name, number)| (name, number.into())).collect()
}

fn traffic(text: &str) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let Some((interface, columns)) = line.split_once(':').filter(|(name, _)| name.trim() != "lo") else {
            continue;
        };
        let _ = interface;
        let numbers: Vec<u64> = columns.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        let named = RECEIVED.into_iter().zip(&numbers).chain(SENT.into_iter().zip(numbers.iter().skip(8)));
        for (name, number) in named {
            *sums.entry(name).or_default() += number;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup of files that the kernel has written elsewhere.
    fn cgroup(version: Version, files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup::at(directory.path(), version);
        (directory, cgroup)
    }

    fn figures(found: Figures) -> BTreeMap<&'static str, Json> {
        found.unwrap().into_iter().collect()
    }

    #[test]
    fn cpu_time_is_in_seconds_on_both_versions() {
        let stat = "usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\nnr_periods 0\n";
        let (_directory, v2) = cgroup(Version::V2, &[("cpu.stat", stat)]);
        let (_directory, cpu) = cgroup(Version::V1, &[]);
        let (_directory, accounting) = cgroup(
            Version::V1,
            &[("cpuacct.usage_user", "2500000000\n"), ("cpuacct.usage_sys", "1000000000\n")],
        );
        for found in [cpu_time(&v2, None), cpu_time(&cpu, Some(&accounting))] {
            let found = figures(found);
            assert_eq!(found["cpus_user_time_secs"], 2.5);
            assert_eq!(found["cpus_system_time_secs"], 1.0);
        }
        assert!(cpu_time(&cpu, None).unwrap().is_empty());
    }

    #[test]
    fn memory_is_read_on_both_versions() {
        let (_directory, v1) = cgroup(
            Version::V1,
            &[
                (
                    "memory.stat",
                    "cache 1\nrss 2\nmapped_file 3\ntotal_cache 4096\ntotal_rss 8192\ntotal_mapped_file 1024\n",
                ),
                ("memory.usage_in_bytes", "12288\n"),
                ("memory.limit_in_bytes", "67108864\n"),
            ],
        );
        let (_directory, v2) = cgroup(
            Version::V2,
            &[
                ("memory.stat", "anon 8192\nfile 4096\nkernel 5\nfile_mapped 1024\n"),
                ("memory.current", "12288\n"),
                ("memory.max", "67108864\n"),
            ],
        );
        let expected = [
            ("mem_anon_bytes", 8192),
            ("mem_cache_bytes", 4096),
            ("mem_file_bytes", 4096),
            ("mem_limit_bytes", 67_108_864),
            ("mem_mapped_file_bytes", 1024),
            ("mem_rss_bytes", 8192),
            ("mem_total_bytes", 12288),
        ];
        for memory in [&v1, &v2] {
            let found = figures(memory_use(memory));
            assert_eq!(found, expected.into_iter().map(|(name, bytes)| (name, Json::from(bytes))).collect());
        }
        fs::write(v1.path().join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        fs::write(v2.path().join("memory.max"), "max\n").unwrap();
        for memory in [&v1, &v2] {
            assert!(!figures(memory_use(memory)).contains_key("mem_limit_bytes"));
        }
    }

    #[test]
    fn block_devices_are_counted_on_both_versions() {
        let v1 = "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Async 2\n8:0 Discard 3\n8:0 Total 12288\n\
                  254:16 Read 0\n254:16 Write 512\n254:16 Total 512\nTotal 12800\n";
        let v2 = "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:16 wbytes=512 rios=0\n";
        let (_directory, v1) = cgroup(Version::V1, &[("blkio.throttle.io_service_bytes", v1)]);
        let (_directory, v2) = cgroup(Version::V2, &[("io.stat", v2)]);
        let expected = json!({ "throttling": [bytes_of((8, 0), 4096, 8192), bytes_of((254, 16), 0, 512)] });
        assert_eq!(figures(io_bytes(&v1))["blkio_statistics"], expected);
        assert_eq!(figures(io_bytes(&v2))["blkio_statistics"], expected);
    }

    #[test]
    fn a_cgroup_that_is_gone_is_no_failure() {
        let gone = Cgroup::at("/nonexistent", Version::V2);
        assert!(memory_use(&gone).unwrap_err().is_missing());
        assert!(io_bytes(&gone).unwrap_err().is_missing());
    }

    #[test]
    fn traffic_is_the_sum_of_all_interfaces_but_the_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  \
             eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n  \
             eth1: 1 1 1 1 0 0 0 0 1 1 1 1 0 0 0 0\n";
        let found = traffic(text);
        assert_eq!((found["net_rx_bytes"], found["net_rx_packets"]), (101, 3));
        assert_eq!((found["net_tx_bytes"], found["net_tx_dropped"]), (501, 9));
    }
}
