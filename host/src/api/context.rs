//! State shared by all request handlers.

use std::time::SystemTime;

use tokio::sync::watch;

use crate::config::Config;
use crate::telemetry::Snapshot;
use cofferdam_core::agent::Agent;

/// State shared by all request handlers.
pub(super) struct ApiContext {
    pub(super) agent: Agent,
    pub(super) config: Config,
    pub(super) started: SystemTime,
    /// Becomes true when the agent stops.
    stopping: watch::Receiver<bool>,
}

impl ApiContext {
    pub(super) fn new(agent: Agent, config: Config, stopping: watch::Receiver<bool>) -> Self {
        Self { agent, config, started: SystemTime::now(), stopping }
    }

    pub(super) fn metrics(&self) -> Snapshot {
        Snapshot::take(&self.agent, self.started)
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves when the agent stops.
    pub(super) async fn stopped(&self) {
        // An error means that the sender was dropped, which happens only when the server has stopped.
        drop(self.stopping.clone().wait_for(|stopping| *stopping).await);
    }
}
