//! Phases of a container of an engine.
//!
//! ```text
//! Starting ─▶ Fetching ─▶ Pulling ─▶ Mounting ─▶ Running
//!     │           │          │           │          │
//!     └───────────┴──────────┴───────────┴──────────┴──▶ Destroying ─▶ Ended
//! ```

use super::record::Handle;
use crate::containerizer::LaunchError;
use crate::model::Phase;

/// Enters the next phase of a launch, unless the container is to stop.
pub(super) fn enter(handle: &Handle, phase: Phase) -> Result<(), LaunchError> {
    check_cancelled(handle)?;
    handle.update_in_memory(|record| record.phase = phase);
    tracing::debug!(container = %handle.id(), %phase, "phase changed");
    Ok(())
}

/// Fails if there is a stop request.
pub(super) fn check_cancelled(handle: &Handle) -> Result<(), LaunchError> {
    match handle.stop_request() {
        Some(cause) => Err(cancelled(handle, cause.message)),
        None => Ok(()),
    }
}

/// Waits for a step of a launch, unless the container is to stop: then the step is dropped.
pub(super) async fn unless_stopped<T>(
    handle: &Handle,
    step: impl Future<Output = Result<T, LaunchError>>,
) -> Result<T, LaunchError> {
    tokio::select! {
        biased;
        cause = handle.stop_requested() => Err(cancelled(handle, cause.message)),
        outcome = step => outcome,
    }
}

pub(super) fn cancelled(handle: &Handle, message: Option<String>) -> LaunchError {
    let message = message.unwrap_or_default();
    LaunchError::Cancelled { id: handle.id().clone(), phase: handle.phase(), message }
}
