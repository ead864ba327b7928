//! Admission of a container: its id is taken, and nothing of it exists.

use std::sync::Arc;

use super::{Backend, Handle, Shared};
use crate::containerizer::LaunchError;
use crate::model::{ContainerId, Phase, Reason, Record, Request, Termination, now_unix_ms};

/// Adds a container to the table.
pub(super) fn admit<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
) -> Result<Arc<Handle<B>>, LaunchError> {
    let id = request.id.clone();
    if let Some((foreign, reason)) = shared.foreign.containing(&id) {
        return Err(LaunchError::Foreign { id, foreign, reason });
    }
    check_parent(shared, &id)?;
    let part = B::part(shared, request);
    let mut record = Record::new(B::NAME, request.without_secrets(), shared.boot_id.clone(), part);
    record.sandbox = shared.sandbox(&id);
    let handle = shared.table.insert(record).ok_or_else(|| duplicate(shared, &id))?;
    // A parent that began to end before the insertion did not find the child in the table; one that begins
    // later will. One in between may already be waiting for the child.
    check_parent(shared, &id).inspect_err(|_| {
        shared.table.remove(&id);
        handle.update_in_memory(|record| record.phase = Phase::Ended);
        handle.announce_end(Termination {
            reason: Some(Reason::ParentEnded),
            at_unix_ms: now_unix_ms(),
            ..Termination::default()
        });
    })?;
    Ok(handle)
}

fn duplicate<B: Backend>(shared: &Shared<B>, id: &ContainerId) -> LaunchError {
    match shared.table.get(id) {
        Some(handle) => LaunchError::taken(&handle.summary()),
        // It was removed just now.
        None => LaunchError::Duplicate { id: id.clone() },
    }
}

/// Checks that the parent of a nested container is running.
fn check_parent<B: Backend>(shared: &Shared<B>, id: &ContainerId) -> Result<(), LaunchError> {
    let Some(parent) = id.parent() else { return Ok(()) };
    let id = id.clone();
    match shared.table.get(&parent).map(|handle| handle.phase()) {
        Some(Phase::Running) => Ok(()),
        Some(phase) => Err(LaunchError::ParentNotRunning { id, parent, phase }),
        None => Err(LaunchError::NoParent { id, parent }),
    }
}
