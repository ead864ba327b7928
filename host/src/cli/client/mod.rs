//! The client of the API on the agent's socket. Requests that follow each other closely use one connection.

mod streams;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::UnixStream;

use crate::api::operator::types::{
    AttachContainerOutput, Call, ContainerId as WireId, EnvelopeError, LaunchContainer,
    LaunchNestedContainer, Response, Subscribe, SubscribeStatusUpdates,
};
use crate::api::operator::{EXEC_FAILURE_HEADER, RECORDIO, encode_launch};
use cofferdam_core::model;

use streams::RecordStream;
pub(super) use streams::{EventStream, InputStream, OutputStream, RunEvent, Running, UpdateStream};

/// How long after a response its connection is used again. The agent closes those that are idle, and a request that is
/// sent at that moment would be lost.
const MAX_IDLE: Duration = Duration::from_millis(50);

/// A client of the agent at a socket. Clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
    idle: Arc<Mutex<Option<(Sender, Instant)>>>,
}

type Sender = SendRequest<Full<Bytes>>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No agent is listening.
    #[error("no agent is running at `{socket}`")]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection failed.
    #[error("cannot connect to `{socket}`")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection was closed before the response.
    #[error("lost the connection to the agent at `{socket}`")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: hyper::Error,
    },
    /// The agent responded with an error.
    #[error("{text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The message: the first line of the response.
        text: String,
        /// Why the command could not be executed; `None` for other failures.
        exec_failure: Option<String>,
        /// The causes, from the other lines.
        source: Option<Box<Cause>>,
    },
    /// The response cannot be parsed.
    #[error("the response of the agent at `{socket}` cannot be parsed")]
    Unreadable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
    /// A stream of responses is not RecordIO.
    #[error("the agent at `{socket}` sends an invalid stream: {reason}")]
    Framing {
        /// The socket.
        socket: PathBuf,
        /// Why it is invalid.
        reason: String,
    },
    /// The agent stopped before the container ended.
    #[error("the agent at `{socket}` stopped before the container ended; the container keeps running")]
    Stopped {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent stopped while it was sending status updates.
    #[error(
        "the agent at `{socket}` stopped; the task goes on, and its status updates are kept for the next agent"
    )]
    UpdatesEnded {
        /// The socket.
        socket: PathBuf,
    },
    /// The response is for another call.
    #[error("the agent at `{socket}` responded to `{question}` with `{answer}`")]
    Mismatch {
        /// The socket.
        socket: PathBuf,
        /// The call.
        question: &'static str,
        /// The type of the response.
        answer: String,
    },
}

