//! Recovery of the containers of an earlier agent.
//!
//! What is to happen to each is decided by its record alone, so that an engine that does not answer delays neither the start
//! of the agent nor other containers. The engine is asked when the container is supervised or destroyed.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use cofferdam_linux::process::{Process, ProcessError};

use super::record::{DockerRecord, Handle};
use super::supervise::supervise;
use super::{NAME, STALL_WARNING, Shared, destroy, launch, removal, spec, task_name};
use crate::containerizer::sandboxes::ids_in;
use crate::containerizer::{RecoverError, Recovered, Recovery};
use crate::error_chain;
use crate::ledger::Entry;
use crate::model::{Cause, Command, ContainerId, Phase, Reason, Record, Request, Termination, now_unix_ms};

/// What happens to a container after a restart.
enum RecoveryAction {
    Continue,
    Destroy(Cause),
    Keep,
}

/// The containers that were found, and what happens to each.
pub(super) struct DockerRecovery {
    shared: Arc<Shared>,
    found: Vec<(Arc<Handle>, RecoveryAction)>,
}

/// Finds every container, and decides what happens to it.
pub(super) async fn find(
    shared: &Arc<Shared>,
    entries: Vec<Entry>,
    recorded: Arc<BTreeSet<ContainerId>>,
) -> Result<DockerRecovery, RecoverError> {
    let scanning = Arc::clone(shared);
    let found = shared.pool.run(STALL_WARNING, move |_| scan(&scanning, entries, &recorded)).await??;
    Ok(DockerRecovery { shared: Arc::clone(shared), found })
}

#[async_trait]
impl Recovery for DockerRecovery {
    async fn resume(self: Box<Self>) -> Recovered {
        let Self { shared, found } = *self;
        let mut recovered = Recovered::default();
        for (handle, action) in found {
            let (shared2, task) = (Arc::clone(&shared), task_name(handle.id()));
            match action {
                RecoveryAction::Keep => {
                    recovered.ended += 1;
                    destroy::clean_up_later(&shared, &handle);
                }
                RecoveryAction::Destroy(cause) => {
                    recovered.destroyed += 1;
                    shared
                        .fatal
                        .spawn(task, async move { destroy::bring_down(&shared2, &handle, cause).await });
                }
                RecoveryAction::Continue => {
                    recovered.running += 1;
                    shared.fatal.spawn(task, async move { resume(shared2, handle).await });
                }
            }
        }
        removal::start(&shared);
        recovered
    }
}

/// Supervises a container that was running.
async fn resume(shared: Arc<Shared>, handle: Arc<Handle>) {
    tokio::select! {
        biased;
        // Its end does not wait for an engine that does not answer.
        _ = handle.stop_requested() => {}
        () = ask_engine(&shared, &handle) => {}
    }
    supervise(shared, handle).await;
}

/// Asks the engine for what only it knows, and has it do what an earlier agent left undone.
async fn ask_engine(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if handle.process().is_none() {
        // Its first process was not visible, or had ended before it could be opened.
        let container = super::engine_name(&handle.record());
        if let Ok(Some(found)) = shared.engine.container(&container).await
            && shared.owns(&found, &handle.record())
            && let Some(process) = launch::first_process(shared, &found).await
        {
            handle.set_process(Some(Arc::new(process)));
        }
    }
    roll_back_update(shared, handle).await;
}

/// Rolls back an update during which the agent died: no client was told that it succeeded.
async fn roll_back_update(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    let record = handle.record();
    if record.updating.is_none() {
        return;
    }
    let _op_lock = handle.op_lock().await;
    tracing::warn!(container = %handle.id(), "incomplete update rolled back");
    let error = match shared.apply_limits(&record, &record.resources).await {
        Ok(()) => {
            let written = shared.update_persisted(handle, |record| record.updating = None).await;
            written.err().map(|error| error_chain::describe(&error))
        }
        Err(error) => Some(error_chain::describe(&error)),
    };
    if let Some(error) = error {
        // The next restart retries.
        tracing::error!(container = %handle.id(), "its limits may differ from its record: {error}");
    }
}

