//! Recovery of the containers of an earlier agent.
//!
//! ```text
//! ledger ─▶ records            launcher ─▶ traces
//!              │                              │ without a record: destroyed by id
//!              ▼                              ▼
//!   ended: kept   running: continues   anything else: destroyed
//! ```
//!
//! A record of another version, and what is no record, is left alone with everything of its container: see `../foreign.rs`.
//!
//! A container continues only if it was recorded as running in this boot and its first process is the same one.
//! Plugins recover before anything is done to any container; one that refuses or is missing harms none.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use cofferdam_linux::process::{Process, ProcessError};
use tokio::task::JoinSet;

use super::record::{Handle, NativeRecord};
use super::supervise::{PluginWatch, supervise};
use super::{NAME, STALL_WARNING, Shared, destroy, missed, task_name, update};
use crate::chain::{CallSequence, ContainerContext, SequenceOutcome, Watch};
use crate::containerizer::sandboxes::ids_in;
use crate::containerizer::{RecoverError, Recovered, Recovery};
use crate::error_chain;
use crate::ledger::Entry;
use crate::model::{
    Cause, Command, ContainerClass, ContainerId, Phase, Reason, Record, Request, Termination, now_unix_ms,
};
use crate::parallel;

/// Containers whose plugins are asked in one job which descriptors to watch. Until it has ended, these are in the
/// process's table.
const PER_JOB: usize = 32;

/// What happens to a container after a restart.
#[derive(Clone)]
enum RecoveryAction {
    Continue,
    Destroy(Cause),
    Keep,
}

type Found = Vec<(Arc<Handle>, RecoveryAction)>;

/// The containers that were found, and what happens to each.
pub(super) struct NativeRecovery {
    shared: Arc<Shared>,
    found: Found,
}

/// Finds every container, and decides what happens to it.
pub(super) async fn find(
    shared: &Arc<Shared>,
    entries: Vec<Entry>,
    recorded: Arc<BTreeSet<ContainerId>>,
) -> Result<NativeRecovery, RecoverError> {
    let shared = Arc::clone(shared);
    let scanning = Arc::clone(&shared);
    let found = shared.pool.run(STALL_WARNING, move |_| scan(&scanning, entries, &recorded)).await??;
    Ok(NativeRecovery { shared, found })
}

#[async_trait]
impl Recovery for NativeRecovery {
    async fn resume(self: Box<Self>) -> Recovered {
        resume_found(&self.shared, self.found).await
    }
}

async fn resume_found(shared: &Arc<Shared>, found: Found) -> Recovered {
    let mut recovered = Recovered::default();
    let mut running = Vec::new();
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
            RecoveryAction::Continue => {
                recovered.running += 1;
                running.push(handle);
            }
        }
    }
    resume_all(shared, &running).await;
    recovered
}

/// Finds every container and decides what happens to it. Changes nothing but the table.
fn scan(
    shared: &Shared,
    entries: Vec<Entry>,
    recorded: &BTreeSet<ContainerId>,
) -> Result<Found, RecoverError> {
    let mut found = Vec::new();
    let decode = |Entry { id, record }| {
        let record = record.and_then(|record| record.of(NAME));
        (id, record)
    };
    for (id, record) in parallel::map_owned(entries, decode) {
        // Nested in one that is left alone.
        if shared.foreign.containing(&id).is_some() {
            continue;
        }
        let (record, process, action) = match record {
            Ok(record) => {
                let (process, action) = decide(shared, &record)?;
                (record, process, action)
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
                (unknown(shared, id), None, RecoveryAction::Destroy(cause))
            }
        };
        insert(shared, &mut found, record, process, action);
    }
    for id in shared.launcher.recover()? {
        if shared.table.get(&id).is_none() && shared.foreign.containing(&id).is_none() {
            tracing::warn!(container = %id, "processes or cgroups without a record; destroyed");
            let cause = Cause::because(Reason::Unrecoverable, "it has processes or cgroups and no record");
            let record = unknown(shared, id);
            insert(shared, &mut found, record, None, RecoveryAction::Destroy(cause));
        }
    }
    find_sandboxes(shared, recorded, &mut found)?;
    sweep_scratch(shared)?;
    let is_known = |id: &ContainerId| {
        let is_live = shared.table.get(id).is_some_and(|handle| handle.phase().is_live());
        is_live || shared.foreign.containing(id).is_some()
    };
    shared.provisioner.release_unknown(is_known);
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

/// Sandboxes without a record: after a reboot, the runtime directory may be gone but not the work directory. Their
/// logs are kept, as those of containers that have ended, until they are removed.
fn find_sandboxes(
    shared: &Shared,
    recorded: &BTreeSet<ContainerId>,
    found: &mut Found,
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
        insert(shared, found, record, None, RecoveryAction::Keep);
    }
    Ok(())
}

/// Adds a container to the table. The pidfd of its first process is stored, as there may be more containers than
/// descriptors.
fn insert(
    shared: &Shared,
    found: &mut Found,
    mut record: Record<NativeRecord>,
    process: Option<Process>,
    action: RecoveryAction,
) {
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
        if let Some(process) = process
            && let Err(error) = handle.store_process(&process, &shared.descriptors)
        {
            tracing::warn!(container = %handle.id(), "its pidfd stays in the table of the agent: {error}");
            handle.set_process(Some(Arc::new(process)));
        }
        found.push((handle, action));
    }
}

