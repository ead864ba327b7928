//! `cofferdam ps`: lists containers.

mod filter;
mod template;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::filter::Filter;
use self::template::Template;
use super::client::{Client, ClientError};
use super::failure::Failure;
use super::output::{Cell, Column, Table, Tone};
use super::{Outcome, block_on, format, output};
use crate::api::operator::encode_id;
use crate::api::operator::types::{
    Call, Container, FetchProgress, GetContainers, PullProgress, Response, Termination, TimeInfo,
};
use cofferdam_core::model::{ContainerId, Ended};

/// Lists containers
///
/// Examples:
///   cofferdam ps
///   cofferdam ps -a --json
///   cofferdam ps --filter exited=137 --format '{{.ID}} {{.Age}}'
///   cofferdam rm $(cofferdam ps -q --filter state=ENDED)
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Include containers that have ended
    #[arg(long, short)]
    all: bool,
    /// Only containers whose id contains a text (`name=TEXT`), in a state (`state=ENDED`), that have exited with a status
    /// (`exited=137`), or that are nested in one (`parent=ID`). Of the filters with one key, one must match
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = filter::parse)]
    filter: Vec<Filter>,
    /// Print a line for each container, with the fields `{{.ID}}`, `{{.State}}`, `{{.Pid}}`, `{{.Age}}`, `{{.Command}}` and
    /// `{{.Exit}}`
    #[arg(long, value_name = "TEMPLATE", value_parser = Template::parse, conflicts_with_all = ["json", "quiet"])]
    format: Option<Template>,
    /// Print ids only, one per line
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON: an array of `Container` as in GET_CONTAINERS (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let details = Details { status: !arguments.quiet, statistics: arguments.json };
    let mut containers = block_on(async { Ok(list(client, &[], details).await?) })?;
    let with_ended = arguments.all || filter::is_about_ended(&arguments.filter);
    containers.retain(|container| {
        (with_ended || is_live(container)) && filter::is_listed(container, &arguments.filter)
    });
    if arguments.json {
        output::json(&containers)?;
    } else if arguments.quiet {
        containers.iter().try_for_each(|container| output::line(&container.container_id.to_string()))?;
    } else if let Some(template) = &arguments.format {
        containers.iter().try_for_each(|container| output::line(&template.line(&Row::of(container))))?;
    } else {
        let columns = [
            Column::new("ID").elastic(),
            Column::new("STATE").elastic(),
            Column::new("PID").optional(2),
            Column::new("AGE").optional(1),
            Column::new("COMMAND").elastic(),
        ];
        let mut table = Table::new(columns.into());
        containers.iter().for_each(|container| table.push(row(container)));
        table.print()?;
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

/// What is shown of a container.
#[derive(Debug, Clone)]
struct Row {
    id: String,
    state: String,
    pid: String,
    age: String,
    command: String,
    exit: String,
}

impl Row {
    fn of(container: &Container) -> Self {
        let dash = || "-".to_owned();
        let pid = container.container_status.as_ref().and_then(|status| status.executor_pid);
        Self {
            id: container.container_id.to_string(),
            state: container.state.clone().unwrap_or_else(dash),
            pid: pid.map_or_else(dash, |pid| pid.to_string()),
            age: container.launched.as_ref().map_or_else(dash, age),
            command: container.command.clone().unwrap_or_default(),
            exit: container.termination.as_ref().map_or_else(dash, exit_description),
        }
    }
}

fn row(container: &Container) -> Vec<Cell> {
    let row = Row::of(container);
    vec![
        row.id.into(),
        Cell::toned(state(container), tone(container)),
        row.pid.into(),
        row.age.into(),
        // Longer than any terminal is wide; the rest is shown by `inspect`.
        output::truncated(&output::escape_control(&row.command), 500).into(),
    ]
}

fn state(container: &Container) -> String {
    let state = container.state.as_deref().unwrap_or("-");
    match &container.termination {
        _ if !container.cleanup_errors.is_empty() => format!("{state} (cleanup failed)"),
        Some(termination) => format!("{state} ({})", exit_description(termination)),
        None => match (&container.pull, &container.fetch) {
            (Some(pull), _) => format!("{state} (pulling {}%)", percent(pull)),
            (None, Some(FetchProgress { files, fetched_files, .. })) => {
                format!("{state} ({fetched_files} of {files} files)")
            }
            (None, None) => state.to_owned(),
        },
    }
}

/// How far a pull is, by its bytes; by its layers if all of these are there.
fn percent(pull: &PullProgress) -> u64 {
    let (done, all) = match pull.bytes {
        0 => (pull.pulled_layers, pull.layers),
        bytes => (pull.received, bytes),
    };
    let percent = u128::from(done.min(all)) * 100 / u128::from(all.max(1));
    u64::try_from(percent).unwrap_or(100)
}

/// How far a pull is, as a phrase.
pub(super) fn pull_description(pull: &PullProgress) -> String {
    let PullProgress { layers, pulled_layers, bytes, received } = pull;
    format!(
        "{} of {} received, {pulled_layers} of {layers} layers in the store",
        format::bytes(*received),
        format::bytes(*bytes)
    )
}

/// How far a fetch is, as a phrase.
pub(super) fn fetch_description(fetch: &FetchProgress) -> String {
    let FetchProgress { files, fetched_files, bytes, received } = fetch;
    let done = format!("{fetched_files} of {files} files");
    match bytes {
        Some(bytes) => {
            format!("{done}, {} of {} of the next one", format::bytes(*received), format::bytes(*bytes))
        }
        None if *received > 0 => format!("{done}, {} of the next one", format::bytes(*received)),
        None => done,
    }
}

/// How a container is: what runs is as it should be, what has failed or cannot be cleaned up is not.
pub(super) fn tone(container: &Container) -> Tone {
    match (container.state.as_deref(), &container.termination) {
        _ if !container.cleanup_errors.is_empty() => Tone::Bad,
        (Some("RUNNING"), _) => Tone::Good,
        (Some("ENDED"), Some(Termination { exit_status: Some(0), .. })) => Tone::Faint,
        (Some("ENDED"), _) => Tone::Bad,
        _ => Tone::Warning,
    }
}

/// The error of a container that has ended or is about to, if that is why something about it was refused; otherwise that of the
/// agent.
pub(super) async fn explain(client: &Client, id: &ContainerId, error: ClientError) -> Failure {
    let found = match error {
        ClientError::Refused { .. } => list(client, std::slice::from_ref(id), Details::NONE).await,
        _ => return error.into(),
    };
    match found.ok().and_then(|found| found.into_iter().next()) {
        Some(Container { termination: Some(termination), .. }) => {
            Failure::message(ended(id.as_str(), &termination))
        }
        Some(container) if container.state.as_deref() == Some("DESTROYING") => {
            Failure::message(format!("container `{id}` is ending; `cofferdam wait {id}` waits until it has"))
        }
        _ => error.into(),
    }
}

/// That a container has ended, and how.
pub(super) fn ended(id: &str, termination: &Termination) -> String {
    let how = exit_description(termination);
    format!("container `{id}` has ended: {how}; `cofferdam logs {id}` shows its output")
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
