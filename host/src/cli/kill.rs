//! `cofferdam kill`: sends signals to containers.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::failure::Failure;
use super::ps::Details;
use super::wait::{TIMED_OUT, wait};
use super::{Outcome, block_on, container_id, output, ps, signal, time};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, ContainerId as WireId, KillContainer, KillContainers};
use cofferdam_core::error_chain;
use cofferdam_core::model::ContainerId;

/// Containers in one request.
const PER_REQUEST: usize = 1000;

/// How long an agent may take to answer, if that is longer than the time for the containers.
const ANSWER: Duration = Duration::from_secs(10);

/// Containers that are named if they have not ended.
const MAX_SHOWN: usize = 10;

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
    /// Kill all containers and wait until they have ended; 124 is the exit status if some have not
    #[arg(long, conflicts_with_all = ["ids", "signal"])]
    all: bool,
    /// How long to wait for all of them. The agent has 10 seconds to answer in any case
    #[arg(long, value_name = "TIME", value_parser = time::parse_duration, default_value = "5m", requires = "all")]
    timeout: Duration,
    /// Print JSON: an array of the ids
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    block_on(async {
        if arguments.all {
            return kill_all(client, arguments.timeout, arguments.json).await;
        }
        let (mut signalled, mut failed) = (Vec::new(), Vec::new());
        for id in &arguments.ids {
            let force = arguments.force.then_some(true);
            let call = KillContainer { container_id: encode_id(id), signal: Some(arguments.signal), force };
            match client.tell(&Call::KillContainer(call)).await {
                Ok(()) => signalled.push(id.clone()),
                // One that has ended does not keep the others alive.
                Err(error) => failed.push(ps::explain(client, id, error).await),
            }
        }
        if arguments.json && (failed.is_empty() || arguments.ids.len() > 1) {
            output::json_ids(&signalled)?;
        }
        match failed.len() {
            0 => Ok(0),
            1 => Err(failed.remove(0)),
            _ => {
                let describe = |failure: &Failure| error_chain::describe(failure.error());
                let errors: Vec<String> = failed.iter().map(describe).collect();
                Err(Failure::message(errors.join("; ")))
            }
        }
    })
}

/// Sends a signal to a container.
pub(super) async fn kill(client: &Client, id: &WireId, signal: i32) -> Result<(), ClientError> {
    let call = KillContainer { container_id: id.clone(), signal: Some(signal), force: None };
    client.tell(&Call::KillContainer(call)).await
}

async fn kill_all(client: &Client, timeout: Duration, as_json: bool) -> Outcome {
    let deadline = Instant::now() + timeout;
    let answer_by = Instant::now() + timeout.max(ANSWER);
    // Nested containers end with their parents.
    let containers = answered(answer_by, ps::list(client, &[], Details::NONE)).await??.into_iter();
    let roots = containers.filter(|found| found.container_id.parent.is_none() && ps::is_live(found));
    let ids: Vec<WireId> = roots.map(|container| container.container_id).collect();
    let mut rest = &ids[..];
    let mut count = PER_REQUEST;
    while !rest.is_empty() {
        count = count.min(rest.len());
        let (these, others) = rest.split_at(count);
        let call = Call::KillContainers(KillContainers { container_ids: these.to_vec() });
        match answered(answer_by, client.tell(&call)).await? {
            Ok(()) => rest = others,
            // Larger than `api.max_body`.
            Err(ClientError::Refused { status: 413, .. }) if count > 1 => count /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    let (mut ended, mut left) = (Vec::new(), Vec::new());
    // When the time is over: those that have not ended.
    let mut live: Option<HashSet<String>> = None;
    for id in &ids {
        if live.is_none() {
            match tokio::time::timeout_at(deadline, wait(client, id)).await {
                Ok(Ok(_) | Err(ClientError::Refused { status: 404, .. })) => {}
                Ok(Err(error)) => return Err(Failure::from(error)),
                Err(_) => live = Some(answered(Instant::now() + ANSWER, live_containers(client)).await??),
            }
        }
        if live.as_ref().is_some_and(|live| live.contains(&id.to_string())) {
            left.push(format!("`{id}`"));
            continue;
        }
        ended.push(id.to_string());
        if !as_json {
            output::line(&id.to_string())?;
        }
    }
    if as_json {
        output::json(&ended)?;
    }
    if left.is_empty() { Ok(0) } else { Err(not_ended(&left, timeout)) }
}

/// The answer of an agent that gives one in time.
async fn answered<T>(by: Instant, call: impl Future<Output = T>) -> Result<T, Failure> {
    let no_answer = |_| {
        let text = "the agent does not answer; try again, or restart it: its containers keep running";
        Failure::message(text).with_status(TIMED_OUT)
    };
    tokio::time::timeout_at(by, call).await.map_err(no_answer)
}

async fn live_containers(client: &Client) -> Result<HashSet<String>, ClientError> {
    let containers = ps::list(client, &[], Details::NONE).await?.into_iter();
    Ok(containers.filter(ps::is_live).map(|container| container.container_id.to_string()).collect())
}

fn not_ended(left: &[String], timeout: Duration) -> Failure {
    let shown = left.iter().take(MAX_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match left.len().saturating_sub(MAX_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let timeout = humantime::format_duration(timeout);
    Failure::message(format!(
        "not ended within {timeout}: {shown}{more}; `cofferdam inspect` shows what their end waits for, \
         `cofferdam kill --force` does not wait for plugins"
    ))
    .with_status(TIMED_OUT)
}
