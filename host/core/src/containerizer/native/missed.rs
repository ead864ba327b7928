//! Cleanups that were missed, because an operator forced the end of a container whose plugin could not be called.
//!
//! They are part of the container's record, which is kept until they have been performed: at once if the plugin is in
//! the chain and only fails, otherwise by the first agent that has it in its chain again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::Handle;
use super::{BACKOFF, Shared, task_name};
use crate::containerizer::plugin_part::MissedCleanup;
use crate::error_chain;
use crate::plugin::CallError;

pub(super) fn of_error(error: &CallError) -> MissedCleanup {
    MissedCleanup { plugin: error.plugin().to_owned(), reason: error.to_string() }
}

/// Performs the missed cleanups of a container that has ended, in a task, as far as their plugins are in the chain.
pub(super) fn perform_later(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if handle.record().part.missed.is_empty() {
        return;
    }
    handle.show_missed();
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let mut pause = BACKOFF.0;
        while is_possible(&shared2, &handle) {
            if perform(&shared2, &handle).await {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    });
}

/// Whether one of the plugins is in the chain, and the container was not removed.
fn is_possible(shared: &Shared, handle: &Arc<Handle>) -> bool {
    shared.table.get(handle.id()).is_some_and(|known| Arc::ptr_eq(&known, handle))
        && handle.record().part.missed.iter().any(|missed| shared.chain.plugin(&missed.plugin).is_some())
}

/// Calls the plugins once. Returns whether none is left that can be called.
async fn perform(shared: &Arc<Shared>, handle: &Arc<Handle>) -> bool {
    let _op_lock = handle.op_lock().await;
    let record = handle.record();
    let mut context = handle.context();
    if let Some(termination) = &mut context.details.termination {
        termination.status = record.termination.as_ref().and_then(|termination| termination.status);
    }
    let is_missed = |plugin: &str| record.part.missed.iter().any(|missed| missed.plugin == plugin);
    context.participants.retain(|participant| is_missed(&participant.plugin));
    let shared2 = Arc::clone(shared);
    let work = move |job: &_| {
        let failed = shared2.chain.cleanup(job, &context, &BTreeMap::new());
        failed.iter().map(of_error).collect::<Vec<_>>()
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
    for missed in record.part.missed.iter().filter(|missed| !left.iter().any(|it| it.plugin == missed.plugin))
    {
        tracing::info!(container = %handle.id(), plugin = missed.plugin, "missed cleanup performed");
    }
    if let Err(error) = shared.update_persisted(handle, |record| record.part.missed = left).await {
        // The next agent repeats it.
        tracing::warn!(container = %handle.id(), "{}", error_chain::describe(&error));
        return false;
    }
    handle.show_missed();
    is_done
}
