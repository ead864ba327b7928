//! The connection to a container in the foreground: of an agent in this process, or of a daemon.

use crate::api::operator as api;
use crate::cli::client::{Client, ClientError, InputStream, OutputStream, RunEvent, Running};
use crate::cli::failure::Failure;
use crate::cli::{kill, wait};
use cofferdam_core::agent::Agent;
use cofferdam_core::model::ContainerId;
use cofferdam_core::switchboard::{AttachedInput, AttachedOutput, Output};

/// Exit statuses of docker and shells for a command that was not started.
pub(in crate::cli) const NOT_RUN: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How a container ended.
pub(in crate::cli) struct Ending {
    /// Its raw wait status; `None` if unknown.
    pub(super) status: Option<i32>,
    /// Message for the operator.
    pub(super) message: Option<String>,
}

/// What happens to a container.
pub(super) enum Event {
    /// It has written something.
    Output(Output),
    /// It has ended, and all of its output was returned.
    Ended(Ending),
}

/// A container in the foreground.
pub(in crate::cli) struct Session {
    id: ContainerId,
    source: Source,
}

enum Source {
    /// An agent in this process. `None` after the end of the output.
    Own(Agent, Option<AttachedOutput>),
    /// A container that a daemon has launched for this client.
    Run(Client, Running),
    /// One that the client is attached to. `None` after the end of the output.
    Attached(Client, Option<OutputStream>),
}

impl Session {
    pub(in crate::cli) fn own(agent: Agent, id: ContainerId, output: AttachedOutput) -> Self {
        Self { id, source: Source::Own(agent, Some(output)) }
    }

    pub(in crate::cli) fn run(client: Client, id: ContainerId, running: Running) -> Self {
        Self { id, source: Source::Run(client, running) }
    }

    pub(in crate::cli) fn attached(client: Client, id: ContainerId, output: OutputStream) -> Self {
        Self { id, source: Source::Attached(client, Some(output)) }
    }

    /// What happens next. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        match &mut self.source {
            Source::Own(agent, output) => {
                if let Some(attached) = output {
                    let failed = |source| Failure::system("the output of the container ended early", source);
                    if let Some(next) = attached.next().await.map_err(failed)? {
                        return Ok(Event::Output(next));
                    }
                    *output = None;
                }
                let ended = agent.wait(&self.id).await.unwrap_or_default();
                Ok(Event::Ended(Ending { status: ended.status, message: ended.message }))
            }
            Source::Run(_, running) => Ok(match running.next().await? {
                RunEvent::Output(output) => Event::Output(output),
                RunEvent::Ended(ended) => {
                    Event::Ended(Ending { status: ended.exit_status, message: ended.message })
                }
            }),
            Source::Attached(client, output) => {
                if let Some(attached) = output {
                    if let Some(next) = attached.next().await? {
                        return Ok(Event::Output(next));
                    }
                    *output = None;
                }
                let ended = wait::wait(client, &api::encode_id(&self.id)).await?;
                Ok(Event::Ended(Ending { status: ended.exit_status, message: ended.message }))
            }
        }
    }

    /// Sends it a signal. Returns false if it has ended.
    pub(super) async fn kill(&self, signal: i32) -> Result<bool, Failure> {
        match &self.source {
            Source::Own(agent, _) => agent.kill(&self.id, signal).await.map_err(Failure::of),
            Source::Run(client, _) | Source::Attached(client, _) => {
                match kill::kill(client, &api::encode_id(&self.id), signal).await {
                    Ok(()) => Ok(true),
                    Err(ClientError::Refused { status: 404, .. }) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// Where input for a container goes. After the end of its streams, nowhere.
pub(in crate::cli) enum InputSink {
    /// To an agent in this process.
    Own(AttachedInput),
    /// To a daemon.
    Daemon(InputStream),
}

impl InputSink {
    pub(super) async fn write(&mut self, data: Vec<u8>) {
        match self {
            Self::Own(input) => drop(input.write(&data).await),
            Self::Daemon(input) => input.write(data).await,
        }
    }

    pub(super) async fn end(&mut self) {
        match self {
            Self::Own(input) => drop(input.end().await),
            Self::Daemon(input) => input.end().await,
        }
    }

    pub(super) async fn resize(&mut self, rows: u16, columns: u16) {
        match self {
            Self::Own(input) => drop(input.resize(rows, columns).await),
            Self::Daemon(input) => input.resize(rows, columns).await,
        }
    }

    /// Waits until the agent refuses more input: with the reason, unless that is the end of the container's streams.
    pub(super) async fn refused(&mut self) -> Option<Failure> {
        match self {
            Self::Own(_) => std::future::pending().await,
            Self::Daemon(input) => input.refused().await.map(Failure::from),
        }
    }
}

/// The failure of a launch whose id is taken.
pub(in crate::cli) fn taken(id: &ContainerId) -> Failure {
    let taken = format!("container id `{id}` is taken; choose another with `--name`");
    Failure::message(taken).with_status(NOT_RUN)
}

/// The failure of a launch by a daemon, with the exit status of shells for its reason.
pub(in crate::cli) fn not_launched(error: ClientError) -> Failure {
    let status = match &error {
        ClientError::Refused { exec_failure, .. } => not_run_status(exec_failure.as_deref()),
        _ => NOT_RUN,
    };
    Failure::from(error).with_status(status)
}

/// The exit status for the reason why a command was not executed.
pub(in crate::cli) fn not_run_status(exec_failure: Option<&str>) -> u8 {
    match exec_failure {
        Some("not found") => NOT_FOUND,
        Some(_) => NOT_EXECUTABLE,
        None => NOT_RUN,
    }
}
