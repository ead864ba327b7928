//! `cofferdam inspect`: shows the details of a container.

use std::io;

use super::client::{Client, ClientError};
use super::{Outcome, block_on, container_id, output, ps};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, InspectContainer, InspectedContainer, Participant, Response};
use cofferdam_core::model::ContainerId;

/// Shows the details of a container, including which plugin set what
///
/// Examples:
///   cofferdam inspect web
///   cofferdam inspect web --json | jq '.plan[] | select(.owner == "filesystem/linux")'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_parser = container_id)]
    id: ContainerId,
    /// Print JSON: an `InspectedContainer` as in INSPECT_CONTAINER (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let inspected = block_on(async { Ok(inspect(client, &arguments.id).await?) })?;
    if arguments.json {
        output::json(&inspected)?;
    } else {
        print_facts(&inspected)?;
        print_plan(&inspected)?;
        print_plugins(&inspected)?;
    }
    Ok(0)
}

/// Asks the agent for the details of a container.
pub(super) async fn inspect(client: &Client, id: &ContainerId) -> Result<InspectedContainer, ClientError> {
    let call = Call::InspectContainer(InspectContainer { container_id: encode_id(id) });
    client
        .ask(&call, |response| match response {
            Response::InspectContainer(inspected) => Some(*inspected),
            _ => None,
        })
        .await
}

fn print_facts(inspected: &InspectedContainer) -> io::Result<()> {
    let mut facts = vec![
        ("container", inspected.container_id.to_string()),
        ("state", inspected.state.clone()),
        ("command", inspected.command.clone()),
        ("sandbox", inspected.sandbox.clone()),
    ];
    facts.extend(inspected.pid.map(|pid| ("pid", pid.to_string())));
    facts.extend(inspected.stdout.clone().map(|file| ("stdout", file)));
    facts.extend(inspected.stderr.clone().map(|file| ("stderr", file)));
    for resource in &inspected.resources {
        let amount =
            resource.scalar.as_ref().map_or_else(|| "…".to_owned(), |scalar| scalar.value.to_string());
        facts.push(("resource", format!("{} {amount}", resource.name)));
    }
    for (name, limit) in &inspected.limits {
        facts.push(("limit", format!("{name} {}", limit.value)));
    }
    if let Some(termination) = &inspected.termination {
        facts.push(("ended", ps::exit_description(termination)));
        facts.extend(termination.message.clone().map(|message| ("message", message)));
    }
    facts.extend(inspected.cleanup_errors.iter().map(|error| ("cleanup", error.clone())));
    for (name, fact) in facts {
        output::line(&format!("{name:10} {}", output::escape_control(&fact)))?;
    }
    Ok(())
}

fn print_plan(inspected: &InspectedContainer) -> io::Result<()> {
    if inspected.plan.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let rows: Vec<Vec<String>> = inspected
        .plan
        .iter()
        .map(|entry| vec![entry.owner.clone(), entry.field.clone(), output::escape_control(&entry.value)])
        .collect();
    output::table(&["SET BY", "FIELD", "VALUE"], &rows)
}

fn print_plugins(inspected: &InspectedContainer) -> io::Result<()> {
    if inspected.plugins.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let rows: Vec<Vec<String>> = inspected.plugins.iter().map(plugin_row).collect();
    output::table(&["PLUGIN", "VERSION", "STATE"], &rows)
}

fn plugin_row(participant: &Participant) -> Vec<String> {
    let state = match &participant.unavailable {
        Some(reason) => format!("unavailable: {reason}"),
        None => participant.state.to_string(),
    };
    vec![
        participant.plugin.clone(),
        participant.version.clone().unwrap_or_default(),
        output::escape_control(&state),
    ]
}
