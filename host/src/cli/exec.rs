//! `cofferdam exec`: runs a command in a running container.

use super::client::{Client, ClientError};
use super::failure::Failure;
use super::foreground::{
    self, Finish, Input, InputSink, NOT_RUN, OnSignal, Session, Signals, TerminalFlags, not_launched, taken,
};
use super::process_flags::{ProcessFlags, executed, random_name};
use super::{Outcome, container_id, hints, ps, rm, runtime};
use crate::api::operator::encode_id;
use cofferdam_core::model::{ContainerClass, ContainerId, Request};

/// Runs a command in a running container
///
/// The command has the namespaces, cgroups, root file system, user, environment, capabilities and resource limits of the
/// container. It ends with the container, and when this program is killed. The exit status is that of the command, as for `run`.
///
/// Examples:
///   cofferdam exec web -- ps
///   cofferdam exec -it web -- sh
///   tar c . | cofferdam exec web -- tar x -C /srv
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    #[command(flatten)]
    terminal: TerminalFlags,
    #[command(flatten)]
    process: ProcessFlags,
    /// The container
    #[arg(value_parser = container_id)]
    id: ContainerId,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) fn run(arguments: Arguments, client: &Client) -> Outcome {
    let not_run = |failure: Failure| failure.with_status(NOT_RUN);
    let Arguments { terminal, process, id, command } = arguments;
    let child = id.child(&random_name("exec")).map_err(|error| not_run(Failure::of(error)))?;
    let mut request = Request::new(child, process.apply(executed(command)));
    request.class = ContainerClass::Debug;
    terminal.apply(&mut request);
    request.check().map_err(|error| not_run(Failure::of(error)))?;
    let reads = terminal.reads_input().map_err(not_run)?;
    runtime().map_err(not_run)?.block_on(session(client, request, reads))
}

async fn session(client: &Client, request: Request, reads: bool) -> Outcome {
    // First, so that a signal during the launch is forwarded after it.
    let mut signals = Signals::new().map_err(|failure| failure.with_status(NOT_RUN))?;
    let id = request.id.clone();
    let output = match client.session(&request).await {
        Ok(output) => output.ok_or_else(|| taken(&id))?,
        // A command that was not found has an exit status of its own.
        Err(error @ ClientError::Refused { exec_failure: None, .. }) => {
            return Err(explain(client, &id, error).await.with_status(NOT_RUN));
        }
        Err(error) => return Err(not_launched(error)),
    };
    let sink = InputSink::Daemon(client.input(encode_id(&id)).await?);
    // It ends with this program, so that there is nothing to detach from.
    let input = Input::new(sink, request.tty.is_some(), reads, None)?;
    let session = Session::attached(client.clone(), id.clone(), output);
    let finish: Finish = foreground::run(session, Some(input), &mut signals, OnSignal::Forward).await?;
    let status = finish.exit(id.as_str())?;
    // Nobody else knows of it. If the container has been removed meanwhile, so has it.
    drop(rm::remove(client, &id).await);
    Ok(status)
}

/// Why a command was not executed in a container. Nobody knows the id of the nested one.
async fn explain(client: &Client, id: &ContainerId, error: ClientError) -> Failure {
    if let ClientError::Refused { text, .. } = &error
        && let Some(reason) = text.strip_prefix(&format!("container `{id}` cannot be nested: "))
        && reason.starts_with("there is no container ")
    {
        return Failure::message(reason).with_hint(hints::LIST);
    }
    match id.parent() {
        Some(parent) => ps::explain(client, &parent, error).await,
        None => error.into(),
    }
}
