//! Accepts connections and serves HTTP/1.1 on each.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use super::context::ApiContext;
use super::operator::routes;
use super::socket::{self, Listener};
use crate::config::Config;
use cofferdam_core::agent::Agent;

/// How long in-flight requests may take once the agent stops. Pending waits are answered at once.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay before the next accept(2) after one has failed, as it does while no descriptor is available.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves the API until `stop` resolves; then finishes in-flight requests, answers pending waits with 503, and
/// returns.
pub async fn serve(agent: Agent, config: Config, listener: Listener, stop: impl Future<Output = ()>) {
    let (stopped, stopping) = watch::channel(false);
    let context = Arc::new(ApiContext::new(agent, config, stopping));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    connections.spawn(serve_connection(Arc::clone(&context), stream));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            // Also frees the memory of finished tasks.
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    error!("a connection was closed because of a bug of the agent: {error}");
                }
            }
        }
    }
    drop(listener);
    stopped.send_replace(true);
    let all_finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, all_finished).await.is_err() {
        warn!("some requests were aborted because the agent stopped");
    }
}

/// Serves one connection until it is closed, has been idle for too long, or the agent stops.
async fn serve_connection(context: Arc<ApiContext>, stream: UnixStream) {
    let router = match socket::check_peer(&stream) {
        Ok(()) => routes::router(Arc::clone(&context)),
        Err(error) => {
            warn!(%error, "connection refused");
            routes::forbidden(&error)
        }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.config.api.idle_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = context.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Clients may disconnect at any time.
        debug!(%error, "connection closed early");
    }
}
