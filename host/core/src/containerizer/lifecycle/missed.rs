//! Cleanups that were missed, because an operator forced the end of a container whose plugin could not be called.
//!
//! They are part of the container's record, which is kept until they have been performed: at once if the plugin is in
//! the chain and only fails, otherwise by the first agent that has it in its chain again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Backend, Handle, Shared, task_name};
use crate::containerizer::record_part::{MissedCleanup, RecordPart};
use crate::error_chain;

/// Performs the missed cleanups of a container that has ended, in a task, as far as their plugins are in the chain.
pub(super) fn perform_later<B: Backend>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>) {
    if handle.record().part.missed().is_empty() {
        return;
    }
    handle.show_missed();
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let (mut pause, longest) = B::BACKOFF;
        while is_possible(&shared2, &handle) {
            if perform(&shared2, &handle).await {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    });
}

/// Whether one of the plugins is in the chain, and the container was not removed.
fn is_possible<B: Backend>(shared: &Shared<B>, handle: &Arc<Handle<B>>) -> bool {
    let has_plugin = |missed: &MissedCleanup| shared.chain.plugin(&missed.plugin).is_some();
    shared.is_known(handle) && handle.record().part.missed().iter().any(has_plugin)
}

/// Calls the plugins once. Returns whether none is left that can be called.
async fn perform<B: Backend>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>) -> bool {
    let _op_lock = handle.op_lock().await;
    let record = handle.record();
    let missed = record.part.missed();
    let mut context = handle.context();
    if let Some(termination) = &mut context.details.termination {
        termination.status = record.termination.as_ref().and_then(|termination| termination.status);
    }
    context.participants.retain(|participant| missed.iter().any(|it| it.plugin == participant.plugin));
    let chain = shared.chain.clone();
    let work = move |job: &_| {
        let failed = chain.cleanup(job, &context, &BTreeMap::new());
        failed.iter().map(MissedCleanup::from).collect::<Vec<_>>()
    };
    let left = match shared.pool.run(shared.chain.teardown_timeout(), work).await {
        Ok(left) => left,
        Err(abandoned) => {
            let error = shared.chain.attribute(abandoned);
            tracing::warn!(container = %handle.id(), "a missed cleanup failed, will be retried: {error}");
            return false;
        }
    };
    let is_done = left.iter().all(|missed| shared.chain.plugin(&missed.plugin).is_none());
    for missed in missed.iter().filter(|missed| !left.iter().any(|it| it.plugin == missed.plugin)) {
        tracing::info!(container = %handle.id(), plugin = missed.plugin, "missed cleanup performed");
    }
    if let Err(error) = shared.update_persisted(handle, |record| record.part.set_missed(left)).await {
        // The next agent repeats it.
        tracing::warn!(container = %handle.id(), "{}", error_chain::describe(&error));
        return false;
    }
    handle.show_missed();
    is_done
}
