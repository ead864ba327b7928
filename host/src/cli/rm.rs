//! `cofferdam rm`: removes containers that have ended.

use super::client::{Client, ClientError};
use super::kill::kill;
use super::wait::wait;
use super::{Outcome, block_on, container_id, output};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, RemoveContainer};
use cofferdam_core::model::ContainerId;

/// Removes containers that have ended, with their sandboxes and logs
///
/// Examples:
///   cofferdam rm web
///   cofferdam rm --force web db
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers
    #[arg(value_parser = container_id, required = true)]
    ids: Vec<ContainerId>,
    /// Kill containers that are still running
    #[arg(long, short)]
    force: bool,
    /// Print JSON: an array of the ids
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    block_on(async {
        for id in &arguments.ids {
            if arguments.force {
                kill_and_wait(client, id).await?;
            }
            remove(client, id).await?;
        }
        if arguments.json {
            output::json_ids(&arguments.ids)?;
        }
        Ok(0)
    })
}

/// Removes a container that has ended.
pub(super) async fn remove(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    client.tell(&Call::RemoveContainer(RemoveContainer { container_id: encode_id(id) })).await
}

async fn kill_and_wait(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    let id = encode_id(id);
    match kill(client, &id, libc::SIGKILL).await {
        // It has ended, is being destroyed or is unknown. `wait` and `remove` report the latter.
        Ok(()) | Err(ClientError::Refused { status: 404 | 409, .. }) => {}
        Err(error) => return Err(error),
    }
    match wait(client, &id).await {
        Ok(_) | Err(ClientError::Refused { status: 404, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
