//! Requests and responses that are streams of records.

use std::path::PathBuf;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, header};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::{Client, ClientError};
use crate::api::operator::types::{
    AttachContainerInput, AttachInputKind, Bytes, Call, ContainerId, EnvelopeError, Event, ProcessControl,
    ProcessControlKind, ProcessData, ProcessIo, ProcessIoKind, ProcessStream, Response, RunningContainer,
    StatusUpdate, Termination, TtyInfo, UpdateEvent, WindowSize,
};
use crate::api::operator::{MESSAGE_CONTENT_TYPE, RECORDIO, Records, RecordsBody, take_record};
use cofferdam_core::switchboard;

/// A container that was launched by this client.
#[derive(Debug)]
pub(in crate::cli) struct Running {
    pub(super) records: RecordStream,
}

/// What happens to a container that was launched by this client.
pub(in crate::cli) enum RunEvent {
    /// It has written something.
    Output(switchboard::Output),
    /// It has ended.
    Ended(Box<Termination>),
}

impl Running {
    /// What happens next. Nothing is lost if the future is dropped.
    pub(in crate::cli) async fn next(&mut self) -> Result<RunEvent, ClientError> {
        loop {
            let message = Self::message(&mut self.records).await.map_err(stopped)?;
            if let Some(output) = message.process_io.and_then(output) {
                return Ok(RunEvent::Output(output));
            }
            if let Some(terminated) = message.terminated {
                return Ok(RunEvent::Ended(Box::new(terminated)));
            }
        }
    }

    pub(super) async fn message(records: &mut RecordStream) -> Result<RunningContainer, ClientError> {
        let record = records.next().await?;
        let socket = || records.socket.clone();
        let Some(record) = record else { return Err(ClientError::Stopped { socket: socket() }) };
        match Response::from_json(&record) {
            Ok(Response::RunContainer(message)) => Ok(message),
            Ok(other) => Err(ClientError::Mismatch {
                socket: socket(),
                question: "RUN_CONTAINER",
                answer: other.type_name().to_owned(),
            }),
            Err(source) => Err(ClientError::Unreadable { socket: socket(), source }),
        }
    }
}

/// Output of a container.
#[derive(Debug)]
pub(in crate::cli) struct OutputStream(pub(super) RecordStream);

impl OutputStream {
    /// The next part of it; `None` at its end. Nothing is lost if the future is dropped.
    pub(in crate::cli) async fn next(&mut self) -> Result<Option<switchboard::Output>, ClientError> {
        while let Some(message) = self.0.parse_next::<ProcessIo>().await.map_err(stopped)? {
            if let Some(output) = output(message) {
                return Ok(Some(output));
            }
        }
        Ok(None)
    }
}

/// The status updates of tasks.
#[derive(Debug)]
pub(in crate::cli) struct UpdateStream(pub(super) RecordStream);

impl UpdateStream {
    /// The next update. Nothing is lost if the future is dropped.
    pub(in crate::cli) async fn next(&mut self) -> Result<StatusUpdate, ClientError> {
        while let Some(event) = self.0.parse_next::<UpdateEvent>().await? {
            if let Some(update) = event.status_update {
                return Ok(update);
            }
        }
        Err(ClientError::UpdatesEnded { socket: self.0.socket.clone() })
    }
}

/// What happens to containers and plugins.
#[derive(Debug)]
pub(in crate::cli) struct EventStream(pub(super) RecordStream);

impl EventStream {
    /// The next record; `None` at the end.
    pub(in crate::cli) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        self.0.parse_next().await
    }
}

/// A connection that breaks while a container is running: its agent has ended, and not the container.
fn stopped(error: ClientError) -> ClientError {
    match error {
        ClientError::Broken { socket, .. } => ClientError::Stopped { socket },
        other => other,
    }
}

/// Output in a message; `None` for a heartbeat.
fn output(message: ProcessIo) -> Option<switchboard::Output> {
    let ProcessData { kind, data } = message.data?;
    let stream = match kind? {
        ProcessStream::Stdout => switchboard::OutputStream::Stdout,
        ProcessStream::Stderr => switchboard::OutputStream::Stderr,
        ProcessStream::Stdin | ProcessStream::Unknown => return None,
    };
    Some(switchboard::Output { stream, data: data?.0 })
}

