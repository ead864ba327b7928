//! `cofferdam stats`: what containers use.

use super::client::Client;
use super::report::Failure;
use super::{Outcome, amount, container_id, converse, out, ps};
use crate::api::operator::types::{Container, ResourceStatistics};
use cofferdam_core::model::ContainerId;

/// Shows what containers use
///
/// Examples:
///   cofferdam stats
///   cofferdam stats web --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Which containers; all that run, if none is named
    #[arg(value_parser = container_id)]
    ids: Vec<ContainerId>,
    /// As JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let mut containers = converse(async { Ok(ps::list(client).await?) })?;
    for id in &arguments.ids {
        if !containers.iter().any(|container| container.container_id.to_string() == id.as_str()) {
            return Err(Failure::told(format!("there is no container `{id}`")));
        }
    }
    let asked = |container: &Container| {
        let id = container.container_id.to_string();
        arguments.ids.iter().any(|asked| asked.as_str() == id)
            || arguments.ids.is_empty() && container.resource_statistics.is_some()
    };
    containers.retain(asked);
    if arguments.json {
        out::json(&containers)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = containers.iter().map(row).collect();
    out::table(&["ID", "CPU TIME", "CPUS", "MEMORY", "LIMIT", "PROCESSES", "FAILED"], &rows)?;
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
        statistics.mem_total_bytes.or(statistics.mem_rss_bytes).map_or_else(dash, amount::bytes),
        statistics.mem_limit_bytes.map_or_else(dash, amount::bytes),
        statistics.processes.map_or_else(dash, |count| count.to_string()),
        failed.join(", "),
    ]
}
