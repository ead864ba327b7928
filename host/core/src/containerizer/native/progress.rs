//! Progress of a launch: its phase changes, and ends at a stop request.

use super::LaunchError;
use super::phase::{Event, after};
use super::record::Handle;

/// Enters the next phase, unless the container is to stop.
pub(super) fn advance(handle: &Handle, event: Event) -> Result<(), LaunchError> {
    check_cancelled(handle)?;
    let next = after(handle.phase(), event).map_err(|error| internal(handle, &error.to_string()))?;
    handle.update_in_memory(|record| record.phase = next);
    tracing::debug!(container = %handle.id(), phase = %next, "phase changed");
    Ok(())
}

/// Fails if there is a stop request.
pub(super) fn check_cancelled(handle: &Handle) -> Result<(), LaunchError> {
    let Some(cause) = handle.stop_request() else { return Ok(()) };
    let message = cause.message.unwrap_or_default();
    Err(LaunchError::Cancelled { id: handle.id().clone(), phase: handle.phase(), message })
}

/// An error of the agent itself.
pub(super) fn internal(handle: &Handle, reason: &str) -> LaunchError {
    LaunchError::Internal { id: handle.id().clone(), reason: reason.to_owned() }
}
