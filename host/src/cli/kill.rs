//! `cofferdam kill`: a signal to containers, or the end of all of them.

use super::client::{Client, ClientError};
use super::report::Failure;
use super::wait::wait;
use super::{Outcome, container_id, converse, out, ps, signal};
use crate::api::operator::types::{Call, ContainerId as WireId, KillContainer};
use crate::api::operator::wire_id;
use cofferdam_core::model::ContainerId;

/// Sends a signal to containers
///
/// KILL, which is also the default, ends a container with everything in it.
///
/// Examples:
///   cofferdam kill web
///   cofferdam kill --signal TERM web db
///   cofferdam kill --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Which containers
    #[arg(value_parser = container_id, required_unless_present = "all")]
    ids: Vec<ContainerId>,
    /// The signal, by name or number
    #[arg(long, short, default_value = "KILL", value_parser = signal::parse)]
    signal: i32,
    /// End every container and wait until all are gone
    #[arg(long, conflicts_with_all = ["ids", "signal"])]
    all: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    converse(async {
        if arguments.all {
            return end_all(client).await;
        }
        for id in &arguments.ids {
            kill(client, &wire_id(id), arguments.signal).await?;
        }
        Ok(0)
    })
}

/// Sends a signal.
pub(super) async fn kill(client: &Client, id: &WireId, signal: i32) -> Result<(), ClientError> {
    let call = KillContainer { container_id: id.clone(), signal: Some(signal) };
    client.tell(&Call::KillContainer(call)).await
}

async fn end_all(client: &Client) -> Outcome {
    let live = ps::list(client).await?.into_iter().filter(|container| {
        container.container_id.parent.is_none() && container.state.as_deref() != Some("ENDED")
    });
    let ids: Vec<WireId> = live.map(|container| container.container_id).collect();
    // All at once, so that they take as long as the slowest and not as all together.
    for id in &ids {
        match kill(client, id, libc::SIGKILL).await {
            // It ended by itself in the meantime.
            Ok(()) | Err(ClientError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(Failure::from(error)),
        }
    }
    for id in &ids {
        match wait(client, id).await {
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) => out::line(&id.to_string())?,
            Err(error) => return Err(Failure::from(error)),
        }
    }
    Ok(0)
}
