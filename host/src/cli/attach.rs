//! `cofferdam attach`: attaches to a running container.

use super::client::Client;
use super::foreground::{self, DetachKeys, Finish, Input, InputSink, OnSignal, Session, Signals};
use super::{Outcome, block_on, container_id, ps};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, InspectContainer, Response};
use cofferdam_core::model::ContainerId;

/// Attaches to the terminal, or the standard streams, of a running container
///
/// Shows its output from now on and passes on what is typed, until it ends or the keys to detach are typed. It must have
/// been launched with -t or -i. The exit status is that of its command. Several terminals can be attached at a time. A signal
/// ends this program only.
///
/// Examples:
///   cofferdam run -d -it --name shell -- sh
///   cofferdam attach shell
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_parser = container_id)]
    id: ContainerId,
    /// Show its output only
    #[arg(long)]
    no_stdin: bool,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: DetachKeys,
}

pub(super) fn run(arguments: Arguments, client: &Client) -> Outcome {
    block_on(async {
        let mut signals = Signals::new()?;
        let Arguments { id, no_stdin, detach_keys } = arguments;
        let reads = !no_stdin && foreground::can_read_input()?;
        let call = Call::InspectContainer(InspectContainer { container_id: encode_id(&id) });
        let has_terminal = client
            .ask(&call, |response| match response {
                Response::InspectContainer(found) => {
                    found.request.container.map(|container| container.tty_info.is_some())
                }
                _ => None,
            })
            .await?;
        let output = match client.output(encode_id(&id)).await {
            Ok(output) => output,
            Err(error) => return Err(ps::explain(client, &id, error).await),
        };
        let input = match reads {
            true => {
                let sink = InputSink::Daemon(client.input(encode_id(&id)).await?);
                Some(Input::new(sink, has_terminal, true, Some(detach_keys))?)
            }
            false => None,
        };
        let session = Session::attached(client.clone(), id.clone(), output);
        let finish: Finish = foreground::run(session, input, &mut signals, OnSignal::Leave).await?;
        finish.exit(id.as_str())
    })
}