fn scan(
    shared: &Shared,
    entries: Vec<Entry>,
    recorded: &BTreeSet<ContainerId>,
) -> Result<Vec<(Arc<Handle>, RecoveryAction)>, RecoverError> {
    let mut found = Vec::new();
    for Entry { id, record } in entries {
        let record = match record.and_then(|record| record.of::<DockerRecord>(NAME)) {
            Ok(record) => record,
            // The container may be healthy; another version of the agent can tell.
            Err(error) if !error.is_damage() => {
                let reason = error_chain::describe(&error);
                tracing::error!(container = %id, "left alone: {reason}");
                shared.foreign.add(id, reason);
                continue;
            }
            Err(error) => {
                let reason = error_chain::describe(&error);
                tracing::error!(container = %id, "destroyed without a record: {reason}");
                let cause = Cause::because(Reason::Unrecoverable, reason);
                let mut record = unknown(shared, id);
                record.phase = Phase::Destroying;
                found.extend(
                    shared.table.insert(record).map(|handle| (handle, RecoveryAction::Destroy(cause))),
                );
                continue;
            }
        };
        let (process, action) = decide(shared, &record);
        let mut record = record;
        if matches!(action, RecoveryAction::Destroy(_)) {
            // The logger must not recover it as running.
            record.phase = Phase::Destroying;
        }
        for participant in &mut record.part.participants {
            // It may serve the container again; if it refuses again, its verdict says so.
            participant.unavailable = None;
        }
        if let Some(handle) = shared.table.insert(record) {
            handle.set_process(process.map(Arc::new));
            found.push((handle, action));
        }
    }
    find_sandboxes(shared, recorded, &mut found)?;
    for (handle, _) in found.iter().filter(|(handle, _)| handle.phase().is_live()) {
        if let Err(error) = shared.ledger.reserve(handle.id()) {
            let error = error_chain::describe(&error);
            tracing::error!(container = %handle.id(), "its end may not be recorded: {error}");
        }
    }
    Ok(found)
}

/// What happens to a container, and its first process if it runs.
fn decide(shared: &Shared, record: &Record<DockerRecord>) -> (Option<Process>, RecoveryAction) {
    let destroy = |reason, message: &str| RecoveryAction::Destroy(Cause::because(reason, message));
    if record.phase == Phase::Ended {
        return (None, RecoveryAction::Keep);
    }
    if record.boot_id != shared.boot_id {
        return (None, destroy(Reason::Rebooted, "the machine was rebooted"));
    }
    let process = match record.process.map(|process| Process::open(process.pid, process.start_time)) {
        None | Some(Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. })) => None,
        Some(Ok(process)) => Some(process),
        // Then the engine tells when it ends, or it is opened when the engine answers.
        Some(Err(error)) => {
            let error = error_chain::describe(&error);
            tracing::warn!(container = %record.id, "its first process is not visible: {error}");
            None
        }
    };
    let action = match record.phase {
        Phase::Destroying => RecoveryAction::Destroy(record.cause.clone().unwrap_or_default()),
        Phase::Running => RecoveryAction::Continue,
        _ => destroy(Reason::LaunchFailed, "the agent died while it was being launched"),
    };
    (process, action)
}

/// Sandboxes without a record: after a reboot, the runtime directory may be gone but not the work directory. Their
/// logs are kept, as those of containers that have ended, until they are removed.
fn find_sandboxes(
    shared: &Shared,
    recorded: &BTreeSet<ContainerId>,
    found: &mut Vec<(Arc<Handle>, RecoveryAction)>,
) -> Result<(), RecoverError> {
    for id in ids_in(&shared.sandboxes())? {
        // It may be another containerizer's that it is recorded for.
        let is_known = recorded.contains(&id) || shared.table.get(&id).is_some();
        if is_known || shared.foreign.containing(&id).is_some() {
            continue;
        }
        let message = "its record is gone: the machine was rebooted, or the runtime directory was removed";
        tracing::warn!(container = %id, "{message}; its sandbox is kept until the container is removed");
        let mut record = unknown(shared, id);
        record.phase = Phase::Ended;
        record.part.participants.clear();
        record.termination = Some(Termination {
            reason: Some(Reason::Rebooted),
            message: Some(message.to_owned()),
            at_unix_ms: now_unix_ms(),
            ..Termination::default()
        });
        if let Err(error) = shared.ledger.write(&record) {
            // The next agent finds the same.
            tracing::warn!(container = %record.id, "{}", error_chain::describe(&error));
        }
        found.extend(shared.table.insert(record).map(|handle| (handle, RecoveryAction::Keep)));
    }
    Ok(())
}

/// A record for a container of which only the id is known.
fn unknown(shared: &Shared, id: ContainerId) -> Record<DockerRecord> {
    let mut container = cofferdam_plugin_model::Container::new(id.clone());
    container.standalone = true;
    let part = DockerRecord {
        name: spec::name(&id),
        requested: true,
        participants: shared.chain.participants(&container),
        ..DockerRecord::default()
    };
    let sandbox = shared.sandbox(&id);
    let request = Request::new(id, Command::default());
    let mut record = Record::new(NAME, request, shared.boot_id.clone(), part);
    record.created_unix_ms = 0;
    record.sandbox = sandbox;
    record
}