/// The records of a response, as they arrive.
#[derive(Debug)]
pub(in crate::cli) struct RecordStream {
    socket: PathBuf,
    body: Incoming,
    received: Vec<u8>,
}

impl RecordStream {
    pub(super) const fn new(socket: PathBuf, body: Incoming) -> Self {
        Self { socket, body, received: Vec::new() }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            let record = take_record(&mut self.received)
                .map_err(|reason| ClientError::Framing { socket: self.socket.clone(), reason })?;
            if record.is_some() {
                return Ok(record);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.received.extend(frame.into_data().unwrap_or_default()),
                Some(Err(source)) => return Err(ClientError::Broken { socket: self.socket.clone(), source }),
                None => return Ok(None),
            }
        }
    }

    async fn parse_next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let Some(record) = self.next().await? else { return Ok(None) };
        serde_json::from_slice(&record).map(Some).map_err(|source| ClientError::Unreadable {
            socket: self.socket.clone(),
            source: EnvelopeError::Malformed { source: source.into() },
        })
    }
}

/// Input for a container.
#[derive(Debug)]
pub(in crate::cli) struct InputStream {
    records: Records,
    response: JoinHandle<Result<(), ClientError>>,
}

impl InputStream {
    pub(super) async fn open(client: &Client, container_id: ContainerId) -> Result<Self, ClientError> {
        let mut sender = client.new_connection::<RecordsBody>().await?;
        let (records, body) = Records::new();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/v1")
            .header(header::HOST, "agent")
            .header(header::CONTENT_TYPE, RECORDIO)
            .header(MESSAGE_CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(body)
            .expect("a constant request is well-formed");
        let client = client.clone();
        let response = tokio::spawn(async move {
            let response = sender.send_request(request).await.map_err(|source| client.broken(source))?;
            client.check(response).await.map(drop)
        });
        let this = Self { records, response };
        this.send(AttachContainerInput {
            kind: Some(AttachInputKind::ContainerId),
            container_id: Some(container_id),
            process_io: None,
        })
        .await;
        Ok(this)
    }

    /// Writes to standard input, or as if typed at the terminal.
    pub(in crate::cli) async fn write(&self, data: Vec<u8>) {
        self.send_io(ProcessIo {
            kind: Some(ProcessIoKind::Data),
            data: Some(ProcessData { kind: Some(ProcessStream::Stdin), data: Some(Bytes(data)) }),
            control: None,
        })
        .await;
    }

    /// Ends standard input.
    pub(in crate::cli) async fn end(&self) {
        self.write(Vec::new()).await;
    }

    /// Sets the size of the terminal.
    pub(in crate::cli) async fn resize(&self, rows: u16, columns: u16) {
        let window_size = Some(WindowSize { rows: rows.into(), columns: columns.into() });
        self.send_io(ProcessIo {
            kind: Some(ProcessIoKind::Control),
            data: None,
            control: Some(ProcessControl {
                kind: Some(ProcessControlKind::TtyInfo),
                tty_info: Some(TtyInfo { window_size }),
                heartbeat: None,
            }),
        })
        .await;
    }

    async fn send_io(&self, process_io: ProcessIo) {
        self.send(AttachContainerInput {
            kind: Some(AttachInputKind::ProcessIo),
            container_id: None,
            process_io: Some(process_io),
        })
        .await;
    }

    async fn send(&self, message: AttachContainerInput) {
        // It fails after the end of the container, or when the agent refuses: the response tells.
        drop(self.records.send(&Call::AttachContainerInput(Box::new(message))).await);
    }

    /// Why the agent refuses the input; `None` if the streams of the container have ended. Waits until one of both is so.
    pub(in crate::cli) async fn refused(&mut self) -> Option<ClientError> {
        match (&mut self.response).await {
            // It has ended before this arrived.
            Ok(Err(ClientError::Refused { status: 404 | 409, .. })) => None,
            Ok(Err(error)) => Some(stopped(error)),
            _ => None,
        }
    }
}
