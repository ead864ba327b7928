//! Removal of a container that has ended, with those nested in it: its sandbox and its record.

use std::sync::Arc;

use super::{Backend, Extent, Handle, STALL_WARNING, Shared, remove_directory};
use crate::containerizer::RemoveError;
use crate::containerizer::record_part::RecordPart;
use crate::model::ContainerId;

/// Removes a container. Returns false if it is unknown.
pub(super) async fn remove<B: Backend>(
    shared: &Arc<Shared<B>>,
    id: &ContainerId,
) -> Result<bool, RemoveError> {
    match shared.table.get(id) {
        Some(handle) => remove_known(shared, &handle).await,
        None => Ok(false),
    }
}

/// As [`remove`], for a container and not for another one that may have its id by now.
pub(crate) async fn remove_known<B: Backend>(
    shared: &Arc<Shared<B>>,
    handle: &Arc<Handle<B>>,
) -> Result<bool, RemoveError> {
    let id = handle.id();
    let _op_lock = handle.op_lock().await;
    if !shared.is_known(handle) {
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
    let remove_sandboxes = move |extent| {
        removed.iter().rev().try_for_each(|handle| {
            let path = handle.record().sandbox.clone();
            let failed =
                |source| RemoveError::Sandbox { id: handle.id().clone(), path: path.clone(), source };
            remove_directory(&path, extent).map_err(failed)
        })
    };
    let (ledger, id2) = (Arc::clone(&shared.ledger), id.clone());
    let remove_record = move || ledger.remove(&id2).map_err(RemoveError::from);
    if contexts.is_empty() {
        remove_directories(shared, move |extent| remove_sandboxes(extent).and_then(|()| remove_record()))
            .await?;
    } else {
        remove_directories(shared, remove_sandboxes).await?;
        // Before the record is removed: an agent that dies here finds it, and the removal can be repeated.
        for context in &contexts {
            shared.chain.removed(context).await;
        }
        in_job(shared, remove_record).await?;
    }
    shared.table.remove(id);
    Ok(true)
}

/// Runs work that removes directories, and again on a thread for removals if one of them is large.
async fn remove_directories<B: Backend>(
    shared: &Shared<B>,
    work: impl Fn(Extent) -> Result<(), RemoveError> + Clone + Send + 'static,
) -> Result<(), RemoveError> {
    let all = work.clone();
    match in_job(shared, move || work(Extent::Few)).await {
        Err(RemoveError::Sandbox { source, .. }) if source.is_unfinished() => {
            let removed = shared.pool.removals().run(move || all(Extent::All)).await;
            removed.unwrap_or(Err(RemoveError::Interrupted))
        }
        removed => removed,
    }
}

async fn in_job<B: Backend>(
    shared: &Shared<B>,
    work: impl FnOnce() -> Result<(), RemoveError> + Send + 'static,
) -> Result<(), RemoveError> {
    shared.pool.run(STALL_WARNING, move |_| work()).await.unwrap_or(Err(RemoveError::Interrupted))
}
