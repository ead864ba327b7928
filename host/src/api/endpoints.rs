//! Where the API is served, and what whoever connects there may use.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::{error, warn};

use super::context::ApiContext;
use super::early;
use super::executor::{self, Requests};
use super::operator::routes;
use super::socket::Listener;
use super::stream::Stream;
use super::tcp::LoopbackListener;
use cofferdam_core::error_chain;

/// How long a client that is refused may take to send its request.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Something that accepts connections. Each has connections of its own: those of one do not count against those of another.
pub(super) trait Endpoint: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// What connects, for the log.
    const CONNECTIONS: &'static str;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// What a connection may use.
    fn router(&self, stream: &Self::Stream) -> Router;

    /// Makes sure that it can still be found. Called again and again.
    fn restore(&mut self) {}

    /// Closes a connection for which there is no space.
    fn refuse(stream: Self::Stream) -> impl Future<Output = ()> + Send + 'static {
        drop(stream);
        ready(())
    }
}

/// The socket of the operator API.
pub(super) struct OperatorSocket {
    pub(super) listener: Listener,
    pub(super) context: Arc<ApiContext>,
}

impl Endpoint for OperatorSocket {
    type Stream = Stream;

    const CONNECTIONS: &'static str = "connections of clients";

    async fn accept(&self) -> io::Result<Stream> {
        self.listener.accept().await
    }

    fn router(&self, stream: &Stream) -> Router {
        match self.listener.check_peer(stream) {
            Ok(()) => routes::router(Arc::clone(&self.context)),
            Err(error) => {
                warn!(%error, "connection refused");
                routes::forbidden(&error)
            }
        }
    }

    /// If that is not possible, `GET /health` and the log say why.
    fn restore(&mut self) {
        let problem = restore(&mut self.listener).err();
        if let (Some(problem), true) = (&problem, self.context.socket_problem() != problem) {
            error!("clients cannot reach this agent: {problem}");
        }
        self.context.set_socket_problem(problem);
    }

    async fn refuse(mut stream: Stream) {
        const RESPONSE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
                                too many connections to the agent have requests in progress; try again later\n";
        warn!("connection refused: too many have requests in progress");
        // The response would be lost if the request was not read.
        let respond = async {
            // A client that has gone gets none.
            match stream.read(&mut [0; 8192]).await? {
                0 => Ok(()),
                _ => stream.write_all(RESPONSE.as_bytes()).await,
            }
        };
        if tokio::time::timeout(REFUSAL_TIMEOUT, respond).await.is_ok_and(|responded| responded.is_ok()) {
            early::linger(stream).await;
        }
    }
}

/// The socket of the executor API.
pub(super) struct ExecutorSocket {
    pub(super) listener: Listener,
    pub(super) context: Arc<ApiContext>,
    pub(super) requests: Arc<Requests>,
}

impl Endpoint for ExecutorSocket {
    type Stream = Stream;

    const CONNECTIONS: &'static str = "connections of executors";

    async fn accept(&self) -> io::Result<Stream> {
        self.listener.accept().await
    }

    fn router(&self, _: &Stream) -> Router {
        executor::router(Arc::clone(&self.context), Arc::clone(&self.requests))
    }

    fn restore(&mut self) {
        if let Err(problem) = restore(&mut self.listener) {
            error!("executors cannot reach this agent: {problem}");
        }
    }
}

/// The address of both.
pub(super) struct Loopback {
    pub(super) listener: LoopbackListener,
    pub(super) context: Arc<ApiContext>,
    pub(super) requests: Arc<Requests>,
}

impl Endpoint for Loopback {
    type Stream = TcpStream;

    const CONNECTIONS: &'static str = "connections over TCP";

    async fn accept(&self) -> io::Result<TcpStream> {
        self.listener.accept().await
    }

    fn router(&self, _: &TcpStream) -> Router {
        self.listener.router(&self.context, &self.requests)
    }
}

/// Listens again if the socket's file was removed. Returns why that is not possible.
fn restore(listener: &mut Listener) -> Result<(), String> {
    if listener.restore().map_err(|error| error_chain::describe(&error))? {
        warn!("the socket `{}` was removed; listening on a new one", listener.path().display());
    }
    Ok(())
}
