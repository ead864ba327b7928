//! `cofferdam ps`: what there is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::client::{Client, ClientError};
use super::{Outcome, amount, converse, out};
use crate::api::operator::types::{Call, Container, GetContainers, Response, Termination, TimeInfo};
use cofferdam_core::model::Ended;

/// Lists containers
///
/// Examples:
///   cofferdam ps
///   cofferdam ps -a --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Also those that have ended and were not removed
    #[arg(long, short)]
    all: bool,
    /// Only ids, one per line
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// As JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let mut containers = converse(async { Ok(list(client).await?) })?;
    containers.retain(|container| arguments.all || container.state.as_deref() != Some("ENDED"));
    if arguments.json {
        out::json(&containers)?;
    } else if arguments.quiet {
        for container in &containers {
            out::line(&container.container_id.to_string())?;
        }
    } else {
        let rows: Vec<Vec<String>> = containers.iter().map(row).collect();
        out::table(&["ID", "STATE", "PID", "AGE", "COMMAND"], &rows)?;
    }
    Ok(0)
}

/// Every container there is.
pub(super) async fn list(client: &Client) -> Result<Vec<Container>, ClientError> {
    let call = Call::GetContainers(GetContainers { show_nested: Some(true), show_standalone: Some(true) });
    client
        .ask(&call, |response| match response {
            Response::GetContainers(list) => Some(list.containers),
            _ => None,
        })
        .await
}

fn row(container: &Container) -> Vec<String> {
    let pid = container.container_status.as_ref().and_then(|status| status.executor_pid);
    vec![
        container.container_id.to_string(),
        state(container),
        pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        container.launched.as_ref().map_or_else(|| "-".to_owned(), age),
        clip(&out::escape_control(container.command.as_deref().unwrap_or_default())),
    ]
}

fn state(container: &Container) -> String {
    let state = container.state.as_deref().unwrap_or("-");
    match &container.termination {
        _ if !container.stuck.is_empty() => format!("{state} (stuck)"),
        Some(ended) => format!("{state} ({})", ending(ended)),
        None => state.to_owned(),
    }
}

/// How a container ended, in a few words.
pub(super) fn ending(ended: &Termination) -> String {
    ended.exit_status.map_or_else(|| "never ran".to_owned(), |status| Ended::from_raw(status).to_string())
}

fn age(since: &TimeInfo) -> String {
    let since = UNIX_EPOCH + Duration::from_nanos(since.nanoseconds.try_into().unwrap_or_default());
    amount::span(SystemTime::now().duration_since(since).unwrap_or_default())
}

/// A command may be a whole program; a list shows where it begins.
fn clip(command: &str) -> String {
    const LONGEST: usize = 60;
    if command.chars().count() <= LONGEST {
        return command.to_owned();
    }
    command.chars().take(LONGEST - 1).chain(['…']).collect()
}
