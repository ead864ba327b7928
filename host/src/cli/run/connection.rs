//! An agent in this process, or a daemon behind a socket.

use std::path::PathBuf;

use crate::api::operator as api;
use crate::cli::client::{Client, ClientError, Launched};
use crate::cli::failure::Failure;
use crate::cli::{inspect, kill, wait};
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
    /// Explanation for people.
    pub message: Option<String>,
}

impl AgentConnection {
    /// Launches a container. A failure has the exit status of shells for its reason.
    pub(super) async fn launch(&self, request: Request) -> Result<(), Failure> {
        let status = |word: Option<&str>| match word {
            Some("not found") => NOT_FOUND,
            Some(_) => NOT_EXECUTABLE,
            None => NOT_RUN,
        };
        match self {
            Self::Own(agent) => agent.launch(request).await.map(drop).map_err(|error| {
                let status = status(error.exec_error().and_then(api::exec_failure));
                Failure::of(error).with_status(status)
            }),
            Self::Daemon(client) => match client.launch(&request).await {
                Ok(Launched::Now) => Ok(()),
                Ok(Launched::Already) => {
                    let taken =
                        format!("container id `{}` is taken; choose another with `--name`", request.id);
                    Err(Failure::message(taken).with_status(NOT_RUN))
                }
                Err(error) => {
                    let status = match &error {
                        ClientError::Refused { exec_failure, .. } => status(exec_failure.as_deref()),
                        _ => NOT_RUN,
                    };
                    Err(Failure::from(error).with_status(status))
                }
            },
        }
    }

    /// The files of its output, if there are any.
    pub(super) async fn logs(&self, id: &ContainerId) -> Result<Logs, Failure> {
        Ok(match self {
            Self::Own(agent) => agent.inspect(id).map(|inspection| inspection.logs).unwrap_or_default(),
            Self::Daemon(client) => {
                let inspected = inspect::inspect(client, id).await?;
                Logs {
                    stdout: inspected.stdout.map(PathBuf::from),
                    stderr: inspected.stderr.map(PathBuf::from),
                }
            }
        })
    }

    /// Waits until it has ended and all its output is written.
    pub(super) async fn wait(&self, id: &ContainerId) -> Result<Ending, Failure> {
        match self {
            Self::Own(agent) => {
                let ended = agent.wait(id).await.unwrap_or_default();
                Ok(Ending { status: ended.status, message: ended.message })
            }
            Self::Daemon(client) => {
                let ended = wait::wait(client, &api::encode_id(id)).await?;
                Ok(Ending { status: ended.exit_status, message: ended.message })
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
