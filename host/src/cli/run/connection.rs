//! An agent in this process, or a daemon behind a socket.

use std::pin::Pin;

use crate::api::operator as api;
use crate::cli::client::{Client, ClientError, Launched};
use crate::cli::failure::Failure;
use crate::cli::kill;
use cofferdam_core::agent::Agent;
use cofferdam_core::model::view::Logs;
use cofferdam_core::model::{ContainerId, Request};

use super::{NOT_EXECUTABLE, NOT_FOUND, NOT_RUN};

/// An agent.
pub(super) enum AgentConnection {
    /// In this process.
    Own(Agent),
    /// A daemon.
    Daemon(Client),
}

/// How a container ended.
pub(super) struct Ending {
    /// Its raw wait status; `None` if unknown.
    pub status: Option<i32>,
    /// Message for the operator.
    pub message: Option<String>,
}

/// A running container.
pub(super) struct Running {
    /// The files that its output is written to, if there are any.
    pub logs: Logs,
    /// Completes when it has ended and all of its output is written.
    pub end: Pin<Box<dyn Future<Output = Result<Ending, Failure>>>>,
}

impl AgentConnection {
    /// Launches a container. A failure has the exit status of shells for its reason.
    pub(super) async fn run(&self, request: Request) -> Result<Running, Failure> {
        match self {
            Self::Own(agent) => {
                let id = request.id.clone();
                agent.launch(request).await.map_err(|error| {
                    let status = not_run_status(error.exec_error().and_then(api::exec_failure));
                    Failure::of(error).with_status(status)
                })?;
                let logs = agent.inspect(&id).map(|inspection| inspection.logs).unwrap_or_default();
                let agent = agent.clone();
                let end = async move {
                    let ended = agent.wait(&id).await.unwrap_or_default();
                    Ok(Ending { status: ended.status, message: ended.message })
                };
                Ok(Running { logs, end: Box::pin(end) })
            }
            Self::Daemon(client) => {
                let running = client.run(&request).await.map_err(not_launched)?;
                let mut running = running.ok_or_else(|| taken(&request.id))?;
                let logs = std::mem::take(&mut running.logs);
                let end = async move {
                    let ended = running.end().await?;
                    Ok(Ending { status: ended.exit_status, message: ended.message })
                };
                Ok(Running { logs, end: Box::pin(end) })
            }
        }
    }

    /// Sends it a signal.
    pub(super) async fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), Failure> {
        match self {
            Self::Own(agent) => agent.kill(id, signal).await.map(drop).map_err(Failure::of),
            Self::Daemon(client) => Ok(kill::kill(client, &api::encode_id(id), signal).await?),
        }
    }
}

/// Launches a container with a daemon, without waiting for its end.
pub(super) async fn launch(client: &Client, request: &Request) -> Result<(), Failure> {
    match client.launch(request).await.map_err(not_launched)? {
        Launched::Now => Ok(()),
        Launched::Already => Err(taken(&request.id)),
    }
}

fn taken(id: &ContainerId) -> Failure {
    let taken = format!("container id `{id}` is taken; choose another with `--name`");
    Failure::message(taken).with_status(NOT_RUN)
}

fn not_launched(error: ClientError) -> Failure {
    let status = match &error {
        ClientError::Refused { exec_failure, .. } => not_run_status(exec_failure.as_deref()),
        _ => NOT_RUN,
    };
    Failure::from(error).with_status(status)
}

fn not_run_status(exec_failure: Option<&str>) -> u8 {
    match exec_failure {
        Some("not found") => NOT_FOUND,
        Some(_) => NOT_EXECUTABLE,
        None => NOT_RUN,
    }
}
