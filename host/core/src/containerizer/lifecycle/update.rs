//! Updates of the resources of running containers.
//!
//! What is intended is on record before anything is changed, and stays there until it either is in force everywhere or has been
//! rolled back everywhere. So the record never claims limits that are not in force without saying so, and a restarted
//! agent continues a roll back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cofferdam_plugin_model::Resources;
use serde_json::Value as Json;

use super::teardown::Teardown;
use super::{Handle, Shared, task_name};
use crate::chain;
use crate::containerizer::UpdateError;
use crate::containerizer::record_part::RecordPart;
use crate::error_chain;
use crate::model::{ContainerId, Phase, Record, check_resources};
use crate::plugin::CallError;

/// How a backend changes the resources of a running container.
pub(crate) trait Update: Teardown {
    /// Changes resources from `from` to `to`, and rolls that back if it fails. Returns the states of plugins that changed.
    fn update(
        shared: &Arc<Shared<Self>>,
        handle: &Arc<Handle<Self>>,
        from: Resources,
        to: Resources,
    ) -> impl Future<Output = Result<States, FailedUpdate>> + Send;

    /// Rolls back a change from `attempted` to `to`, of which any part may be in force.
    fn roll_back(
        shared: &Arc<Shared<Self>>,
        handle: &Arc<Handle<Self>>,
        attempted: Resources,
        to: Resources,
    ) -> impl Future<Output = Rollback> + Send;
}

/// States of plugins, by plugin.
pub(crate) type States = BTreeMap<String, Json>;

/// Why an update failed, and the result of its roll back.
pub(crate) struct FailedUpdate {
    pub(crate) cause: UpdateError,
    pub(crate) rollback: Rollback,
}

/// What a roll back has achieved.
#[derive(Default)]
pub(crate) struct Rollback {
    /// States that changed.
    pub(crate) states: States,
    /// Why it is incomplete.
    pub(crate) failures: Vec<Failure>,
}

/// What prevents a roll back for now.
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The plugin that cannot be called before a late call has returned, if it is that.
    pub(crate) late: Option<String>,
}

impl From<&CallError> for Failure {
    fn from(error: &CallError) -> Self {
        Self { reason: error.to_string(), late: error.is_late().then(|| error.plugin().to_owned()) }
    }
}

impl From<chain::Rollback> for Rollback {
    fn from(rollback: chain::Rollback) -> Self {
        let chain::Rollback { states, failures } = rollback;
        Self { states, failures: failures.iter().map(Failure::from).collect() }
    }
}

/// Replaces those of the container's resources that are named.
pub(super) async fn update<B: Update>(
    shared: &Arc<Shared<B>>,
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
    match B::update(shared, &handle, from, to.clone()).await {
        Ok(states) => {
            let finish = move |record: &mut Record<B::Part>| {
                record.resources = to;
                record.updating = None;
                record.part.set_states(states);
            };
            shared.update_persisted(&handle, finish).await?;
            Ok(())
        }
        Err(FailedUpdate { cause, rollback }) => match finish_roll_back(shared, &handle, rollback).await {
            Ok(()) => Err(cause),
            // Its limits end with it.
            Err(_) if handle.stop_request().is_some() => Err(cause),
            Err(failures) => {
                let incomplete = describe(&failures);
                roll_back_later(shared, &handle, failures);
                Err(UpdateError::RollbackIncomplete { cause: Box::new(cause), incomplete })
            }
        },
    }
}

/// Rolls back the update during which an earlier agent ended, if there is one: no client was told that it succeeded.
pub(crate) async fn roll_back_interrupted<B: Update>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>) {
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
async fn roll_back<B: Update>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>) -> Result<(), Vec<Failure>> {
    let record = handle.record();
    let Some(attempted) = record.updating.clone() else { return Ok(()) };
    let rollback = B::roll_back(shared, handle, attempted, record.resources.clone()).await;
    finish_roll_back(shared, handle, rollback).await
}

/// Records what a roll back has achieved.
async fn finish_roll_back<B: Update>(
    shared: &Shared<B>,
    handle: &Arc<Handle<B>>,
    rollback: Rollback,
) -> Result<(), Vec<Failure>> {
    let Rollback { states, failures } = rollback;
    let is_complete = failures.is_empty();
    let written = shared
        .update_persisted(handle, move |record| {
            record.part.set_states(states);
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
fn roll_back_later<B: Update>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>, mut failures: Vec<Failure>) {
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let (mut pause, longest) = B::BACKOFF;
        let mut reported = String::new();
        loop {
            let reason = describe(&failures);
            if reason != reported {
                let container = handle.id();
                tracing::warn!(%container, "its limits may differ from its record until an update is rolled back: {reason}");
                reported = reason;
            }
            let late: BTreeSet<_> = failures.iter().filter_map(|failure| failure.late.clone()).collect();
            let others_failed = failures.iter().any(|failure| failure.late.is_none());
            tokio::select! {
                _ = handle.stop_requested() => return,
                _ = handle.ended() => return,
                () = shared2.chain.any_callable(&late, handle.id()), if !late.is_empty() => {}
                () = tokio::time::sleep(pause), if others_failed => pause = (pause * 2).min(longest),
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

fn describe(failures: &[Failure]) -> String {
    let reasons: Vec<_> = failures.iter().map(|failure| failure.reason.as_str()).collect();
    reasons.join("; ")
}
