//! `cofferdam ps`: lists containers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::client::{Client, ClientError};
use super::{Outcome, block_on, format, output};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, Container, GetContainers, Response, Termination, TimeInfo};
use cofferdam_core::model::{ContainerId, Ended};

/// Lists containers
///
/// Examples:
///   cofferdam ps
///   cofferdam ps -a --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Include containers that have ended
    #[arg(long, short)]
    all: bool,
    /// Print ids only, one per line
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let details = Details { status: arguments.json, statistics: arguments.json };
    let mut containers = block_on(async { Ok(list(client, &[], details).await?) })?;
    containers.retain(|container| arguments.all || is_live(container));
    if arguments.json {
        output::json(&containers)?;
    } else if arguments.quiet {
        for container in &containers {
            output::line(&container.container_id.to_string())?;
        }
    } else {
        let rows: Vec<Vec<String>> = containers.iter().map(row).collect();
        output::table(&["ID", "STATE", "PID", "AGE", "COMMAND"], &rows)?;
    }
    Ok(0)
}

/// The data for which the agent calls plugins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Details {
    pub(super) status: bool,
    pub(super) statistics: bool,
}

impl Details {
    pub(super) const NONE: Self = Self { status: false, statistics: false };
    pub(super) const STATUS: Self = Self { status: true, statistics: false };
    pub(super) const STATISTICS: Self = Self { status: false, statistics: true };
}

/// The containers with these ids, or all.
pub(super) async fn list(
    client: &Client,
    ids: &[ContainerId],
    details: Details,
) -> Result<Vec<Container>, ClientError> {
    let call = Call::GetContainers(GetContainers {
        show_nested: Some(true),
        show_standalone: Some(true),
        show_status: Some(details.status),
        show_statistics: Some(details.statistics),
        container_ids: ids.iter().map(encode_id).collect(),
    });
    client
        .ask(&call, |response| match response {
            Response::GetContainers(list) => Some(list.containers),
            _ => None,
        })
        .await
}

/// Whether a container has not ended.
pub(super) fn is_live(container: &Container) -> bool {
    container.state.as_deref() != Some("ENDED")
}

fn row(container: &Container) -> Vec<String> {
    let pid = container.container_status.as_ref().and_then(|status| status.executor_pid);
    vec![
        container.container_id.to_string(),
        state(container),
        pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        container.launched.as_ref().map_or_else(|| "-".to_owned(), age),
        truncate(&output::escape_control(container.command.as_deref().unwrap_or_default())),
    ]
}

fn state(container: &Container) -> String {
    let state = container.state.as_deref().unwrap_or("-");
    match &container.termination {
        _ if !container.cleanup_errors.is_empty() => format!("{state} (cleanup failed)"),
        Some(termination) => format!("{state} ({})", exit_description(termination)),
        None => state.to_owned(),
    }
}

/// How a container ended, as a short phrase.
pub(super) fn exit_description(termination: &Termination) -> String {
    match termination.exit_status {
        Some(status) => Ended::from_raw(status).to_string(),
        None => "not started".to_owned(),
    }
}

fn age(launched: &TimeInfo) -> String {
    let launched = UNIX_EPOCH + Duration::from_nanos(launched.nanoseconds.try_into().unwrap_or_default());
    format::duration(SystemTime::now().duration_since(launched).unwrap_or_default())
}

fn truncate(command: &str) -> String {
    const MAX_WIDTH: usize = 60;
    if command.chars().count() <= MAX_WIDTH {
        return command.to_owned();
    }
    command.chars().take(MAX_WIDTH - 1).chain(['…']).collect()
}
