//! `cofferdam stats`: shows resource usage.

mod sample;

use std::io;
use std::time::Duration;

use super::client::Client;
use super::failure::Failure;
use super::output::{Cell, Column, Table, Tone};
use super::ps::Details;
use super::{Outcome, block_on, container_id, format, output, ps, time};
use crate::api::operator::types::{Container, ResourceStatistics};
use cofferdam_core::model::ContainerId;

pub(super) use sample::{Sample, block_bytes, cpu_time, memory};

/// Usage from which a limit is near.
const NEAR: f64 = 0.9;

/// Shows the resource usage of containers
///
/// The use of CPUs, 100 % for each, is that of half a second, or of the time between two tables with --watch. What no plugin of
/// the chain measures or limits has no column. On a narrow terminal, more columns are left out.
///
/// Examples:
///   cofferdam stats
///   cofferdam stats --watch web
///   cofferdam stats web --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers [default: all running ones]
    #[arg(value_parser = container_id)]
    ids: Vec<ContainerId>,
    /// Show them again and again, after an interval such as `5s` [default interval: 2s]
    #[arg(long, short, value_name = "INTERVAL", value_parser = time::parse_interval, num_args = 0..=1, require_equals = true,
        default_missing_value = "2s")]
    watch: Option<Duration>,
    /// Show them once, which is the default
    #[arg(long, conflicts_with = "watch")]
    no_stream: bool,
    /// Do not wait for the use of CPUs
    #[arg(long, conflicts_with = "watch")]
    no_wait: bool,
    /// Print JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md), with --watch one on each line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    block_on(async {
        let mut containers = list(arguments, client).await?;
        if !arguments.json && !arguments.ids.is_empty() && !containers.iter().any(ps::is_live) {
            refuse_ended(&containers)?;
        }
        let Some(interval) = arguments.watch else {
            let before = match arguments.json || arguments.no_wait {
                true => Sample::default(),
                false => {
                    let before = Sample::of(&containers);
                    tokio::time::sleep(time::MIN_INTERVAL).await;
                    containers = list(arguments, client).await?;
                    before
                }
            };
            show(&containers, &before, arguments.json)?;
            return Ok(0);
        };
        let mut first = true;
        loop {
            let before = Sample::of(&containers);
            // The first table comes soon.
            tokio::time::sleep(if first { time::MIN_INTERVAL } else { interval }).await;
            first = false;
            containers = list(arguments, client).await?;
            if arguments.json {
                output::json_line(&containers)?;
            } else {
                clear_terminal()?;
                show(&containers, &before, false)?;
            }
        }
    })
}

/// The containers that are asked for, with their usage.
async fn list(arguments: &Arguments, client: &Client) -> Result<Vec<Container>, Failure> {
    let mut containers = ps::list(client, &arguments.ids, Details::STATISTICS).await?;
    let is = |container: &Container, id: &ContainerId| container.container_id.to_string() == id.as_str();
    if let Some(unknown) = arguments.ids.iter().find(|id| !containers.iter().any(|found| is(found, id))) {
        return Err(Failure::message(format!(
            "there is no container `{unknown}`; `cofferdam ps -a` lists all containers"
        )));
    }
    containers.retain(|container| {
        if arguments.ids.is_empty() {
            container.resource_statistics.is_some()
        } else {
            arguments.ids.iter().any(|id| is(container, id))
        }
    });
    Ok(containers)
}

/// Fails for containers that have all ended, and use nothing.
fn refuse_ended(containers: &[Container]) -> Result<(), Failure> {
    let ended = containers.iter().filter_map(|container| {
        let termination = container.termination.as_ref()?;
        Some(ps::ended(&container.container_id.to_string(), termination))
    });
    match ended.collect::<Vec<_>>() {
        ended if ended.is_empty() => Ok(()),
        ended => Err(Failure::message(ended.join("\n"))),
    }
}

/// Empties the screen; an empty line where there is none. What was shown before the program started can still be scrolled to.
fn clear_terminal() -> io::Result<()> {
    output::line(if output::has_screen(&io::stdout()) { "\x1b[H\x1b[J" } else { "" })
}

