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
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, warn};

use super::connections::{Connection, Connections};
use super::context::ApiContext;
use super::early;
use super::endpoints::{Endpoint, ExecutorSocket, Loopback, OperatorSocket};
use super::executor::Requests;
use super::memory;
use super::path;
use super::socket::Listener;
use super::tcp::LoopbackListener;
use crate::config::Config;
use crate::telemetry::Verbosity;
use cofferdam_core::agent::Agent;

/// How long in-flight requests may take once the agent stops. Pending waits are answered at once.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the files of sockets are looked for.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

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
    let Listeners { operator, executors, loopback } = listeners;
    let (stopped, stopping) = watch::channel(false);
    let max = Connections::new().max();
    let context = Arc::new(ApiContext::new(agent, config, verbosity, stopping, max));
    let activity = Arc::new(Notify::new());
    let events = context.agent.events().subscribe(None);
    let giving_back = tokio::spawn(memory::give_back(Arc::clone(&activity), events, context.files.clone()));
    // An executor has as many requests in total, wherever it sends them.
    let requests = Arc::new(Requests::new(max));
    let mut endpoints = JoinSet::new();
    let operator = OperatorSocket { listener: operator, context: Arc::clone(&context) };
    endpoints.spawn(accept(Arc::clone(&context), operator, Arc::clone(&activity)));
    if let Some(listener) = executors {
        let (context, requests) = (Arc::clone(&context), Arc::clone(&requests));
        let executors = ExecutorSocket { listener, context: Arc::clone(&context), requests };
        endpoints.spawn(accept(context, executors, Arc::clone(&activity)));
    }
    if let Some(listener) = loopback {
        let loopback = Loopback { listener, context: Arc::clone(&context), requests };
        endpoints.spawn(accept(context, loopback, activity));
    }
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(ended) = endpoints.join_next() => report(ended),
        }
    }
    giving_back.abort();
    stopped.send_replace(true);
    let all_finished = async {
        while let Some(ended) = endpoints.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, all_finished).await.is_err() {
        warn!("some requests were aborted because the agent stopped");
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!("a part of the API ended because of a bug of the agent: {error}");
    }
}

/// Accepts connections and serves them until the agent stops.
async fn accept<E: Endpoint>(context: Arc<ApiContext>, mut endpoint: E, activity: Arc<Notify>) {
    let mut connections = Connections::new();
    let mut served = JoinSet::new();
    let mut refused = JoinSet::new();
    let mut accepting = true;
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = context.stopped() => break,
            accepted = endpoint.accept(), if connections.has_space() => match accepted {
                Ok(stream) => {
                    accepting = true;
                    if let Some(connection) = connections.add() {
                        let router = endpoint.router(&stream);
                        let (context, activity) = (Arc::clone(&context), Arc::clone(&activity));
                        served.spawn(serve_connection(context, stream, router, connection, activity));
                    } else if refused.len() < MAX_REFUSED {
                        refused.spawn(E::refuse(stream));
                    }
                }
                Err(error) => {
                    if std::mem::replace(&mut accepting, false) {
                        warn!(%error, "cannot accept {} for now", E::CONNECTIONS);
                    }
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            _ = check.tick() => endpoint.restore(),
            Some(_) = refused.join_next() => {}
            // Also frees the memory of finished tasks.
            Some(ended) = served.join_next() => {
                if let Err(error) = ended {
                    error!("one of the {} was closed because of a bug of the agent: {error}", E::CONNECTIONS);
                }
            }
        }
    }
    // Nobody else may connect while those that are served are finished.
    drop(endpoint);
    while served.join_next().await.is_some() {}
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
