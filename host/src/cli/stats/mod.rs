//! `cofferdam stats`: shows resource usage.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::Client;
use super::failure::Failure;
use super::ps::Details;
use super::{Outcome, block_on, container_id, format, output, ps};
use crate::api::operator::types::{BlkioOperation, Container, ResourceStatistics};
use cofferdam_core::model::ContainerId;

/// Time between the two samples that the use of CPUs is computed from. On cgroup v1, CPU time is counted in 10 ms.
const INTERVAL: Duration = Duration::from_millis(500);

/// Shows the resource usage of containers
///
/// The use of CPUs, 100 % for each, is that of half a second. Columns without a value are those
/// of plugins that are not in the chain.
///
/// Examples:
///   cofferdam stats
///   cofferdam stats web --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers [default: all running ones]
    #[arg(value_parser = container_id)]
    ids: Vec<ContainerId>,
    /// Do not wait for the use of CPUs
    #[arg(long)]
    no_wait: bool,
    /// Print JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let list = || async { Ok::<_, Failure>(ps::list(client, &arguments.ids, Details::STATISTICS).await?) };
    let (before, mut containers) = block_on(async {
        let first = list().await?;
        if arguments.json || arguments.no_wait {
            return Ok((BTreeMap::new(), first));
        }
        let spent = first.iter().filter_map(|container| Some((name(container), cpu_time(container)?)));
        let before = spent.collect::<BTreeMap<_, _>>();
        tokio::time::sleep(INTERVAL).await;
        Ok((before, list().await?))
    })?;
    let is = |container: &Container, id: &ContainerId| name(container) == id.as_str();
    if let Some(unknown) = arguments.ids.iter().find(|id| !containers.iter().any(|found| is(found, id))) {
        return Err(Failure::message(format!("there is no container `{unknown}`")));
    }
    containers.retain(|container| {
        if arguments.ids.is_empty() {
            container.resource_statistics.is_some()
        } else {
            arguments.ids.iter().any(|id| is(container, id))
        }
    });
    if arguments.json {
        output::json(&containers)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = containers.iter().map(|container| row(container, &before)).collect();
    let headings = [
        "ID",
        "CPU",
        "CPU TIME",
        "CPUS",
        "MEMORY",
        "LIMIT",
        "PROCESSES",
        "BLOCK READ",
        "WRITTEN",
        "DISK",
        "DISK LIMIT",
        "FAILED",
    ];
    output::table(&headings, &rows)?;
    Ok(0)
}

fn name(container: &Container) -> String {
    container.container_id.to_string()
}

/// A time of the agent and the CPU time that was used until then, both in seconds.
fn cpu_time(container: &Container) -> Option<(f64, f64)> {
    let statistics = container.resource_statistics.as_ref()?;
    let (user, system) = (statistics.cpus_user_time_secs, statistics.cpus_system_time_secs);
    let used = user.or(system).map(|_| user.unwrap_or_default() + system.unwrap_or_default())?;
    Some((statistics.timestamp, used))
}

fn row(container: &Container, before: &BTreeMap<String, (f64, f64)>) -> Vec<String> {
    let none = ResourceStatistics::default();
    let statistics = container.resource_statistics.as_ref().unwrap_or(&none);
    let dash = || "-".to_owned();
    let now = cpu_time(container);
    let failed: Vec<&str> = container.failures.iter().map(|failure| failure.plugin.as_str()).collect();
    let (read, written) = match block_bytes(statistics) {
        Some((read, written)) => (format::bytes(read), format::bytes(written)),
        None => (dash(), dash()),
    };
    vec![
        name(container),
        now.and_then(|now| share(*before.get(&name(container))?, now)).unwrap_or_else(dash),
        now.map_or_else(dash, |(_, used)| format!("{used:.2} s")),
        statistics.cpus_limit.map_or_else(dash, |cpus| cpus.to_string()),
        statistics.mem_total_bytes.or(statistics.mem_rss_bytes).map_or_else(dash, format::bytes),
        statistics.mem_limit_bytes.map_or_else(dash, format::bytes),
        statistics.processes.map_or_else(dash, |count| count.to_string()),
        read,
        written,
        statistics.disk_used_bytes.map_or_else(dash, format::bytes),
        statistics.disk_limit_bytes.map_or_else(dash, format::bytes),
        failed.join(", "),
    ]
}

/// CPU time per time. `None` if the container was launched again in between.
fn share((time_before, used_before): (f64, f64), (time, used): (f64, f64)) -> Option<String> {
    let (elapsed, spent) = (time - time_before, used - used_before);
    (elapsed > 0.0 && spent >= 0.0).then(|| format!("{:.1} %", spent / elapsed * 100.0))
}

/// Bytes read from and written to block devices.
fn block_bytes(statistics: &ResourceStatistics) -> Option<(u64, u64)> {
    let throttling = &statistics.blkio_statistics.as_ref()?.throttling;
    let devices = throttling.iter().filter(|device| device.device.is_some());
    let values = devices.flat_map(|device| &device.io_service_bytes);
    Some(values.fold((0, 0), |(read, written): (u64, u64), value| {
        let bytes = value.value.unwrap_or_default();
        match value.op {
            Some(BlkioOperation::Read) => (read.saturating_add(bytes), written),
            Some(BlkioOperation::Write) => (read, written.saturating_add(bytes)),
            _ => (read, written),
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_column_is_filled_from_statistics_of_plugins() {
        let container: Container = serde_json::from_value(json!({
            "container_id": { "value": "web" },
            "resource_statistics": {
                "timestamp": 10.5, "cpus_user_time_secs": 2.0, "cpus_system_time_secs": 0.5, "cpus_limit": 1.5,
                "mem_total_bytes": 1_048_576, "mem_limit_bytes": 67_108_864, "processes": 3,
                "disk_used_bytes": 3_145_728, "disk_limit_bytes": 8_388_608,
                "blkio_statistics": { "throttling": [
                    { "io_service_bytes": [{ "op": "TOTAL", "value": 9 }] },
                    { "device": { "major_number": 8, "minor_number": 0 }, "io_service_bytes": [
                        { "op": "READ", "value": 2048 }, { "op": "WRITE", "value": 4096 },
                        { "op": "TOTAL", "value": 6144 },
                    ] },
                ] },
            },
            "failures": [{ "plugin": "test/fault", "method": "usage", "message": "no" }],
        }))
        .unwrap();
        let before = BTreeMap::from([("web".to_owned(), (10.0, 2.25))]);
        let expected = [
            "web",
            "50.0 %",
            "2.50 s",
            "1.5",
            "1.0 MiB",
            "64.0 MiB",
            "3",
            "2.0 KiB",
            "4.0 KiB",
            "3.0 MiB",
            "8.0 MiB",
            "test/fault",
        ];
        assert_eq!(row(&container, &before), expected);
        let expected = ["web", "-", "2.50 s"];
        assert_eq!(row(&container, &BTreeMap::new())[..3], expected);
        let idle = Container { resource_statistics: None, failures: Vec::new(), ..container };
        assert_eq!(row(&idle, &before)[1..], ["-", "-", "-", "-", "-", "-", "-", "-", "-", "-", ""]);
    }
}
