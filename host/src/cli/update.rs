//! `cofferdam update`: changes the resources of a running container.

use super::client::Client;
use super::failure::Failure;
use super::inspect::inspect;
use super::resources::ResourceFlags;
use super::{Outcome, block_on, container_id, output, ps};
use crate::api::operator::types::{Call, UpdateContainer};
use crate::api::operator::{decode_resources, encode_id, encode_limits, encode_resources};
use cofferdam_core::model::ContainerId;

/// Changes the resources of a running container
///
/// Resources without a flag keep their value.
///
/// Examples:
///   cofferdam update web --memory 128m
///   cofferdam update web --cpus 0.5 --cpu-limit none
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_parser = container_id)]
    id: ContainerId,
    #[command(flatten)]
    resources: ResourceFlags,
    /// Print JSON: an array of the id
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    if arguments.resources.is_empty() {
        return Err(Failure::message(
            "nothing to change; set `--cpus`, `--cpu-limit`, `--memory` or `--memory-limit`",
        ));
    }
    let id = &arguments.id;
    block_on(async {
        // The call replaces all resources, so the current ones are needed.
        let inspected = inspect(client, id).await?;
        let current = decode_resources(id, &inspected.resources, &inspected.limits).map_err(Failure::of)?;
        let resources = arguments.resources.apply(current)?;
        let call = UpdateContainer {
            container_id: encode_id(id),
            resources: encode_resources(&resources),
            limits: encode_limits(&resources),
        };
        if let Err(error) = client.tell(&Call::UpdateContainer(call)).await {
            return Err(ps::explain(client, id, error).await);
        }
        if arguments.json {
            output::json_ids(std::slice::from_ref(id))?;
        }
        Ok(0)
    })
}
