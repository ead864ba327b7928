//! The other end of the API: one request per connection over the agent's socket.

use std::io;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::api::types::{Call, EnvelopeError, Response};
use crate::api::{EXEC_FAILURE, from_request};
use crate::container;

/// Where an agent is to be asked.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// There is no agent.
    #[error("no agent answers at `{socket}`")]
    NobodyAnswers {
        /// The socket.
        socket: PathBuf,
    },
    /// There may be one, out of reach.
    #[error("cannot connect to `{socket}`")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the agent at `{socket}` stopped answering")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// How.
        source: hyper::Error,
    },
    /// The agent says no.
    #[error("{text}")]
    Refused {
        /// The status code.
        status: u16,
        /// Its words.
        text: String,
        /// Why a command could not be executed, if that is what failed.
        exec_failure: Option<String>,
        /// The words of the causes.
        source: Option<Box<Cause>>,
    },
    /// It speaks another language.
    #[error("the agent at `{socket}` answers something that is not understood")]
    Unreadable {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// It answers another question.
    #[error("the agent at `{socket}` answers `{answer}` when asked `{question}`")]
    Mismatch {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        question: &'static str,
        /// What was answered.
        answer: String,
    },
}

/// A cause that the agent named.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Launches a container.
    pub(super) async fn launch(&self, request: &container::Request) -> Result<Launched, ClientError> {
        let (status, _) = self.send(&Call::LaunchContainer(Box::new(from_request(request)))).await?;
        Ok(if status == 202 { Launched::Already } else { Launched::Now })
    }

    /// Asks for something that is done and has no answer.
    pub(super) async fn tell(&self, call: &Call) -> Result<(), ClientError> {
        self.send(call).await.map(drop)
    }

    /// Asks something, and takes out of the answer what was asked for.
    pub(super) async fn ask<T>(
        &self,
        call: &Call,
        take: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, ClientError> {
        let (_, body) = self.send(call).await?;
        let response = Response::from_json(&body)
            .map_err(|source| ClientError::Unreadable { socket: self.socket.clone(), source })?;
        let answer = response.type_name().to_owned();
        take(response).ok_or_else(|| ClientError::Mismatch {
            socket: self.socket.clone(),
            question: call.type_name(),
            answer,
        })
    }

    async fn send(&self, call: &Call) -> Result<(u16, Bytes), ClientError> {
        let broken = |source| ClientError::Broken { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its error is the one that the request reports.
        let conversation = tokio::spawn(connection);

        let body = serde_json::to_vec(call).unwrap_or_default();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/v1")
            .header(header::HOST, "agent")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a constant request is well-formed");
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let exec_failure = response.headers().get(EXEC_FAILURE).and_then(|word| word.to_str().ok());
        let exec_failure = exec_failure.map(str::to_owned);
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        conversation.abort();
        if status.is_success() {
            return Ok((status.as_u16(), body));
        }
        let text = String::from_utf8_lossy(&body);
        let mut causes = text.lines().map(str::to_owned);
        let text = causes.next().unwrap_or_else(|| format!("the agent answers {status} and says nothing"));
        let source = causes.rev().fold(None, |source, text| Some(Box::new(Cause { text, source })));
        Err(ClientError::Refused { status: status.as_u16(), text, exec_failure, source })
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NobodyAnswers { socket }
            }
            _ => ClientError::Connect { socket, source },
        }
    }
}

/// What came of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launched {
    /// It was launched.
    Now,
    /// A container of that id was there already.
    Already,
}
