//! `cofferdam update`: other amounts for a running container.

use super::amount::Amounts;
use super::client::Client;
use super::report::Failure;
use super::{Outcome, container_id, converse, inspect};
use crate::api::operator::types::{Call, UpdateContainer};
use crate::api::operator::{read_resources, wire_id, wire_limits, wire_resources};
use cofferdam_core::model::ContainerId;

/// Changes what a running container may use
///
/// What is not named stays as it is.
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
    amounts: Amounts,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    if arguments.amounts.is_empty() {
        return Err(Failure::told(
            "there is nothing to change; give `--cpus` or `--memory`, or their limits",
        ));
    }
    let id = &arguments.id;
    converse(async {
        // The call replaces everything, so it starts from what there is.
        let now = inspect::ask(client, id).await?;
        let current = read_resources(id, &now.resources, &now.limits).map_err(Failure::of)?;
        let resources = arguments.amounts.apply(current);
        let call = UpdateContainer {
            container_id: wire_id(id),
            resources: wire_resources(&resources),
            limits: wire_limits(&resources),
        };
        client.tell(&Call::UpdateContainer(call)).await?;
        Ok(0)
    })
}
