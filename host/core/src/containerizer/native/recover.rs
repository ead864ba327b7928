//! Recovery of the containers of an earlier agent.
//!
//! ```text
//! ledger ─▶ records            launcher ─▶ traces
//!              │                              │ without a record: destroyed by id
//!              ▼                              ▼
//!   ended: kept   running: continues   anything else: destroyed
//! ```
//!
//! A record of another version, and what is no record, is left alone with everything of its container: see `foreign.rs`.
//!
//! A container continues only if it was recorded as running in this boot and its first process is the same one.
//! Plugins recover before anything is done to any container; one that refuses or is missing harms none.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use cofferdam_linux::process::{Process, ProcessError};

use super::launch::Running;
use super::record::{Handle, NativeRecord};
use super::supervise::supervise;
use super::{NAME, STALL_WARNING, Shared, destroy, missed, task_name};
use crate::chain::{CallSequence, SequenceOutcome, Watch};
use crate::containerizer::{RecoverError, Recovered};
use crate::error_chain;
use crate::ledger::{Entry, RecordError};
use crate::model::{
    Cause, Command, ContainerClass, ContainerId, Phase, Reason, Record, Request, Termination, now_unix_ms,
};

/// What happens to a container after a restart.
enum RecoveryAction {
    Continue(Arc<Process>),
    Destroy(Cause),
    Keep,
}

type Found = Vec<(Arc<Handle>, RecoveryAction)>;

pub(super) async fn recover(shared: &Arc<Shared>, entries: Vec<Entry>) -> Result<Recovered, RecoverError> {
    let found = {
        let shared = Arc::clone(shared);
        shared.clone().pool.run(STALL_WARNING, move |_| scan(&shared, entries)).await??
    };
    shared.chain.recover().await;
    let mut recovered = Recovered::default();
    for (handle, action) in found {
        match action {
            RecoveryAction::Keep => {
                recovered.ended += 1;
                missed::perform_later(shared, &handle);
                if shared.ledger.is_reserve_used(handle.id()) {
                    destroy::write_record_later(shared, &handle);
                }
            }
            RecoveryAction::Destroy(cause) => {
                recovered.destroyed += 1;
                let (shared, task) = (Arc::clone(shared), task_name(handle.id()));
                let fatal = shared.fatal.clone();
                fatal.spawn(task, async move { destroy::bring_down(&shared, &handle, cause).await });
            }
            RecoveryAction::Continue(process) => {
                recovered.running += 1;
                resume(shared, handle, process).await;
            }
        }
    }
    Ok(recovered)
}

/// Finds every container and decides what happens to it. Changes nothing but the table.
fn scan(shared: &Shared, entries: Vec<Entry>) -> Result<Found, RecoverError> {
    let mut found = Vec::new();
    for Entry { id, record } in entries {
        // Nested in one that is left alone.
        if shared.foreign.containing(&id).is_some() {
            continue;
        }
        let (record, action) = match record.and_then(|record| decode(&id, record)) {
            Ok(record) => {
                let action = decide(shared, &record);
                (record, action)
            }
            // The container may be healthy; another version of the agent can tell.
            Err(error) if !error.is_damage() => {
                let reason = error_chain::describe(&error);
                let directory = shared.ledger.directory(&id);
                tracing::error!(container = %id, directory = %directory.display(), "left alone: {reason}");
                shared.foreign.add(id, reason);
                continue;
            }
            Err(error) => {
                let reason = error_chain::describe(&error);
                tracing::error!(container = %id, "destroyed without a record: {reason}");
                let cause = Cause::because(Reason::Unrecoverable, reason);
                (unknown(shared, id), RecoveryAction::Destroy(cause))
            }
        };
        insert(shared, &mut found, record, action);
    }
    for id in shared.launcher.recover()? {
        if shared.table.get(&id).is_none() && shared.foreign.containing(&id).is_none() {
            tracing::warn!(container = %id, "processes or cgroups without a record; destroyed");
            let cause = Cause::because(Reason::Unrecoverable, "it has processes or cgroups and no record");
            let record = unknown(shared, id);
            insert(shared, &mut found, record, RecoveryAction::Destroy(cause));
        }
    }
    find_sandboxes(shared, &mut found)?;
    sweep_scratch(shared)?;
    let mut records: Vec<_> = found.iter().map(|(handle, _)| handle.record()).collect();
    records.retain(|record| record.phase.is_live());
    for record in &records {
        if let Err(error) = shared.ledger.reserve(&record.id) {
            let error = error_chain::describe(&error);
            tracing::error!(container = %record.id, "its end may not be recorded: {error}");
        }
    }
    // Statuses that are left alone are forgotten by an agent that can read the records which refer to them.
    if shared.foreign.is_empty() {
        let in_use: Vec<_> = records.iter().filter_map(|record| record.part.keeper.as_ref()).collect();
        shared.launcher.keepers().retain(&in_use);
    }
    Ok(found)
}

