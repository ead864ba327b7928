//! `cofferdam inspect`: everything about a container.

use super::client::{Client, ClientError};
use super::{Outcome, container_id, converse, out, ps};
use crate::api::operator::types::{Call, InspectContainer, InspectedContainer, Response};
use crate::api::operator::wire_id;
use cofferdam_core::model::ContainerId;

/// Shows everything about a container, and which plugin asked for what
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
    /// As JSON: an `InspectedContainer` as in INSPECT_CONTAINER (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let inspected = converse(async { Ok(ask(client, &arguments.id).await?) })?;
    if arguments.json {
        out::json(&inspected)?
    } else {
        show(&inspected)?
    }
    Ok(0)
}

/// Asks for everything about a container.
pub(super) async fn ask(client: &Client, id: &ContainerId) -> Result<InspectedContainer, ClientError> {
    let call = Call::InspectContainer(InspectContainer { container_id: wire_id(id) });
    client
        .ask(&call, |response| match response {
            Response::InspectContainer(inspected) => Some(*inspected),
            _ => None,
        })
        .await
}

fn show(inspected: &InspectedContainer) -> std::io::Result<()> {
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
    if let Some(ended) = &inspected.termination {
        facts.push(("ended", ps::ending(ended)));
        facts.extend(ended.message.clone().map(|message| ("message", message)));
    }
    facts.extend(inspected.stuck.iter().map(|stuck| ("stuck", stuck.clone())));
    for (name, fact) in facts {
        out::line(&format!("{name:10} {}", out::escape_control(&fact)))?;
    }

    if !inspected.plan.is_empty() {
        out::line("")?;
        let rows: Vec<Vec<String>> = inspected
            .plan
            .iter()
            .map(|entry| vec![entry.owner.clone(), entry.field.clone(), out::escape_control(&entry.value)])
            .collect();
        out::table(&["ASKED BY", "FIELD", "VALUE"], &rows)?;
    }
    if !inspected.plugins.is_empty() {
        out::line("")?;
        let rows: Vec<Vec<String>> = inspected
            .plugins
            .iter()
            .map(|served| {
                let state = match &served.refused {
                    Some(why) => format!("does not serve it any more: {why}"),
                    None => served.state.to_string(),
                };
                vec![
                    served.plugin.clone(),
                    served.version.clone().unwrap_or_default(),
                    out::escape_control(&state),
                ]
            })
            .collect();
        out::table(&["PLUGIN", "VERSION", "STATE"], &rows)?;
    }
    Ok(())
}