/// A cause in an error response.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, idle: Arc::default() }
    }

    /// Launches a container.
    pub(super) async fn launch(&self, request: &model::Request) -> Result<Launched, ClientError> {
        let (status, _) = self.send(&Call::LaunchContainer(Box::new(encode_launch(request)))).await?;
        Ok(if status == 202 { Launched::Already } else { Launched::Now })
    }

    /// Makes a call without a result.
    pub(super) async fn tell(&self, call: &Call) -> Result<(), ClientError> {
        self.send(call).await.map(drop)
    }

    /// Makes a call and extracts its result.
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

    /// Launches a container on a connection that stays open until the container has ended. `None` if a container with
    /// that id exists already.
    pub(super) async fn run(&self, request: &model::Request) -> Result<Option<Running>, ClientError> {
        let (_, response) = self.open(&Call::RunContainer(Box::new(encode_launch(request)))).await?;
        if response.status() == 202 {
            return Ok(None);
        }
        let mut records = RecordStream::new(self.socket.clone(), response.into_body());
        Running::message(&mut records).await?;
        Ok(Some(Running { records }))
    }

    /// Launches a nested container that enters its parent, and ends when its output is not received any more. `None` if a
    /// container with that id exists already.
    pub(super) async fn session(
        &self,
        request: &model::Request,
    ) -> Result<Option<OutputStream>, ClientError> {
        let LaunchContainer { container_id, command, container, .. } = encode_launch(request);
        let call = LaunchNestedContainer { container_id, command, container };
        let (_, response) = self.open(&Call::LaunchNestedContainerSession(Box::new(call))).await?;
        if response.status() == 202 {
            return Ok(None);
        }
        Ok(Some(OutputStream(RecordStream::new(self.socket.clone(), response.into_body()))))
    }

    /// Receives the output of a container from now on.
    pub(super) async fn output(&self, container_id: WireId) -> Result<OutputStream, ClientError> {
        let call = Call::AttachContainerOutput(AttachContainerOutput { container_id });
        let (_, response) = self.open(&call).await?;
        Ok(OutputStream(RecordStream::new(self.socket.clone(), response.into_body())))
    }

    /// Receives the status updates of tasks.
    pub(super) async fn updates(&self, call: SubscribeStatusUpdates) -> Result<UpdateStream, ClientError> {
        let (_, response) = self.open(&Call::SubscribeStatusUpdates(call)).await?;
        Ok(UpdateStream(RecordStream::new(self.socket.clone(), response.into_body())))
    }

    /// Receives what happens to containers and plugins.
    pub(super) async fn subscribe(&self, call: Subscribe) -> Result<EventStream, ClientError> {
        let (_, response) = self.open(&Call::Subscribe(call)).await?;
        Ok(EventStream(RecordStream::new(self.socket.clone(), response.into_body())))
    }

    /// Sends input to a container.
    pub(super) async fn input(&self, container_id: WireId) -> Result<InputStream, ClientError> {
        InputStream::open(self, container_id).await
    }

    /// Sends a request and receives the whole response.
    async fn send(&self, call: &Call) -> Result<(u16, Bytes), ClientError> {
        let (sender, response) = self.open(call).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|source| self.broken(source))?;
        *self.idle() = Some((sender, Instant::now()));
        Ok((status, body.to_bytes()))
    }

    fn idle(&self) -> MutexGuard<'_, Option<(Sender, Instant)>> {
        self.idle.lock()
    }

    /// A connection that is ready for a request.
    async fn connect(&self) -> Result<Sender, ClientError> {
        let idle = self.idle().take();
        if let Some((mut sender, since)) = idle
            && since.elapsed() < MAX_IDLE
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        self.new_connection().await
    }

    async fn new_connection<B>(&self) -> Result<SendRequest<B>, ClientError>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|source| self.broken(source))?;
        // The task ends when the sender is dropped and the response received. The request returns its error as well.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request and receives the head of the response. A response with an error status is an error.
    async fn open(&self, call: &Call) -> Result<(Sender, hyper::Response<Incoming>), ClientError> {
        let broken = |source| self.broken(source);
        let mut sender = self.connect().await?;
        let body = serde_json::to_vec(call).unwrap_or_default();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/v1")
            .header(header::HOST, "agent")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, format!("application/json, {RECORDIO}"))
            .body(Full::new(Bytes::from(body)))
            .expect("a constant request is well-formed");
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((sender, self.check(response).await?))
    }

    /// A response with an error status is an error.
    async fn check(
        &self,
        response: hyper::Response<Incoming>,
    ) -> Result<hyper::Response<Incoming>, ClientError> {
        let broken = |source| self.broken(source);
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let exec_failure = response.headers().get(EXEC_FAILURE_HEADER).and_then(|word| word.to_str().ok());
        let exec_failure = exec_failure.map(str::to_owned);
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        let mut causes = text.lines().map(str::to_owned);
        let text = causes.next().unwrap_or_else(|| format!("the agent responded with {status}"));
        let source = causes.rev().fold(None, |source, text| Some(Box::new(Cause { text, source })));
        Err(ClientError::Refused { status: status.as_u16(), text, exec_failure, source })
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), source }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { socket },
            _ => ClientError::Connect { socket, source },
        }
    }
}