fn decode(id: &ContainerId, record: Record) -> Result<Record<NativeRecord>, RecordError> {
    record
        .try_map_part(serde_json::from_value)
        .map_err(|source| RecordError::Content { id: id.clone(), source })
}

/// Sandboxes without a record: after a reboot, the runtime directory may be gone but not the work directory. Their
/// logs are kept, as those of containers that have ended, until they are removed.
fn find_sandboxes(shared: &Shared, found: &mut Found) -> Result<(), RecoverError> {
    for id in ids_in(&shared.sandboxes())? {
        if shared.table.get(&id).is_some() || shared.foreign.containing(&id).is_some() {
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
        insert(shared, found, record, RecoveryAction::Keep);
    }
    Ok(())
}

/// The containers that have a directory in a directory, which may be missing. Everything else is ignored.
fn ids_in(directory: &Path) -> Result<Vec<ContainerId>, RecoverError> {
    let directory_error = |source| RecoverError::Directory { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(directory_error)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(directory_error)?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| ContainerId::parse(name).ok());
        match id.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            // Created by the file system.
            Some(id) if id.as_str() == "lost+found" => {}
            Some(id) => ids.push(id),
            None => tracing::warn!("ignored `{}`: it is not of a container", entry.path().display()),
        }
    }
    Ok(ids)
}

fn insert(shared: &Shared, found: &mut Found, mut record: Record<NativeRecord>, action: RecoveryAction) {
    // Plugins must not recover it as running.
    if matches!(action, RecoveryAction::Destroy(_)) {
        record.phase = Phase::Destroying;
    }
    let live = record.phase.is_live();
    for participant in record.part.participants.iter_mut().filter(|participant| !participant.excluded) {
        // A plugin that refused or was missing may serve it again; if it refuses again, its verdict says so.
        participant.unavailable = None;
        if shared.chain.plugin(&participant.plugin).is_none() && live {
            let reason = "it is not in the chain any more; the container continues without it, and cannot be \
                          cleaned up until it is back or its end is forced";
            tracing::warn!(container = %record.id, plugin = participant.plugin, "{reason}");
            participant.unavailable = Some(reason.to_owned());
        }
    }
    if let Some(handle) = shared.table.insert(record) {
        handle.set_process(match &action {
            RecoveryAction::Continue(process) => Some(Arc::clone(process)),
            // Some launchers find the other processes through it alone.
            RecoveryAction::Destroy(_) => {
                first_process(shared, &handle.record()).and_then(Result::ok).map(Arc::new)
            }
            RecoveryAction::Keep => None,
        });
        found.push((handle, action));
    }
}

fn decide(shared: &Shared, record: &Record<NativeRecord>) -> RecoveryAction {
    let destroy = |reason, message: &str| RecoveryAction::Destroy(Cause::because(reason, message));
    match record.phase {
        Phase::Ended => RecoveryAction::Keep,
        _ if record.boot_id != shared.boot_id => destroy(Reason::Rebooted, "the machine was rebooted"),
        Phase::Destroying => RecoveryAction::Destroy(record.cause.clone().unwrap_or_default()),
        Phase::Running if record.request.class == ContainerClass::Debug => {
            destroy(Reason::Unrecoverable, "a debug container ends when the agent restarts")
        }
        Phase::Running => match first_process(shared, record) {
            Some(Ok(process)) if !process.has_ended().unwrap_or(true) => {
                RecoveryAction::Continue(Arc::new(process))
            }
            Some(Ok(_) | Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. })) => {
                RecoveryAction::Destroy(Cause::exited())
            }
            Some(Err(error)) => destroy(Reason::Unrecoverable, &error_chain::describe(&error)),
            None => destroy(Reason::Unrecoverable, "its record contains no process"),
        },
        _ => destroy(Reason::LaunchFailed, "the agent died while it was being launched"),
    }
}

/// The recorded first process. `None` if it was that of another boot, whose pids mean nothing now.
fn first_process(shared: &Shared, record: &Record<NativeRecord>) -> Option<Result<Process, ProcessError>> {
    let process = record.process.filter(|_| record.boot_id == shared.boot_id)?;
    Some(Process::open(process.pid, process.start_time))
}

