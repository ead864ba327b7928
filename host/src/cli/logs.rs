//! `cofferdam logs`: the output of a container.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

use super::client::Client;
use super::follow::Follower;
use super::report::Failure;
use super::wait::wait;
use super::{Outcome, container_id, converse, inspect};
use crate::api::operator::types::{Call, ReadFile, Response};
use crate::api::operator::wire_id;
use cofferdam_core::model::ContainerId;

/// Shows the output of a container
///
/// Examples:
///   cofferdam logs web
///   cofferdam logs -f --stderr web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_parser = container_id)]
    id: ContainerId,
    /// Go on showing what it writes until it ends
    #[arg(long, short)]
    follow: bool,
    /// Its standard error instead of its standard output
    #[arg(long)]
    stderr: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    converse(async {
        let id = &arguments.id;
        let inspected = inspect::ask(client, id).await?;
        let (name, path) = if arguments.stderr {
            ("standard error", inspected.stderr)
        } else {
            ("standard output", inspected.stdout)
        };
        let Some(path) = path else {
            return Err(Failure::told(format!("the {name} of container `{id}` does not go to a file")));
        };
        if arguments.follow { follow(client, id, path.into()).await } else { show(client, path).await }
    })
}

/// Shows what there is, piece by piece, through the agent.
async fn show(client: &Client, path: String) -> Outcome {
    let mut offset = 0;
    loop {
        let call = Call::ReadFile(ReadFile { path: path.clone(), offset, length: None });
        let piece = client
            .ask(&call, |response| match response {
                Response::ReadFile(piece) => Some(piece.data.0),
                _ => None,
            })
            .await?;
        if piece.is_empty() {
            return Ok(0);
        }
        io::stdout().lock().write_all(&piece)?;
        offset += piece.len() as u64;
    }
}

/// Shows what comes, until the container has ended. The file itself is read: it is on this machine.
async fn follow(client: &Client, id: &ContainerId, path: PathBuf) -> Outcome {
    let broken = Arc::new(Notify::new());
    let told = Arc::clone(&broken);
    let follower = Follower::start(path.clone(), io::stdout(), move |_| told.notify_one())
        .map_err(|source| Failure::system(format!("cannot follow `{}`", path.display()), source))?;
    let wire_id = wire_id(id);
    tokio::select! {
        ended = wait(client, &wire_id) => { ended?; }
        // The reason is what the copy ends with.
        () = broken.notified() => {}
    }
    follower.finish()?;
    Ok(0)
}
