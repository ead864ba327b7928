//! HTTP to a container engine over its unix socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::upgrade::{self, Upgraded};
use hyper::{Method as HttpMethod, Request as HttpRequest, Response as HttpResponse, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use cofferdam_core::engine::{Body, Method, Request, Response, Transport, TransportError};

/// The socket of an engine. Every request has a connection of its own: one that is closed tells the engine that the
/// request is cancelled.
#[derive(Debug, Clone)]
pub struct EngineSocket(PathBuf);

impl EngineSocket {
    /// The socket at a path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Connects and sends a request. The task serves the connection.
    async fn send(
        &self,
        request: HttpRequest<Full<Bytes>>,
    ) -> Result<(HttpResponse<Incoming>, Connection), TransportError> {
        let stream =
            UnixStream::connect(&self.0).await.map_err(|source| TransportError::Connect { source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = Connection(tokio::spawn(async move {
            // The sender, or the body, gets the error.
            let _ = connection.with_upgrades().await;
        }));
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, connection))
    }
}

/// The task that serves a connection, which is closed on drop.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> TransportError {
    TransportError::Connection { source: Box::new(error) }
}

fn http_request(request: Request) -> Result<HttpRequest<Full<Bytes>>, hyper::http::Error> {
    let method = match request.method {
        Method::Get => HttpMethod::GET,
        Method::Post => HttpMethod::POST,
        Method::Delete => HttpMethod::DELETE,
    };
    let mut builder = HttpRequest::builder().method(method).uri(request.path).header(HOST, "docker");
    if let Some((name, value)) = request.header {
        builder = builder.header(name, value);
    }
    if request.body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    builder.body(Full::new(Bytes::from(request.body.unwrap_or_default())))
}

#[async_trait]
impl Transport for EngineSocket {
    fn socket(&self) -> &Path {
        &self.0
    }

    async fn request(&self, request: Request) -> Result<Response, TransportError> {
        let (response, connection) = self.send(http_request(request).map_err(broken)?).await?;
        Ok(to_response(response, connection))
    }

    async fn take_over(&self, request: Request) -> Result<Result<OwnedFd, Response>, TransportError> {
        let mut request = http_request(request).map_err(broken)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        let (response, connection) = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Err(to_response(response, connection)));
        }
        let upgraded = upgrade::on(response).await.map_err(broken)?;
        descriptor(upgraded).map(Ok)
    }
}

/// The connection behind an upgrade.
fn descriptor(upgraded: Upgraded) -> Result<OwnedFd, TransportError> {
    let parts = upgraded
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| broken(io::Error::other("the upgraded connection is another one")))?;
    if !parts.read_buf.is_empty() {
        return Err(broken(io::Error::other("the engine sent output before the container was started")));
    }
    parts.io.into_inner().into_std().map(OwnedFd::from).map_err(broken)
}

fn to_response(response: HttpResponse<Incoming>, connection: Connection) -> Response {
    let status = response.status().as_u16();
    Response { status, body: Box::new(Parts { body: response.into_body(), _connection: connection }) }
}

/// The body of a response, with the connection that it comes from.
struct Parts {
    body: Incoming,
    _connection: Connection,
}

#[async_trait]
impl Body for Parts {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data.to_vec()));
                    }
                }
            }
        }
    }
}