/// What happens to a container, and its first process if there is one: some launchers find the other processes through it
/// alone.
fn decide(
    shared: &Shared,
    record: &Record<NativeRecord>,
) -> Result<(Option<Process>, RecoveryAction), RecoverError> {
    let destroy = |reason, message: &str| RecoveryAction::Destroy(Cause::because(reason, message));
    let process = match first_process(shared, record).filter(|_| record.phase != Phase::Ended).transpose() {
        // It may be healthy: another attempt can tell.
        Err(ProcessError::Open { pid, source }) if is_shortage(&source) => {
            let source = ProcessError::Open { pid, source };
            return Err(RecoverError::Process { id: record.id.clone(), source });
        }
        process => process,
    };
    let action = match record.phase {
        Phase::Ended => RecoveryAction::Keep,
        _ if record.boot_id != shared.boot_id => destroy(Reason::Rebooted, "the machine was rebooted"),
        Phase::Destroying => RecoveryAction::Destroy(record.cause.clone().unwrap_or_default()),
        Phase::Running if record.request.class == ContainerClass::Debug => {
            destroy(Reason::Unrecoverable, "a debug container ends when the agent restarts")
        }
        Phase::Running => match &process {
            Ok(Some(process)) if !process.has_ended().unwrap_or(true) => RecoveryAction::Continue,
            Ok(Some(_)) | Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. }) => {
                RecoveryAction::Destroy(Cause::exited())
            }
            Err(error) => destroy(Reason::Unrecoverable, &error_chain::describe(error)),
            Ok(None) => destroy(Reason::Unrecoverable, "its record contains no process"),
        },
        _ => destroy(Reason::LaunchFailed, "the agent died while it was being launched"),
    };
    Ok((process.ok().flatten(), action))
}

/// Whether something is missing that this process or the machine may have again.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
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

/// Supervises the containers that are running.
async fn resume_all(shared: &Arc<Shared>, running: &[Arc<Handle>]) {
    for handle in running {
        update::roll_back_interrupted(shared, handle).await;
    }
    let mut waiting = running.chunks(PER_JOB).map(<[_]>::to_vec);
    let mut resumed = JoinSet::new();
    loop {
        while resumed.len() < parallel::threads()
            && let Some(handles) = waiting.next()
        {
            let shared = Arc::clone(shared);
            resumed.spawn(async move { resume(&shared, handles).await });
        }
        match resumed.join_next().await {
            Some(Ok(())) => {}
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) | None => return,
        }
    }
}

/// Supervises some of the containers.
async fn resume(shared: &Arc<Shared>, handles: Vec<Arc<Handle>>) {
    for (handle, SequenceOutcome { result: watches, failed, .. }) in watch(shared, handles).await {
        for error in failed {
            // A healthy container does not end because a plugin fails.
            tracing::error!(container = %handle.id(), "a limit is not watched: {error}");
        }
        let watches = watches.into_iter().map(|watch| PluginWatch::stored(shared, &handle, watch)).collect();
        let task = task_name(handle.id());
        shared.fatal.spawn(task, supervise(Arc::clone(shared), handle, watches));
    }
}

/// Calls `watch` of the plugins, tolerating failures: of one container after the other, in one job.
async fn watch(
    shared: &Arc<Shared>,
    handles: Vec<Arc<Handle>>,
) -> Vec<(Arc<Handle>, SequenceOutcome<Vec<Watch>>)> {
    let mut locks = Vec::new();
    let mut calls = Vec::new();
    for handle in &handles {
        locks.push(handle.op_lock_owned().await);
        let context = handle.context();
        let sequence = CallSequence::for_running(context.participants.clone());
        calls.push((context, sequence));
    }
    let calls: Arc<[(ContainerContext, CallSequence<Vec<Watch>>)]> = calls.into();
    // The container whose plugins are called.
    let current = Arc::new(AtomicUsize::new(0));
    let (shared2, calls2, current2) = (Arc::clone(shared), Arc::clone(&calls), Arc::clone(&current));
    let outcome = shared
        .chain
        .run_sequences(
            move |job| {
                while let Some((context, sequence)) = calls2.get(current2.load(Ordering::Relaxed)) {
                    shared2.chain.watch(job, context, sequence)?;
                    current2.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            },
            |timeout| {
                let current = calls.get(current.load(Ordering::Relaxed));
                current.map_or(Err(timeout.clone().into()), |(_, sequence)| {
                    shared.chain.skip_current(sequence, timeout)
                })
            },
        )
        .await;
    if let Err(error) = outcome {
        let error = error_chain::describe(&error);
        let unwatched = calls.iter().skip(current.load(Ordering::Relaxed)).map(|(context, _)| &context.id);
        for container in unwatched {
            tracing::error!(%container, "limits are not watched: {error}");
        }
    }
    handles.into_iter().zip(calls.iter().map(|(_, sequence)| sequence.take())).collect()
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
