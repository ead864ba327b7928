//! `cofferdam task logs`: shows the output of a task.

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::{Outcome, block_on, container_id, logs};

/// Shows the output of a task
///
/// It is that of the container of its executor, so that of all tasks of an executor that has several.
///
/// Examples:
///   cofferdam task logs web
///   cofferdam task logs -f web --tail 20
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Arguments {
    /// The task
    task: String,
    #[command(flatten)]
    options: logs::Options,
}

pub(super) fn run(arguments: Arguments, client: &Client) -> Outcome {
    let Arguments { task, options } = arguments;
    let container = block_on(async { Ok(super::container(client, &task).await?) })?;
    let container = container.ok_or_else(|| Failure::message(format!("there is no task `{task}`")))?;
    let id = container_id(&container).map_err(Failure::message)?;
    logs::run(&logs::Arguments::of(id, options), client)
}
