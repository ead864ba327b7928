//! `cofferdam stats`: shows resource usage.

use super::client::Client;
use super::failure::Failure;
use super::ps::Details;
use super::{Outcome, block_on, container_id, format, output, ps};
use crate::api::operator::types::{Container, ResourceStatistics};
use cofferdam_core::model::ContainerId;

/// Shows the resource usage of containers
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
    /// Print JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let mut containers =
        block_on(async { Ok(ps::list(client, &arguments.ids, Details::STATISTICS).await?) })?;
    let is = |container: &Container, id: &ContainerId| container.container_id.to_string() == id.as_str();
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
    let rows: Vec<Vec<String>> = containers.iter().map(row).collect();
    output::table(
        &["ID", "CPU TIME", "CPUS", "MEMORY", "LIMIT", "PROCESSES", "DISK", "DISK LIMIT", "FAILED"],
        &rows,
    )?;
    Ok(0)
}

fn row(container: &Container) -> Vec<String> {
    let none = ResourceStatistics::default();
    let statistics = container.resource_statistics.as_ref().unwrap_or(&none);
    let dash = || "-".to_owned();
    let time = match (statistics.cpus_user_time_secs, statistics.cpus_system_time_secs) {
        (None, None) => dash(),
        (user, system) => format!("{:.2} s", user.unwrap_or_default() + system.unwrap_or_default()),
    };
    let failed: Vec<&str> = container.failures.iter().map(|failure| failure.plugin.as_str()).collect();
    vec![
        container.container_id.to_string(),
        time,
        statistics.cpus_limit.map_or_else(dash, |cpus| cpus.to_string()),
        statistics.mem_total_bytes.or(statistics.mem_rss_bytes).map_or_else(dash, format::bytes),
        statistics.mem_limit_bytes.map_or_else(dash, format::bytes),
        statistics.processes.map_or_else(dash, |count| count.to_string()),
        statistics.disk_used_bytes.map_or_else(dash, format::bytes),
        statistics.disk_limit_bytes.map_or_else(dash, format::bytes),
        failed.join(", "),
    ]
}