/// A record for a container of which only the id is known.
fn unknown(shared: &Shared, id: ContainerId) -> Record<NativeRecord> {
    let container = cofferdam_plugin_model::Container::new(id.clone());
    let part = NativeRecord {
        scratch: shared.scratch(&id),
        cgroups: shared.cgroups_of(&id),
        // Any of them may have been asked to prepare it.
        participants: shared.chain.participants(&container),
        ..NativeRecord::default()
    };
    let sandbox = shared.sandbox(&id);
    let request = Request::new(id, Command::default());
    let mut record = Record::new(NAME, request, shared.boot_id.clone(), part);
    record.created_unix_ms = 0;
    record.sandbox = sandbox;
    record
}

/// Supervises a container that is running.
async fn resume(shared: &Arc<Shared>, handle: Arc<Handle>, process: Arc<Process>) {
    roll_back_update(shared, &handle).await;
    let SequenceOutcome { result: watches, failed, .. } = watch(shared, &handle).await;
    for error in failed {
        // A healthy container does not end because a plugin fails.
        tracing::error!(container = %handle.id(), "a limit is not watched: {error}");
    }
    let running = Running { process, watches };
    let task = task_name(handle.id());
    shared.fatal.spawn(task, supervise(Arc::clone(shared), handle, running));
}

/// Calls `watch` of the plugins, tolerating failures.
async fn watch(shared: &Arc<Shared>, handle: &Arc<Handle>) -> SequenceOutcome<Vec<Watch>> {
    let _op_lock = handle.op_lock().await;
    let context = handle.context();
    let calls = Arc::new(CallSequence::for_running(context.participants.clone()));
    let (shared2, calls2) = (Arc::clone(shared), Arc::clone(&calls));
    let outcome = shared
        .chain
        .run_sequences(
            move |job| shared2.chain.watch(job, &context, &calls2),
            |timeout| shared.chain.skip_current(&calls, timeout),
        )
        .await;
    if let Err(error) = outcome {
        let error = error_chain::describe(&error);
        tracing::error!(container = %handle.id(), "limits are not watched: {error}");
    }
    calls.take()
}

/// Rolls back an update during which the agent died: no client was told that it succeeded.
async fn roll_back_update(shared: &Shared, handle: &Arc<Handle>) {
    let record = handle.record();
    let Some(incomplete) = record.updating.clone() else { return };
    let _op_lock = handle.op_lock().await;
    tracing::warn!(container = %handle.id(), "incomplete update rolled back");
    let resources = record.resources.clone();
    let error = match shared.chain.update(&handle.context(), incomplete, resources.clone()).await {
        Ok(states) => {
            let written =
                shared.update_persisted(handle, |record| record.finish_update(resources, states)).await;
            written.err().map(|error| error_chain::describe(&error))
        }
        Err(error) => Some(error_chain::describe(&error)),
    };
    if let Some(error) = error {
        // The next restart retries.
        tracing::error!(container = %handle.id(), "its limits may differ from its record: {error}");
    }
}

/// Removes scratch directories of containers that are unknown or have ended. They may be large, and new containers may get
/// the ids: so they are renamed, and removed in the background.
fn sweep_scratch(shared: &Shared) -> Result<(), RecoverError> {
    let scratch = shared.work_dir.join("scratch");
    let removed = scratch.join("removed");
    let mut number = 0_u64;
    for id in ids_in(&scratch.join("containers"))? {
        let is_live = shared.table.get(&id).is_some_and(|handle| handle.phase().is_live());
        if is_live || shared.foreign.containing(&id).is_some() {
            continue;
        }
        let directory = shared.scratch(&id);
        if move_into(&directory, &removed, &mut number).is_err()
            && let Err(error) = destroy::remove_directory(&directory)
        {
            tracing::warn!(container = %id, "cannot remove a leftover scratch directory: {error}");
        }
    }
    if removed.exists() {
        shared.pool.spawn(move || {
            if let Err(error) = destroy::remove_directory(&removed) {
                tracing::warn!("cannot remove leftover scratch directories: {error}");
            }
        });
    }
    Ok(())
}

/// Moves a directory into another one, which is created if it is missing, under a number as its name.
fn move_into(directory: &Path, removed: &Path, number: &mut u64) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(removed)?;
    loop {
        *number += 1;
        match fs::rename(directory, removed.join(number.to_string())) {
            // Left by an earlier agent.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            other => return other,
        }
    }
}
