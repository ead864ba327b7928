//! Accepts connections and serves HTTP/1.1 on each.

use std::future::poll_fn;
use std::pin::{self, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, warn};

use super::connections::{Connection, Connections};
use super::context::ApiContext;
use super::early;
use super::executor::{self, Requests};
use super::memory;
use super::operator::routes;
use super::path;
use super::socket::Listener;
use super::tcp::LoopbackListener;
use crate::config::Config;
use crate::telemetry::Verbosity;
use cofferdam_core::agent::Agent;
use cofferdam_core::error_chain;

/// How long in-flight requests may take once the agent stops. Pending waits are answered at once.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the socket's file is looked for.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long a client that is refused may take to send its request.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Clients that get to know that they are refused, at a time.
const MAX_REFUSED: usize = 8;

/// Delay before the next accept(2) after one has failed, as it does while no descriptor is available.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Where the API is served.
#[derive(Debug)]
pub struct Listeners {
    /// The socket of the operator API.
    pub operator: Listener,
    /// The socket of the executor API.
    pub executors: Option<Listener>,
    /// The address of both.
    pub loopback: Option<LoopbackListener>,
}

/// Serves the API until `stop` resolves; then finishes in-flight requests, answers pending waits with 503, and returns.
pub async fn serve(
    agent: Agent,
    config: Config,
    verbosity: Verbosity,
    listeners: Listeners,
    stop: impl Future<Output = ()>,
) {
    let Listeners { operator: mut listener, executors, loopback } = listeners;
    let (stopped, stopping) = watch::channel(false);
    let mut connections = Connections::new();
    let context = Arc::new(ApiContext::new(agent, config, verbosity, stopping, connections.max()));
    let mut served = JoinSet::new();
    let mut refused = JoinSet::new();
    let activity = Arc::new(Notify::new());
    let giving_back = tokio::spawn(memory::give_back(Arc::clone(&activity)));
    // An executor has as many requests in total, wherever it sends them.
    let requests = Arc::new(Requests::new(connections.max()));
    let executors = executors.map(|listener| {
        let (context, requests) = (Arc::clone(&context), Arc::clone(&requests));
        tokio::spawn(serve_executors(context, listener, requests, Arc::clone(&activity)))
    });
    let loopback = loopback.map(|listener| {
        let (context, requests) = (Arc::clone(&context), Arc::clone(&requests));
        tokio::spawn(serve_loopback(context, listener, requests, Arc::clone(&activity)))
    });
    let mut accepting = true;
    let mut stop = pin!(stop);
    let mut check_socket = tokio::time::interval(SOCKET_CHECK_INTERVAL);
    check_socket.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept(), if connections.has_space() => match accepted {
                Ok(stream) => {
                    accepting = true;
                    match connections.add() {
                        Some(connection) => {
                            let activity = Arc::clone(&activity);
                            let router = operator_router(&context, &listener, &stream);
                            served.spawn(serve_connection(Arc::clone(&context), stream, router, connection, activity));
                        }
                        None if refused.len() < MAX_REFUSED => {
                            refused.spawn(refuse(stream));
                        }
                        None => drop(stream),
                    }
                }
                Err(error) => {
                    if std::mem::replace(&mut accepting, false) {
                        warn!(%error, "cannot accept connections for now");
                    }
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            _ = check_socket.tick() => restore_socket(&mut listener, &context),
            Some(_) = refused.join_next() => {}
            // Also frees the memory of finished tasks.
            Some(ended) = served.join_next() => {
                if let Err(error) = ended {
                    error!("a connection was closed because of a bug of the agent: {error}");
                }
            }
        }
    }
    giving_back.abort();
    drop(listener);
    stopped.send_replace(true);
    let all_finished = async {
        while served.join_next().await.is_some() {}
        for (name, task) in [("executor API", executors), ("API on the loopback interface", loopback)] {
            if let Some(Err(error)) = join(task).await {
                error!("the {name} ended because of a bug of the agent: {error}");
            }
        }
    };
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, all_finished).await.is_err() {
        warn!("some requests were aborted because the agent stopped");
    }
}

async fn join(task: Option<JoinHandle<()>>) -> Option<Result<(), JoinError>> {
    match task {
        Some(task) => Some(task.await),
        None => None,
    }
}