fn show(containers: &[Container], before: &Sample, as_json: bool) -> io::Result<()> {
    if as_json {
        return output::json(containers);
    }
    let columns = [
        Column::new("ID").elastic(),
        Column::new("CPU"),
        Column::new("CPU TIME").optional(5).if_any(),
        Column::new("CPUS").optional(1).if_any(),
        Column::new("MEMORY"),
        Column::new("LIMIT").optional(0).if_any(),
        Column::new("PROCESSES").optional(2).if_any(),
        Column::new("BLOCK READ").optional(4).if_any(),
        Column::new("WRITTEN").optional(4).if_any(),
        Column::new("DISK").optional(3).if_any(),
        Column::new("DISK LIMIT").optional(6).if_any(),
        Column::new("FAILED").elastic().if_any(),
    ];
    let mut table = Table::new(columns.into());
    containers.iter().for_each(|container| table.push(row(container, before)));
    table.print()
}

fn row(container: &Container, before: &Sample) -> Vec<Cell> {
    let none = ResourceStatistics::default();
    let statistics = container.resource_statistics.as_ref().unwrap_or(&none);
    let dash = || "-".to_owned();
    let bytes = |bytes: Option<u64>| bytes.map_or_else(dash, format::bytes);
    let failed: Vec<&str> = container.failures.iter().map(|failure| failure.plugin.as_str()).collect();
    let io = block_bytes(statistics);
    let limited = |used: Option<u64>, limit| Cell::toned(bytes(used), near(used, limit));
    vec![
        container.container_id.to_string().into(),
        before.cpus(container).map_or_else(dash, format::percent).into(),
        cpu_time(statistics).map_or_else(dash, |used| format!("{used:.2} s")).into(),
        statistics.cpus_limit.map_or_else(dash, |cpus| cpus.to_string()).into(),
        limited(memory(statistics), statistics.mem_limit_bytes),
        bytes(statistics.mem_limit_bytes).into(),
        statistics.processes.map_or_else(dash, |count| count.to_string()).into(),
        bytes(io.map(|(read, _)| read)).into(),
        bytes(io.map(|(_, written)| written)).into(),
        limited(statistics.disk_used_bytes, statistics.disk_limit_bytes),
        bytes(statistics.disk_limit_bytes).into(),
        Cell::toned(failed.join(", "), Tone::Bad),
    ]
}

/// How a usage is, beside its limit.
#[expect(clippy::cast_precision_loss, reason = "compared with a tenth")]
pub(super) fn near(used: Option<u64>, limit: Option<u64>) -> Tone {
    match (used, limit) {
        (Some(used), Some(limit)) if used as f64 >= limit as f64 * NEAR => Tone::Warning,
        _ => Tone::Plain,
    }
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
                "disk_used_bytes": 8_145_728, "disk_limit_bytes": 8_388_608,
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
        let mut earlier = container.clone();
        let statistics = earlier.resource_statistics.as_mut().unwrap();
        statistics.timestamp = 10.0;
        statistics.cpus_user_time_secs = Some(1.75);
        let before = Sample::of(&[earlier]);
        let texts = |cells: Vec<Cell>| cells.into_iter().map(|cell| cell.text).collect::<Vec<_>>();
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
            "7.8 MiB",
            "8.0 MiB",
            "test/fault",
        ];
        let shown = row(&container, &before);
        assert_eq!(shown[9], Cell::toned("7.8 MiB", Tone::Warning), "its limit is near");
        assert_eq!(texts(shown), expected);
        assert_eq!(before.io_rate(&container), Some(0.0));
        assert_eq!(texts(row(&container, &Sample::default()))[..3], ["web", "-", "2.50 s"]);
        let idle = Container { resource_statistics: None, failures: Vec::new(), ..container };
        assert_eq!(texts(row(&idle, &before))[1..], ["-", "-", "-", "-", "-", "-", "-", "-", "-", "-", ""]);
    }
}
