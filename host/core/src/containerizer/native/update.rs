//! Updates of the resources of running containers.
//!
//! What is intended is on record before the first plugin is called, and stays there until either all plugins have applied
//! it or all have rolled it back. So the record never claims limits that are not in force without saying so, and a restarted
//! agent continues a roll back.

use std::collections::BTreeSet;
use std::sync::Arc;

use cofferdam_plugin_model::Resources;

use super::record::Handle;
use super::{BACKOFF, Shared, task_name};
use crate::chain::{FailedUpdate, Rollback};
use crate::containerizer::UpdateError;
use crate::error_chain;
use crate::model::{ContainerId, Phase, check_resources};
use crate::plugin::CallError;

/// Replaces those of the container's resources that are named.
pub(super) async fn update(
    shared: &Arc<Shared>,
    id: &ContainerId,
    resources: Resources,
) -> Result<(), UpdateError> {
    check_resources(id, &resources)?;
    let unknown = || UpdateError::Unknown { id: id.clone() };
    let handle = shared.table.get(id).ok_or_else(unknown)?;
    let _op_lock = handle.op_lock().await;
    let phase = handle.phase();
    if phase != Phase::Running {
        return Err(if phase.is_live() {
            UpdateError::NotRunning { id: id.clone(), phase }
        } else {
            unknown()
        });
    }
    let record = handle.record();
    let mut from = record.resources.clone();
    let to = from.clone().updated(&resources);
    if let (Some(attempted), Err(failures)) = (&record.updating, roll_back(shared, &handle).await) {
        // Either value may be in force. Unless it is replaced, nothing can be told to plugins about it.
        let uncertain = from.differing(attempted);
        if !uncertain.iter().all(|name| resources.has(name)) {
            let reason = describe(&failures);
            return Err(UpdateError::RollingBack { id: id.clone(), uncertain, reason });
        }
        from.retain(|name| !uncertain.contains(name));
    }
    let intended = to.clone();
    let intent = shared.update_persisted(&handle, |record| record.updating = Some(intended)).await;
    intent.map_err(|source| UpdateError::Intent { id: id.clone(), source })?;
    match shared.chain.update(&handle.context(), from, to.clone()).await {
        Ok(states) => {
            shared.update_persisted(&handle, |record| record.finish_update(to, states)).await?;
            Ok(())
        }
        Err(FailedUpdate { cause, rollback }) => match finish(shared, &handle, rollback).await {
            Ok(()) => Err(UpdateError::Refused(cause)),
            Err(failures) => {
                let incomplete = describe(&failures);
                roll_back_later(shared, &handle, failures);
                Err(UpdateError::RollbackIncomplete { cause, incomplete })
            }
        },
    }
}

/// Rolls back the update during which an earlier agent ended, if there is one: no client was told that it succeeded.
pub(super) async fn roll_back_interrupted(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if handle.record().updating.is_none() {
        return;
    }
    tracing::warn!(container = %handle.id(), "an update was interrupted; it is rolled back");
    let _op_lock = handle.op_lock().await;
    if let Err(failures) = roll_back(shared, handle).await {
        roll_back_later(shared, handle, failures);
    }
}

/// Rolls back an update on record, if there is one.
async fn roll_back(shared: &Shared, handle: &Arc<Handle>) -> Result<(), Vec<CallError>> {
    let record = handle.record();
    let Some(attempted) = record.updating.clone() else { return Ok(()) };
    let rollback = shared.chain.roll_back(&handle.context(), attempted, record.resources.clone()).await;
    finish(shared, handle, rollback).await
}

/// Records what a roll back has achieved.
async fn finish(shared: &Shared, handle: &Arc<Handle>, rollback: Rollback) -> Result<(), Vec<CallError>> {
    let Rollback { states, failures } = rollback;
    let is_complete = failures.is_empty();
    let written = shared
        .update_persisted(handle, move |record| {
            record.set_states(states);
            if is_complete {
                record.updating = None;
            }
        })
        .await;
    if let Err(error) = written {
        // The next attempt or agent rolls back once more, which does no harm.
        tracing::warn!(container = %handle.id(), "{}", error_chain::describe(&error));
    }
    if is_complete { Ok(()) } else { Err(failures) }
}

/// Repeats a roll back in a task, until it is complete or the container ends.
fn roll_back_later(shared: &Arc<Shared>, handle: &Arc<Handle>, mut failures: Vec<CallError>) {
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let mut pause = BACKOFF.0;
        let mut reported = String::new();
        loop {
            let reason = describe(&failures);
            if reason != reported {
                let container = handle.id();
                tracing::warn!(%container, "its limits may differ from its record until an update is rolled back: {reason}");
                reported = reason;
            }
            let (late, others): (Vec<_>, Vec<_>) = failures.iter().partition(|error| error.is_late());
            let late: BTreeSet<_> = late.into_iter().map(|error| error.plugin().to_owned()).collect();
            tokio::select! {
                _ = handle.stop_requested() => return,
                _ = handle.ended() => return,
                () = shared2.chain.any_callable(&late, handle.id()), if !late.is_empty() => {}
                () = tokio::time::sleep(pause), if !others.is_empty() => pause = (pause * 2).min(BACKOFF.1),
            }
            let _op_lock = handle.op_lock().await;
            if handle.phase() != Phase::Running {
                return;
            }
            match roll_back(&shared2, &handle).await {
                Ok(()) => return,
                Err(again) => failures = again,
            }
        }
    });
}

fn describe(failures: &[CallError]) -> String {
    let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
    failures.join("; ")
}
