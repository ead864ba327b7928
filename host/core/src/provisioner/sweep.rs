//! The removal of what pulls and imports have left in the store that were killed.
//!
//! When an agent is killed, its pulls end soon after it, but the next agent may start before they have: then it tries again.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::Store;
use crate::blocking::WorkPool;
use crate::error_chain::describe;

/// Pause after an attempt during which somebody else used the store.
const PAUSE: Duration = Duration::from_secs(10);

/// The task, which ends after one attempt for which nobody else used the store, or when this is dropped.
#[derive(Debug)]
pub(super) struct Sweep(JoinHandle<()>);

impl Sweep {
    /// Must be called in a tokio runtime.
    pub(super) fn start(store: Store, pool: WorkPool) -> Self {
        Self(tokio::spawn(run(store, pool)))
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(store: Store, pool: WorkPool) {
    loop {
        let store = store.clone();
        let reason = match pool.run(move || store.sweep_existing()).await {
            Ok(Ok(true)) => return,
            Ok(Ok(false)) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Ok(Err(error)) => describe(&error),
            Err(lost) => lost.to_string(),
        };
        tracing::warn!("what a pull has left behind stays until the next one: {reason}");
        return;
    }
}
