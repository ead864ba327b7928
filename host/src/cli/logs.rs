//! `cofferdam logs`: shows the output of a container.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::Notify;

use super::client::Client;
use super::failure::Failure;
use super::follow::{Follower, Log};
use super::inspect::inspect;
use super::wait::wait;
use super::{Outcome, block_on, container_id};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, ReadFile, Response};
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
    /// Keep showing new output until the container ends
    #[arg(long, short)]
    follow: bool,
    /// Show standard error instead of standard output
    #[arg(long)]
    stderr: bool,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    block_on(async {
        let id = &arguments.id;
        let inspected = inspect(client, id).await?;
        let (name, path, file) = if arguments.stderr {
            ("standard error", inspected.stderr, inspected.stderr_file)
        } else {
            ("standard output", inspected.stdout, inspected.stdout_file)
        };
        let Some(path) = path else {
            return Err(Failure::message(format!("the {name} of container `{id}` is not written to a file")));
        };
        if !arguments.follow {
            return show(client, path).await;
        }
        let file = file.and_then(|file| file.try_into().ok());
        follow(client, id, Log::new(path.into(), file)).await
    })
}

/// Reads the file through the agent, part by part.
async fn show(client: &Client, path: String) -> Outcome {
    let mut offset = 0;
    loop {
        let call = Call::ReadFile(ReadFile { path: path.clone(), offset, length: None });
        let data = client
            .ask(&call, |response| match response {
                Response::ReadFile(file) => Some(file.data.0),
                _ => None,
            })
            .await?;
        if data.is_empty() {
            return Ok(0);
        }
        io::stdout().lock().write_all(&data)?;
        offset += data.len() as u64;
    }
}

/// Follows the file until the container ends. Reads it directly, as the agent is on the same machine.
async fn follow(client: &Client, id: &ContainerId, log: Log) -> Outcome {
    let path = log.path.clone();
    let failed = Arc::new(Notify::new());
    let on_failure = Arc::clone(&failed);
    let follower = Follower::start(log, io::stdout(), move |_| on_failure.notify_one())
        .map_err(|source| Failure::system(format!("cannot follow `{}`", path.display()), source))?;
    let wire_id = encode_id(id);
    tokio::select! {
        termination = wait(client, &wire_id) => { termination?; }
        // `finish` returns the error.
        () = failed.notified() => {}
    }
    follower.finish()?;
    Ok(0)
}
