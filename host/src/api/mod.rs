//! The operator API: JSON over HTTP on a unix socket, in the words of the Mesos v1 agent API.
//!
//! It translates and never decides: a call becomes one question to the agent, its answer one message.
//! `docs/api.md` says what each call does, and where it differs from Mesos.

pub mod operator;
mod socket;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use cofferdam_core::agent::Agent;

use crate::config::Config;
use crate::telemetry::Snapshot;

use operator::routes;

pub use socket::{BindError, Listener};

/// How long requests that are being answered may take once the agent stops. Those that wait for the end of
/// a container are sent away at once.
const GRACE: Duration = Duration::from_secs(10);

/// How long to hold back when the kernel has no descriptor for the next connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What every handler has at hand.
struct Api {
    agent: Agent,
    config: Config,
    started: SystemTime,
    /// Becomes true when the agent stops.
    stopping: watch::Receiver<bool>,
}

impl Api {
    fn metrics(&self) -> Snapshot {
        Snapshot::take(&self.agent, self.started)
    }

    /// Resolves when the agent stops.
    async fn stopped(&self) {
        // An error means that whoever would say so is gone, which comes to the same.
        drop(self.stopping.clone().wait_for(|stopping| *stopping).await);
    }
}

/// Serves the API until `stop` resolves; then answers what is under way and returns.
pub async fn serve(agent: Agent, config: Config, listener: Listener, stop: impl Future<Output = ()>) {
    let (stopped, stopping) = watch::channel(false);
    let api = Arc::new(Api { agent, config, started: SystemTime::now(), stopping });
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    connections.spawn(converse(Arc::clone(&api), stream));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            // Only to forget the finished ones.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    stopped.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        warn!("some requests were still being answered when the agent stopped");
    }
}

/// Answers the requests of one connection, until it is closed, idle for too long, or the agent stops.
async fn converse(api: Arc<Api>, stream: UnixStream) {
    let router = match socket::check_peer(&stream) {
        Ok(()) => routes::router(Arc::clone(&api)),
        Err(error) => {
            warn!(%error, "refused a connection");
            routes::refusal(&error)
        }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(api.config.api.idle)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = api.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that goes away in the middle is not our concern.
        debug!(%error, "a connection ended early");
    }
}
