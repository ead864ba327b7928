//! What tells that a running container has to end: its first process, or else the engine, or a stop request.

use std::time::Duration;

use super::record::Handle;
use super::{Shared, engine_name};
use crate::model::Cause;
use crate::readiness::exited;

/// Pause before an engine that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Waits until the container has to end.
pub(super) async fn wait_for_end(shared: &Shared, handle: &Handle) -> Cause {
    tokio::select! {
        // The exit is checked last: its cause may be a request.
        biased;
        cause = handle.stop_requested() => cause,
        () = ended(shared, handle) => Cause::exited(),
    }
}

/// Waits until the container does not run.
async fn ended(shared: &Shared, handle: &Handle) {
    if let Some(process) = handle.process() {
        // Tells also while the engine does not answer.
        return exited(&process).await;
    }
    // It has ended already, or its processes are not visible to the agent.
    let container = engine_name(&handle.record());
    let mut reported = false;
    while let Err(error) = shared.backend.engine.wait(&container).await {
        if error.is_missing() {
            return;
        }
        if !std::mem::replace(&mut reported, true) {
            let error = crate::error_chain::describe(&error);
            tracing::warn!(container = %handle.id(), "cannot wait for its end yet: {error}");
        }
        tokio::time::sleep(RETRY).await;
    }
}
