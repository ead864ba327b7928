//! `cofferdam rm`: forgets containers that have ended.

use super::client::{Client, ClientError};
use super::kill::kill;
use super::wait::wait;
use super::{Outcome, container_id, converse};
use crate::api::operator::types::{Call, RemoveContainer};
use crate::api::operator::wire_id;
use cofferdam_core::model::ContainerId;

/// Removes containers that have ended, with their sandboxes and logs
///
/// Examples:
///   cofferdam rm web
///   cofferdam rm --force web db
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Which containers
    #[arg(value_parser = container_id, required = true)]
    ids: Vec<ContainerId>,
    /// End those that still run
    #[arg(long, short)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    converse(async {
        for id in &arguments.ids {
            if arguments.force {
                end(client, id).await?;
            }
            remove(client, id).await?;
        }
        Ok(0)
    })
}

/// Removes a container that has ended.
pub(super) async fn remove(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    client.tell(&Call::RemoveContainer(RemoveContainer { container_id: wire_id(id) })).await
}

/// Ends a container if it has not ended, and waits for that.
pub(super) async fn end(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    match kill(client, &wire_id(id), libc::SIGKILL).await {
        // The agent knows none of that name that could be killed; whether there is one to wait for is next.
        Ok(()) | Err(ClientError::Refused { status: 404 | 409, .. }) => {}
        Err(error) => return Err(error),
    }
    match wait(client, &wire_id(id)).await {
        Ok(_) | Err(ClientError::Refused { status: 404, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
