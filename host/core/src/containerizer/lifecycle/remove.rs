//! Removal of a container that has ended, with those nested in it: its sandbox and its record.

use std::sync::Arc;

use super::{Backend, STALL_WARNING, Shared, remove_directory};
use crate::containerizer::RemoveError;
use crate::containerizer::record_part::RecordPart;
use crate::model::ContainerId;

/// Removes a container. Returns false if it is unknown.
pub(super) async fn remove<B: Backend>(
    shared: &Arc<Shared<B>>,
    id: &ContainerId,
) -> Result<bool, RemoveError> {
    let Some(handle) = shared.table.get(id) else { return Ok(false) };
    let _op_lock = handle.op_lock().await;
    if !shared.is_known(&handle) {
        return Ok(false);
    }
    let removed = shared.table.within(id);
    if let Some(live) = removed.iter().find(|handle| handle.phase().is_live()) {
        return Err(RemoveError::StillLive { id: live.id().clone(), phase: live.phase() });
    }
    if let Some(handle) = removed.iter().find(|handle| !handle.record().part.missed().is_empty()) {
        let record = handle.record();
        let plugins = record.part.missed().iter().map(|missed| missed.plugin.clone()).collect();
        return Err(RemoveError::CleanupMissed { id: handle.id().clone(), plugins });
    }
    for handle in removed.iter().rev() {
        B::before_removal(shared, handle).await?;
    }
    let mut contexts: Vec<_> = removed.iter().rev().map(|handle| handle.context()).collect();
    contexts.retain(|context| shared.chain.observes_removal(context));
    let remove_sandboxes = move || {
        removed.iter().rev().try_for_each(|handle| {
            let path = handle.record().sandbox.clone();
            let failed =
                |source| RemoveError::Sandbox { id: handle.id().clone(), path: path.clone(), source };
            remove_directory(&path).map_err(failed)
        })
    };
    let (ledger, id2) = (Arc::clone(&shared.ledger), id.clone());
    let remove_record = move || ledger.remove(&id2).map_err(RemoveError::from);
    if contexts.is_empty() {
        in_job(shared, move || remove_sandboxes().and_then(|()| remove_record())).await?;
    } else {
        in_job(shared, remove_sandboxes).await?;
        // Before the record is removed: an agent that dies here finds it, and the removal can be repeated.
        for context in &contexts {
            shared.chain.removed(context).await;
        }
        in_job(shared, remove_record).await?;
    }
    shared.table.remove(id);
    Ok(true)
}

async fn in_job<B: Backend>(
    shared: &Shared<B>,
    work: impl FnOnce() -> Result<(), RemoveError> + Send + 'static,
) -> Result<(), RemoveError> {
    shared.pool.run(STALL_WARNING, move |_| work()).await.unwrap_or(Err(RemoveError::Interrupted))
}
