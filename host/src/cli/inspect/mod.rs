//! `cofferdam inspect`: shows the details of a container.

mod plan;

use std::io;

use super::client::{Client, ClientError};
use super::output::{Cell, Column, Table, Tone};
use super::ps::Details;
use super::{Outcome, block_on, container_id, output, ps};
use crate::api::operator::encode_id;
use crate::api::operator::types::{
    Call, InspectContainer, InspectedContainer, NetworkInfo, Participant, Response,
};
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
        let networks = block_on(async { Ok(networks(client, &inspected, &arguments.id).await?) })?;
        print_facts(&inspected, &networks)?;
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

/// The networks of a container that has not ended.
async fn networks(
    client: &Client,
    inspected: &InspectedContainer,
    id: &ContainerId,
) -> Result<Vec<NetworkInfo>, ClientError> {
    if inspected.pid.is_none() {
        return Ok(Vec::new());
    }
    let containers = ps::list(client, std::slice::from_ref(id), Details::STATUS).await?;
    let statuses = containers.into_iter().filter_map(|container| container.container_status);
    Ok(statuses.flat_map(|status| status.network_infos).collect())
}

/// A network on one line: its name, addresses and ports.
fn describe_network(network: &NetworkInfo) -> String {
    let mut line = network.name.clone().unwrap_or_default();
    for address in network.ip_addresses.iter().filter_map(|address| address.ip_address.as_ref()) {
        line = format!("{line} {address}");
    }
    for mapping in &network.port_mappings {
        let protocol = mapping.protocol.as_deref().unwrap_or("tcp");
        line = format!("{line} {}:{}/{protocol}", mapping.host_port, mapping.container_port);
    }
    line
}

fn print_facts(inspected: &InspectedContainer, networks: &[NetworkInfo]) -> io::Result<()> {
    let mut facts = vec![
        ("container", inspected.container_id.to_string()),
        ("state", inspected.state.clone()),
        ("command", inspected.command.clone()),
        ("sandbox", inspected.sandbox.clone()),
    ];
    facts.extend(inspected.pull.as_ref().map(|pull| ("pull", ps::pull_description(pull))));
    facts.extend(inspected.fetch.as_ref().map(|fetch| ("fetch", ps::fetch_description(fetch))));
    facts.extend(inspected.pid.map(|pid| ("pid", pid.to_string())));
    facts.extend(inspected.stdout.clone().map(|file| ("stdout", file)));
    facts.extend(inspected.stderr.clone().map(|file| ("stderr", file)));
    facts.extend(networks.iter().map(|network| ("network", describe_network(network))));
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
    output::facts(10, facts)
}

fn print_plan(inspected: &InspectedContainer) -> io::Result<()> {
    for table in plan::tables(&inspected.plan) {
        output::line("")?;
        table.print()?;
    }
    Ok(())
}

fn print_plugins(inspected: &InspectedContainer) -> io::Result<()> {
    if inspected.plugins.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let mut table = Table::new(vec![
        Column::new("PLUGIN"),
        Column::new("VERSION").optional(0),
        Column::new("STATE").elastic(),
    ]);
    inspected.plugins.iter().for_each(|plugin| table.push(plugin_row(plugin)));
    table.print()
}

fn plugin_row(participant: &Participant) -> Vec<Cell> {
    let (state, tone) = match &participant.unavailable {
        Some(reason) => (format!("unavailable: {reason}"), Tone::Bad),
        // It keeps nothing.
        None if participant.state.is_null() => ("-".to_owned(), Tone::Plain),
        None => (participant.state.to_string(), Tone::Plain),
    };
    vec![
        participant.plugin.clone().into(),
        participant.version.clone().unwrap_or_default().into(),
        Cell::toned(output::escape_control(&state), tone),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_network_is_shown_with_its_addresses_and_ports() {
        let network = json!({
            "name": "web",
            "ip_addresses": [{ "ip_address": "10.88.0.2" }, { "protocol": "IPv6", "ip_address": "fd00::2" }],
            "port_mappings": [{ "host_port": 8080, "container_port": 80 }],
        });
        let network = serde_json::from_value(network).unwrap();
        assert_eq!(describe_network(&network), "web 10.88.0.2 fd00::2 8080:80/tcp");
    }
}
