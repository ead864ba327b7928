//! `cofferdam stop`: ends containers, which may finish their work first.

use std::time::Duration;

use super::client::{Client, ClientError};
use super::{Outcome, block_on, container_id, inspect, kill, output, ps, time, wait};
use crate::api::operator::encode_id;
use cofferdam_core::model::ContainerId;

/// Ends containers: the stop signal of their image or SIGTERM, and SIGKILL for all processes if they have not ended in time
///
/// Prints each id when its container has ended. A container that has ended already counts as stopped.
///
/// Examples:
///   cofferdam stop web
///   cofferdam stop --time 60 web db
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers
    #[arg(value_parser = container_id, required = true)]
    ids: Vec<ContainerId>,
    /// Seconds up to SIGKILL
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=time::MAX_DURATION.as_secs()))]
    time: u64,
    /// Print JSON: an array of the ids
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    block_on(async {
        let show = |id: &ContainerId| if arguments.json { Ok(()) } else { output::line(id.as_str()) };
        // All first, so that they end at the same time.
        let mut running = Vec::new();
        for id in &arguments.ids {
            let signal = stop_signal(client, id).await?;
            match kill::kill(client, &encode_id(id), signal).await {
                Ok(()) => running.push(id),
                Err(error) if has_ended(client, id, &error).await? => show(id)?,
                Err(error) => return Err(error.into()),
            }
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(arguments.time);
        for id in running {
            let wire = encode_id(id);
            if let Ok(ended) = tokio::time::timeout_at(deadline, wait::wait(client, &wire)).await {
                ended?;
            } else {
                match kill::kill(client, &wire, libc::SIGKILL).await {
                    Err(error) if !has_ended(client, id, &error).await? => return Err(error.into()),
                    _ => {
                        wait::wait(client, &wire).await?;
                    }
                }
            }
            show(id)?;
        }
        if arguments.json {
            output::json_ids(&arguments.ids)?;
        }
        Ok(0)
    })
}

/// The signal that asks a container to end: that of its image, or SIGTERM.
async fn stop_signal(client: &Client, id: &ContainerId) -> Result<i32, ClientError> {
    let plan = inspect::inspect(client, id).await?.plan;
    let requested = plan.iter().find(|entry| entry.field == "stop_signal");
    Ok(requested.and_then(|entry| entry.value.parse().ok()).unwrap_or(libc::SIGTERM))
}

/// Whether a container that could not be killed has ended.
async fn has_ended(client: &Client, id: &ContainerId, error: &ClientError) -> Result<bool, ClientError> {
    if !matches!(error, ClientError::Refused { .. }) {
        return Ok(false);
    }
    let found = ps::list(client, std::slice::from_ref(id), ps::Details::NONE).await?;
    Ok(found.first().is_some_and(|container| !ps::is_live(container)))
}
