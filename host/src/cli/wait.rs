//! `cofferdam wait`: waits for containers to end.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::failure::Failure;
use super::{Outcome, block_on, container_id, output, ps, time};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, ContainerId as WireId, Response, Termination, WaitContainer};
use cofferdam_core::model::{ContainerId, Ended};

/// Exit status if a container has not ended in time, as of timeout(1).
pub(super) const TIMED_OUT: u8 = 124;

/// Exit status for a container whose wait status is unknown.
const UNKNOWN: u8 = 125;

/// Waits for containers to end and shows how they ended
///
/// With one container, the exit status is that of its command: 128 plus the number of the signal if it was
/// killed by one, 125 if it was not started, 124 if it has not ended within `--timeout`.
///
/// Examples:
///   cofferdam wait web
///   cofferdam wait --timeout 30s web
///   cofferdam wait web db --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers
    #[arg(value_parser = container_id, required = true)]
    ids: Vec<ContainerId>,
    /// How long to wait for all of them, such as `30s`; they keep running [default: until they have ended]
    #[arg(long, value_name = "TIME", value_parser = time::parse_duration)]
    timeout: Option<Duration>,
    /// Print JSON: an object from ids to `Termination` as in WAIT_CONTAINER (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let mut terminations = BTreeMap::new();
    block_on(async {
        let deadline = arguments.timeout.map(|timeout| Instant::now() + timeout);
        for id in &arguments.ids {
            let wire_id = encode_id(id);
            let termination = tokio::select! {
                biased;
                termination = wait(client, &wire_id) => termination?,
                () = at(deadline) => match is_live(client, id).await? {
                    true => return Err(timed_out(id, arguments.timeout)),
                    // The agent answers at once.
                    false => wait(client, &wire_id).await?,
                },
            };
            if !arguments.json {
                output::line(&describe(id, &termination))?;
            }
            terminations.insert(id.to_string(), termination);
        }
        Ok(())
    })?;
    if arguments.json {
        output::json(&terminations)?;
    }
    let mut values = terminations.values();
    Ok(match (values.next(), values.next()) {
        (Some(only), None) => exit_status(only.exit_status),
        _ => 0,
    })
}

/// Resolves at a time; never without one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn is_live(client: &Client, id: &ContainerId) -> Result<bool, ClientError> {
    let found = ps::list(client, std::slice::from_ref(id), ps::Details::NONE).await?;
    Ok(found.first().is_some_and(ps::is_live))
}

fn timed_out(id: &ContainerId, timeout: Option<Duration>) -> Failure {
    let timeout = humantime::format_duration(timeout.unwrap_or_default());
    Failure::message(format!("container `{id}` has not ended within {timeout}; it keeps running"))
        .with_status(TIMED_OUT)
}

fn describe(id: &ContainerId, termination: &Termination) -> String {
    let line = format!("{id} {}", ps::exit_description(termination));
    match &termination.message {
        Some(message) => format!("{line}: {}", output::escape_control(message)),
        None => line,
    }
}

/// Waits for a container to end.
pub(super) async fn wait(client: &Client, id: &WireId) -> Result<Termination, ClientError> {
    let call = Call::WaitContainer(WaitContainer { container_id: id.clone() });
    client
        .ask(&call, |response| match response {
            Response::WaitContainer(termination) => Some(termination),
            _ => None,
        })
        .await
}

/// The exit status of this program for a raw wait status, as a shell computes it.
pub(super) fn exit_status(wait_status: Option<i32>) -> u8 {
    let code = wait_status.map(|status| Ended::from_raw(status).shell_code());
    code.and_then(|code| code.try_into().ok()).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        let statuses = [Some(0), Some(3 << 8), Some(9), Some(0x86), None];
        assert_eq!(statuses.map(exit_status), [0, 3, 137, 134, 125]);
    }
}
