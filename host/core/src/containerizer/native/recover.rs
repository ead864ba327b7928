//! Recovery of the containers of an earlier agent.
//!
//! A container continues only if it was recorded as running in this boot and its first process is the same one.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cofferdam_linux::process::{Process, ProcessError};
use tokio::task::JoinSet;

use super::record::{Handle, NativeRecord};
use super::supervise::PluginWatch;
use super::{Native, Shared};
use crate::chain::{CallSequence, ContainerContext, SequenceOutcome, Watch};
use crate::containerizer::RecoverError;
use crate::containerizer::lifecycle::{
    Extent, Recover, RecoveryAction, remove_directory, roll_back_interrupted, supervise, task_name,
};
use crate::containerizer::sandboxes::ids_in;
use crate::descriptor_limit::Shares;
use crate::error_chain;
use crate::model::{Cause, ContainerClass, ContainerId, Phase, Reason, Record};
use crate::parallel;

/// Most containers whose plugins are asked in one job which descriptors to watch. Until it has ended, these are in the
/// process's table, so there are fewer where that is small.
const PER_JOB: usize = 32;

impl Recover for Native {
    fn unknown(shared: &Shared, id: &ContainerId) -> NativeRecord {
        NativeRecord {
            scratch: shared.scratch(id),
            cgroups: shared.cgroups_of(id),
            // Any of them may have been asked to prepare it.
            participants: shared.chain.participants(&cofferdam_plugin_model::Container::new(id.clone())),
            ..NativeRecord::default()
        }
    }

    fn decide(
        shared: &Shared,
        record: &Record<NativeRecord>,
    ) -> Result<(Option<Process>, RecoveryAction), RecoverError> {
        decide(shared, record)
    }

    /// The pidfd is stored, as there may be more containers than descriptors.
    fn keep_process(shared: &Shared, handle: &Handle, process: Process) {
        if let Err(error) = handle.store_process(&process, &shared.backend.descriptors) {
            tracing::warn!(container = %handle.id(), "its pidfd stays in the table of the agent: {error}");
            handle.set_process(Some(Arc::new(process)));
        }
    }

    fn traces(shared: &Shared) -> Result<Vec<ContainerId>, RecoverError> {
        Ok(shared.backend.launcher.recover()?)
    }

    fn sweep(shared: &Shared, live: &[Arc<Record<NativeRecord>>]) -> Result<(), RecoverError> {
        sweep_scratch(shared)?;
        let is_known = |id: &ContainerId| {
            let is_live = shared.table.get(id).is_some_and(|handle| handle.phase().is_live());
            is_live || shared.foreign.containing(id).is_some()
        };
        shared.backend.provisioner.release_unknown(is_known);
        // Statuses that are left alone are forgotten by an agent that can read the records which refer to them.
        if shared.foreign.is_empty() {
            let in_use: Vec<_> = live.iter().filter_map(|record| record.part.keeper.as_ref()).collect();
            shared.backend.launcher.keepers().retain(&in_use);
        }
        Ok(())
    }

    async fn resume(shared: &Arc<Shared>, running: Vec<Arc<Handle>>) {
        shared.backend.provisioner.sweep();
        for handle in &running {
            roll_back_interrupted(shared, handle).await;
        }
        let per_job = Shares::current().recent.clamp(1, PER_JOB);
        let mut waiting = running.chunks(per_job).map(<[_]>::to_vec);
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
}

/// What happens to a container, and its first process if there is one: some launchers find the other processes through it
/// alone.
fn decide(
    shared: &Shared,
    record: &Record<NativeRecord>,
) -> Result<(Option<Process>, RecoveryAction), RecoverError> {
    let destroy = RecoveryAction::destroy;
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
            && let Err(error) = remove_directory(&directory, Extent::All)
        {
            tracing::warn!(container = %id, "cannot remove a leftover scratch directory: {error}");
        }
    }
    if removed.exists() {
        shared.pool.removals().spawn(move || {
            if let Err(error) = remove_directory(&removed, Extent::All) {
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
