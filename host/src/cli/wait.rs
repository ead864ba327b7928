//! `cofferdam wait`: until containers have ended.

use super::client::{Client, ClientError};
use super::{Outcome, container_id, converse, out, ps};
use crate::api::operator::types::{Call, ContainerId as WireId, Response, Termination, WaitContainer};
use crate::api::operator::wire_id;
use cofferdam_core::model::{ContainerId, Ended};

/// The exit status for a container of which nothing is known but that it ended.
const UNKNOWN: u8 = 125;

/// Waits for the end of containers and shows how they ended
///
/// With one container, the exit status is that of the container: 128 and the number of the signal if it
/// was killed by one, 125 if it never ran.
///
/// Examples:
///   cofferdam wait web
///   cofferdam wait web db --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Which containers
    #[arg(value_parser = container_id, required = true)]
    ids: Vec<ContainerId>,
    /// As JSON: an object from ids to `Termination` as in WAIT_CONTAINER (docs/api.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let mut endings = Vec::new();
    converse(async {
        for id in &arguments.ids {
            let ended = wait(client, &wire_id(id)).await?;
            if !arguments.json {
                let message =
                    ended.message.as_ref().map(|message| format!(": {}", out::escape_control(message)));
                out::line(&format!("{id} {}{}", ps::ending(&ended), message.unwrap_or_default()))?;
            }
            endings.push((id.to_string(), ended));
        }
        Ok(())
    })?;
    if arguments.json {
        out::json(&endings.iter().cloned().collect::<std::collections::BTreeMap<_, _>>())?;
    }
    Ok(match endings.as_slice() {
        [(_, only)] => status(only.exit_status),
        _ => 0,
    })
}

/// Waits for the end of a container, for as long as that takes.
pub(super) async fn wait(client: &Client, id: &WireId) -> Result<Termination, ClientError> {
    let call = Call::WaitContainer(WaitContainer { container_id: id.clone() });
    client
        .ask(&call, |response| match response {
            Response::WaitContainer(ended) => Some(ended),
            _ => None,
        })
        .await
}

/// A raw wait status as an exit status of ours.
pub(super) fn status(raw: Option<i32>) -> u8 {
    raw.and_then(|raw| Ended::from_raw(raw).shell_code().try_into().ok()).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_becomes_what_a_shell_would_make_of_it() {
        assert_eq!([Some(0), Some(3 << 8), Some(9), Some(0x86), None].map(status), [0, 3, 137, 134, 125]);
    }
}