/// Result of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launched {
    /// The container was launched.
    Now,
    /// A container with that id exists already.
    Already,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;
    use crate::api::operator::encode_id;
    use crate::api::operator::types::{RemoveContainer, Termination, WaitContainer};
    use crate::api::{self, Listener, Listeners};
    use cofferdam_core::agent::Agent;
    use cofferdam_core::config::{AgentConfig, ContainerizerConfig, LauncherKind};

    use crate::config::{ApiLimits, Config, SocketAccess};
    use crate::telemetry::Verbosity;
    use cofferdam_core::model::{Command, ContainerId, Request};

    /// An agent with the `posix` launcher and without plugins.
    struct World {
        agent: Agent,
        client: Client,
        stop: oneshot::Sender<()>,
        served: tokio::task::JoinHandle<()>,
        _directory: tempfile::TempDir,
    }

    async fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let config = Config {
            file: None,
            agent: AgentConfig {
                kill_containers_with_agent: false,
                scratch_memory: None,
                image_store: None,
                local_images: Vec::new(),
                image_backend: cofferdam_core::provisioner::Backend::Auto,
                puller: None,
                images: true,
                image_gc: cofferdam_core::config::ImageGcConfig::default(),
                keeper_timeout: cofferdam_core::config::DEFAULT_KEEPER_TIMEOUT,
                runtime_dir: directory.path().join("run"),
                work_dir: directory.path().join("work"),
                plugin_store: None,
                plugin_dir: directory.path().to_owned(),
                containerizers: vec![ContainerizerConfig::Mesos],
                launcher: LauncherKind::Posix,
                cgroup_root: "cofferdam-test".into(),
                cgroup_max_descendants: cofferdam_core::config::DEFAULT_CGROUP_MAX_DESCENDANTS,
                cgroup_max_depth: cofferdam_core::config::DEFAULT_CGROUP_MAX_DEPTH,
                isolators: Vec::new(),
                logger: None,
                hooks: Vec::new(),
                log_targets: Vec::new(),
                launch_timeout: Duration::from_secs(60),
                destroy_timeout: Duration::from_secs(60),
                fetcher: None,
                fetch: cofferdam_core::config::FetchLimits::default(),
                fetch_credentials: None,
                fetch_cache: None,
                registry: cofferdam_core::config::RegistryConfig::default(),
                container_nofile: None,
                executors: cofferdam_core::config::ExecutorConfig::default(),
            },
            socket: socket.clone(),
            socket_access: SocketAccess::PRIVATE,
            tcp: None,
            api: ApiLimits { max_body: 4096, idle_timeout: Duration::from_millis(300) },
            default_container_info: None,
            log: "off".to_owned(),
            log_json: false,
        };
        let agent = Agent::start(config.agent.clone()).await.unwrap();
        let operator = Listener::bind(&socket, SocketAccess::PRIVATE).unwrap();
        let listeners = Listeners { operator, executors: None, loopback: None };
        let (stop, stopped) = oneshot::channel();
        let served =
            tokio::spawn(api::serve(agent.clone(), config, Verbosity::default(), listeners, async {
                stopped.await.unwrap()
            }));
        World { agent, client: Client::new(socket), stop, served, _directory: directory }
    }

    fn request(id: &str, command: &[&str]) -> Request {
        let arguments: Vec<String> = command.iter().map(ToString::to_string).collect();
        let value = arguments.first().cloned();
        let command = Command { shell: false, value, arguments, ..Command::default() };
        Request::new(ContainerId::parse(id).unwrap(), command)
    }

    async fn wait(client: &Client, id: &str) -> Result<Option<i32>, ClientError> {
        let container_id = encode_id(&ContainerId::parse(id).unwrap());
        let take = |response| match response {
            Response::WaitContainer(ended) => Some(ended.exit_status),
            _ => None,
        };
        client.ask(&Call::WaitContainer(WaitContainer { container_id }), take).await
    }

    async fn end(mut running: Running) -> Result<Termination, ClientError> {
        match running.next().await? {
            RunEvent::Ended(termination) => Ok(*termination),
            RunEvent::Output(output) => panic!("{output:?}"),
        }
    }

    fn status(error: &ClientError) -> u16 {
        match error {
            ClientError::Refused { status, .. } => *status,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_container_is_launched_awaited_and_removed() {
        let world = world().await;
        let client = &world.client;
        assert_eq!(client.launch(&request("b", &["sleep", "1000"])).await.unwrap(), Launched::Now);
        assert_eq!(client.launch(&request("b", &["true"])).await.unwrap(), Launched::Already);
        assert_eq!(client.launch(&request("a", &["sh", "-c", "exit 3"])).await.unwrap(), Launched::Now);
        for _ in 0..2 {
            assert_eq!(wait(client, "a").await.unwrap(), Some(3 << 8));
        }
        let again = client.launch(&request("a", &["true"])).await;
        assert_eq!(status(&again.unwrap_err()), 409);
        let remove =
            Call::RemoveContainer(RemoveContainer { container_id: encode_id(&request("a", &[]).id) });
        client.tell(&remove).await.unwrap();
        assert_eq!(status(&client.tell(&remove).await.unwrap_err()), 404);
        assert_eq!(status(&wait(client, "a").await.unwrap_err()), 404);
        assert!(world.agent.destroy_all().await.is_empty());
    }

    #[tokio::test]
    async fn a_header_contains_the_reason_why_a_command_was_not_executed() {
        let world = world().await;
        for (command, word) in [("no-such-command", "not found"), ("/etc/passwd", "not executable")] {
            match world.client.launch(&request("a", &[command])).await {
                Err(ClientError::Refused { status: 400, exec_failure, source, .. }) => {
                    assert_eq!(exec_failure.as_deref(), Some(word));
                    assert!(source.is_some(), "the cause is lost");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn one_request_launches_a_container_and_waits_for_it() {
        let world = world().await;
        let client = &world.client;
        let attached = Request { attached: true, ..request("a", &["sh", "-c", "echo out; exit 3"]) };
        let mut running = client.run(&attached).await.unwrap().unwrap();
        match running.next().await.unwrap() {
            RunEvent::Output(output) => assert_eq!(output.data, b"out\n"),
            RunEvent::Ended(_) => panic!("its output is missing"),
        }
        assert_eq!(end(running).await.unwrap().exit_status, Some(3 << 8));
        let Err(taken) = client.run(&request("a", &["true"])).await else { panic!("its id is taken") };
        assert_eq!(status(&taken), 409);
        match client.run(&request("b", &["no-such-command"])).await {
            Err(ClientError::Refused { exec_failure, .. }) => {
                assert_eq!(exec_failure.as_deref(), Some("not found"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_client_gets_an_error_if_the_agent_stops_before_the_container_ends() {
        let world = world().await;
        let running = world.client.run(&request("long", &["sleep", "1000"])).await.unwrap().unwrap();
        world.stop.send(()).unwrap();
        let error = end(running).await.unwrap_err();
        assert!(matches!(error, ClientError::Stopped { .. }), "{error}");
        world.served.await.unwrap();
        assert_eq!(world.agent.containers()[0].phase, cofferdam_core::model::Phase::Running);
        assert!(world.agent.destroy_all().await.is_empty());
    }

    #[tokio::test]
    async fn a_pending_wait_gets_503_when_the_agent_stops_and_the_container_keeps_running() {
        let world = world().await;
        world.client.launch(&request("long", &["sleep", "1000"])).await.unwrap();
        let waiting = tokio::spawn({
            let client = world.client.clone();
            async move { wait(&client, "long").await }
        });
        // Connections are accepted in order.
        world.client.tell(&Call::GetHealth).await.unwrap();
        world.stop.send(()).unwrap();
        world.served.await.unwrap();
        match waiting.await.unwrap().unwrap_err() {
            ClientError::Refused { status, .. } => assert_eq!(status, 503),
            // The socket was closed before the request.
            other => assert!(
                matches!(other, ClientError::NotRunning { .. } | ClientError::Broken { .. }),
                "{other}"
            ),
        }
        assert_eq!(world.agent.containers()[0].phase, cofferdam_core::model::Phase::Running);
        assert!(world.agent.destroy_all().await.is_empty());
        assert!(matches!(world.client.tell(&Call::GetHealth).await, Err(ClientError::NotRunning { .. })));
    }

    /// Sends bytes and returns everything that the agent sends before it closes the connection.
    async fn raw(world: &World, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&world.client.socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn slow_and_idle_connections_are_closed() {
        let world = world().await;
        assert_eq!(raw(&world, b"").await, "");
        assert_eq!(raw(&world, b"GET /heal").await, "");
        let idle = raw(&world, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
        let head = "POST /api/v1 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length:";
        let slow = raw(&world, format!("{head} 20\r\n\r\n{{").as_bytes()).await;
        assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
        let large = raw(&world, format!("{head} 5000\r\n\r\n{}", "x".repeat(5000)).as_bytes()).await;
        assert!(large.starts_with("HTTP/1.1 413"), "{large}");
        let method = raw(&world, b"GET /api/v1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(method.starts_with("HTTP/1.1 405") && method.contains("allow: POST"), "{method}");
    }
}
