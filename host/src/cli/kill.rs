//! `cofferdam kill`: sends signals to containers.

use super::client::{Client, ClientError};
use super::failure::Failure;
use super::ps::Details;
use super::wait::wait;
use super::{Outcome, block_on, container_id, output, ps, signal};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, ContainerId as WireId, KillContainer, KillContainers};
use cofferdam_core::model::ContainerId;

/// Containers in one request.
const PER_REQUEST: usize = 1000;

/// Sends a signal to containers
///
/// KILL, the default, kills all processes of a container.
///
/// Examples:
///   cofferdam kill web
///   cofferdam kill --signal TERM web db
///   cofferdam kill --all
///   cofferdam kill --force web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers
    #[arg(value_parser = container_id, required_unless_present = "all")]
    ids: Vec<ContainerId>,
    /// The signal, by name or number
    #[arg(long, short, default_value = "KILL", value_parser = signal::parse)]
    signal: i32,
    /// End containers whose plugins do not clean up, as when one was removed from the chain. The missed cleanup is shown
    /// by `inspect`, and performed when the plugin returns
    #[arg(long, conflicts_with_all = ["all", "signal"])]
    force: bool,
    /// Kill all containers and wait until they have ended
    #[arg(long, conflicts_with_all = ["ids", "signal"])]
    all: bool,
    /// Print JSON: an array of the ids
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    block_on(async {
        if arguments.all {
            return kill_all(client, arguments.json).await;
        }
        for id in &arguments.ids {
            let force = arguments.force.then_some(true);
            let call = KillContainer { container_id: encode_id(id), signal: Some(arguments.signal), force };
            client.tell(&Call::KillContainer(call)).await?;
        }
        if arguments.json {
            output::json_ids(&arguments.ids)?;
        }
        Ok(0)
    })
}

/// Sends a signal to a container.
pub(super) async fn kill(client: &Client, id: &WireId, signal: i32) -> Result<(), ClientError> {
    let call = KillContainer { container_id: id.clone(), signal: Some(signal), force: None };
    client.tell(&Call::KillContainer(call)).await
}

async fn kill_all(client: &Client, as_json: bool) -> Outcome {
    // Nested containers end with their parents.
    let containers = ps::list(client, &[], Details::NONE).await?.into_iter();
    let roots = containers.filter(|found| found.container_id.parent.is_none() && ps::is_live(found));
    let ids: Vec<WireId> = roots.map(|container| container.container_id).collect();
    let mut rest = &ids[..];
    let mut count = PER_REQUEST;
    while !rest.is_empty() {
        count = count.min(rest.len());
        let (these, others) = rest.split_at(count);
        match client.tell(&Call::KillContainers(KillContainers { container_ids: these.to_vec() })).await {
            Ok(()) => rest = others,
            // Larger than `api.max_body`.
            Err(ClientError::Refused { status: 413, .. }) if count > 1 => count /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    for id in &ids {
        match wait(client, id).await {
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) if as_json => {}
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) => output::line(&id.to_string())?,
            Err(error) => return Err(Failure::from(error)),
        }
    }
    if as_json {
        output::json(&ids.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    }
    Ok(0)
}