/// Serves executors until the agent stops. What they do does not keep clients from connecting.
async fn serve_executors(
    context: Arc<ApiContext>,
    mut listener: Listener,
    requests: Arc<Requests>,
    activity: Arc<Notify>,
) {
    let mut connections = Connections::new();
    let mut served = JoinSet::new();
    let mut check_socket = tokio::time::interval(SOCKET_CHECK_INTERVAL);
    check_socket.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = context.stopped() => break,
            accepted = listener.accept(), if connections.has_space() => match accepted {
                // One for which there is no space is closed.
                Ok(stream) => if let Some(connection) = connections.add() {
                    let router = executor::router(Arc::clone(&context), Arc::clone(&requests));
                    let activity = Arc::clone(&activity);
                    served.spawn(serve_connection(Arc::clone(&context), stream, router, connection, activity));
                },
                Err(error) => {
                    debug!(%error, "cannot accept connections of executors for now");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            _ = check_socket.tick() => match listener.restore() {
                Ok(false) => {}
                Ok(true) => warn!("the socket `{}` was removed; listening on a new one", listener.path().display()),
                Err(error) => {
                    error!("executors cannot reach this agent: {}", error_chain::describe(&error));
                }
            },
            Some(ended) = served.join_next() => {
                if let Err(error) = ended {
                    error!("a connection of an executor was closed because of a bug of the agent: {error}");
                }
            }
        }
    }
    drop(listener);
    while served.join_next().await.is_some() {}
}

/// Serves whoever connects over TCP until the agent stops. What they do does not keep others from connecting to the sockets.
async fn serve_loopback(
    context: Arc<ApiContext>,
    listener: LoopbackListener,
    requests: Arc<Requests>,
    activity: Arc<Notify>,
) {
    let mut connections = Connections::new();
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            () = context.stopped() => break,
            accepted = listener.accept(), if connections.has_space() => match accepted {
                // One for which there is no space is closed.
                Ok(stream) => if let Some(connection) = connections.add() {
                    let router = listener.router(&context, &requests);
                    let activity = Arc::clone(&activity);
                    served.spawn(serve_connection(Arc::clone(&context), stream, router, connection, activity));
                },
                Err(error) => {
                    debug!(%error, "cannot accept connections over TCP for now");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            Some(ended) = served.join_next() => {
                if let Err(error) = ended {
                    error!("a connection over TCP was closed because of a bug of the agent: {error}");
                }
            }
        }
    }
    drop(listener);
    while served.join_next().await.is_some() {}
}

/// Listens again if the socket's file was removed. If that is not possible, `GET /health` and the log say why.
fn restore_socket(listener: &mut Listener, context: &ApiContext) {
    let problem = match listener.restore() {
        Ok(false) => None,
        Ok(true) => {
            warn!("the socket `{}` was removed; listening on a new one", listener.path().display());
            None
        }
        Err(error) => Some(error_chain::describe(&error)),
    };
    if let (Some(problem), true) = (&problem, context.socket_problem() != problem) {
        error!("clients cannot reach this agent: {problem}");
    }
    context.set_socket_problem(problem);
}

/// Refuses a connection while there are too many with requests.
async fn refuse(stream: UnixStream) {
    const RESPONSE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
                            too many connections to the agent have requests in progress; try again later\n";
    warn!("connection refused: too many have requests in progress");
    // The response would be lost if the request was not read.
    if tokio::time::timeout(REFUSAL_TIMEOUT, stream.readable()).await.is_ok_and(|ready| ready.is_ok()) {
        let _ = stream.try_read(&mut [0; 8192]);
        let _ = stream.try_write(RESPONSE.as_bytes());
        early::linger(stream).await;
    }
}

/// What a client may use.
fn operator_router(context: &Arc<ApiContext>, listener: &Listener, stream: &UnixStream) -> Router {
    match listener.check_peer(stream) {
        Ok(()) => routes::router(Arc::clone(context)),
        Err(error) => {
            warn!(%error, "connection refused");
            routes::forbidden(&error)
        }
    }
}

/// Serves one connection until it is closed, has been idle for too long, is closed for another one, or the agent stops.
async fn serve_connection(
    context: Arc<ApiContext>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    connection: Arc<Connection>,
    activity: Arc<Notify>,
) {
    let note = {
        let connection = Arc::clone(&connection);
        move |request: Request, next: Next| {
            let pending = connection.request();
            activity.notify_one();
            async move {
                let response = next.run(request).await;
                response.map(|body| {
                    Body::new(body.map_err(move |error| {
                        let _until_complete = &pending;
                        error
                    }))
                })
            }
        }
    };
    let router = router.layer(middleware::from_fn(early::respond)).layer(middleware::from_fn(note));
    let router = TowerToHyperService::new(router);
    let mut serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.config.api.idle_timeout)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| Box::pin(router.call(path::canonical(request)))),
        );
    // Whether it is closed between two requests.
    let mut idle = false;
    let end = async {
        tokio::select! { () = context.stopped() => {}, () = connection.to_be_closed() => {} }
    };
    let result = tokio::select! {
        result = poll_fn(|context| serving.poll_without_shutdown(context)) => result,
        () = end => {
            pin::Pin::new(&mut serving).graceful_shutdown();
            let result = poll_fn(|context| serving.poll_without_shutdown(context)).await;
            idle = true;
            result
        }
    };
    if let Err(error) = result {
        // Clients may disconnect at any time.
        debug!(%error, "connection closed early");
    }
    if idle {
        return;
    }
    // Others need not wait for a client that still sends.
    tokio::select! {
        () = early::linger(serving.into_parts().io.into_inner()) => {}
        () = connection.to_be_closed() => {}
    }
}
