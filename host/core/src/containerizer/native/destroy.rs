//! Teardown of a container of processes.
//!
//! ```text
//! children ─▶ record the cause ─▶ processes ─▶ exit status ─▶ chain, in reverse ─▶ cgroup ─▶ scratch, image ─▶ record the end
//! ```
//!
//! All steps of an attempt run in one job, but for the last ones if the container has left large directories.
//!
//! The kernel removes cgroups one at a time, so a few teardowns run at a time. When more containers end, their processes
//! are killed first, and end while their teardowns wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::process::Process;
use cofferdam_plugin_model::{Limitation, Namespace};

use super::record::Handle;
use super::{Native, Shared};
use crate::blocking::Job;
use crate::containerizer::lifecycle::{
    Attempt, Extent, PROMPT, Retention, STALL_WARNING, Teardown, TeardownError, cleaned_up, end_switchboard,
    in_job, record_end, remove_directory, remove_large, report_lost_output,
};
use crate::containerizer::record_part::MissedCleanup;
use crate::error_chain;
use crate::keeper::ProcessEnd;
use crate::launcher::{DestroyError, Destroyed};
use crate::model::{Cause, Phase, Reason, Termination, now_unix_ms};
use crate::plugin::CallError;
use crate::switchboard::wait_until_logged;

/// How long a killed process may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a logger may take to receive what a container has written last.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What an attempt of a teardown knows of those before.
#[derive(Default)]
pub(crate) struct Progress {
    /// Whether the cause was determined. That is attempted once only: a plugin that does not return from a call in this must
    /// not prevent the cleanup of others.
    has_begun: bool,
}

impl Teardown for Native {
    type Progress = Progress;

    const ANSWERS_DURING_ATTEMPT: bool = false;

    async fn begin_teardown(shared: &Arc<Shared>, handle: &Arc<Handle>, _: Retention, cause: &Cause) {
        let children_end = end_children(shared, handle, cause);
        tokio::pin!(children_end);
        tokio::select! {
            () = &mut children_end => {}
            () = tokio::time::sleep(PROMPT) => {
                // A plugin that does not clean up after a nested container must not keep its parent's processes alive.
                kill_processes(shared, handle).await;
                children_end.await;
            }
        }
    }

    async fn try_teardown(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        Attempt { retention, progress, lost }: Attempt<'_, Progress>,
    ) -> Result<Termination, TeardownError> {
        let mut permit = shared.backend.teardowns.try_acquire().ok();
        let mut is_first = !std::mem::replace(&mut progress.has_begun, true);
        if permit.is_none() {
            if std::mem::take(&mut is_first) {
                let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
                let work = move |job: &Job| {
                    begin(job, &shared2, &handle2)?;
                    kill_pid_namespace(&handle2);
                    Ok(())
                };
                in_job(shared, work).await?;
            }
            // Others may wait for a plugin, or for a process that does not end: they delay this one no longer.
            let waiting = shared.backend.teardowns.acquire();
            permit = tokio::time::timeout(PROMPT, waiting).await.ok().and_then(Result::ok);
        }
        let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
        let work = move |job: &Job| {
            if is_first {
                begin(job, &shared2, &handle2)?;
            }
            let gone = end_processes(job, &shared2, &handle2, &lost)?;
            let outcome = complete(&shared2, &handle2, retention, &gone, Extent::Few);
            Ok((gone, outcome))
        };
        let (gone, outcome) = in_job(shared, work).await?;
        drop(permit);
        let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
        let again = move || complete(&shared2, &handle2, retention, &gone, Extent::All);
        remove_large(shared, outcome, again).await
    }
}

/// What is known of a container of which no processes and cgroups are left.
struct Gone {
    cause: Cause,
    /// How its first process ended, if it had one.
    end: Option<ProcessEnd>,
    missed: Vec<MissedCleanup>,
}

/// The status with which a process ended, if it is known.
fn status(end: Option<ProcessEnd>) -> Option<i32> {
    match end {
        Some(ProcessEnd::Ended(status)) => Some(status),
        _ => None,
    }
}

/// Kills the processes of a container, as the teardown does later in any case.
async fn kill_processes(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    let kill = move |_: &Job| {
        let process = open_process(&handle2)?;
        kill(&shared2, &handle2, process.as_deref())
            .map_err(|error| TeardownError::step("kill its processes", &error))
    };
    if let Ok(Err(error)) = shared.pool.run(STALL_WARNING, kill).await {
        for message in error.messages() {
            tracing::warn!(container = %handle.id(), "will be retried: {message}");
        }
    }
}

/// Records the cause.
fn begin(job: &Job, shared: &Shared, handle: &Handle) -> Result<(), TeardownError> {
    record_cause(job, shared, handle);
    // Nothing more may happen on a thread that a plugin changed.
    if job.is_abandoned() {
        return Err(TeardownError::Cleanup(Vec::new()));
    }
    Ok(())
}

/// Kills process 1 of a container's own pid namespace, if it has one: all others end with it. What fails here is reported by
/// the teardown.
fn kill_pid_namespace(handle: &Handle) {
    if has_pid_namespace(handle)
        && let Ok(Some(process)) = open_process(handle)
    {
        drop(process.kill());
    }
}

fn has_pid_namespace(handle: &Handle) -> bool {
    handle.record().part.plan.clone_namespaces.contains_key(&Namespace::Pid)
}

/// Runs the steps that end in there being no processes and cgroups. Blocks.
fn end_processes(
    job: &Job,
    shared: &Shared,
    handle: &Handle,
    lost: &BTreeMap<String, CallError>,
) -> Result<Gone, TeardownError> {
    let cause = handle.record().cause.clone().unwrap_or_default();
    let process = open_process(handle)?;
    let failed = |error| TeardownError::step("kill its processes", &error);
    kill(shared, handle, process.as_deref()).map_err(failed)?;
    let end = process_end(shared, handle, process.as_deref()).map_err(failed)?;
    drop(process);
    finish_log(shared, handle);
    let mut context = handle.context();
    if let Some(termination) = &mut context.details.termination {
        termination.status = status(end);
    }
    let failed = shared.chain.cleanup(job, &context, lost);
    let missed = cleaned_up(job, handle, failed)?;
    let cgroups = shared.backend.launcher.cleanup(handle.id());
    cgroups.map_err(|error| TeardownError::step("remove its cgroups", &error))?;
    let cause = explained_by_parent(shared, handle, cause, status(end));
    Ok(Gone { cause, end, missed })
}

/// Runs the steps after that, of which those that remove directories may take long. Blocks.
fn complete(
    shared: &Shared,
    handle: &Handle,
    retention: Retention,
    Gone { cause, end, missed }: &Gone,
    extent: Extent,
) -> Result<Termination, TeardownError> {
    remove_directory(&handle.record().part.scratch, extent)
        .map_err(|error| TeardownError::Directory("remove its scratch directory", error))?;
    let request = &handle.record().request;
    let volumes = request.volume_images();
    if request.image.is_some() || volumes > 0 {
        shared.backend.provisioner.release(handle.id(), volumes);
    }
    let launch_failed = retention == Retention::Remove || cause.reason == Some(Reason::LaunchFailed);
    let termination = Termination {
        // No client was told that the command of a failed launch ran.
        status: status(*end).filter(|_| !launch_failed),
        reason: cause.reason.clone(),
        message: cause.message.clone().or_else(|| {
            (*end == Some(ProcessEnd::Unknown))
                .then(|| "its exit status is unknown, as its keeper was killed or did not answer".to_owned())
        }),
        limited: cause.limited.clone(),
        at_unix_ms: now_unix_ms(),
    };
    let slot = handle.record().part.keeper.clone();
    record_end(shared, handle, retention, &termination, missed, extent)?;
    handle.set_process(None);
    if let Some(slot) = slot {
        shared.backend.launcher.keepers().forget(&slot);
    }
    Ok(termination)
}

/// The first process of a container, if it has one.
fn open_process(handle: &Handle) -> Result<Option<Arc<Process>>, TeardownError> {
    handle.open_process().map_err(|error| TeardownError::step("open its first process", &error))
}

/// Kills all processes of a container.
pub(super) fn kill(shared: &Shared, handle: &Handle, process: Option<&Process>) -> Result<(), DestroyError> {
    let record = handle.record();
    let entered = record.part.plan.enter_namespaces.contains_key(&Namespace::Pid);
    shared.backend.launcher.destroy(Destroyed {
        id: handle.id(),
        first: process,
        is_setup: record.part.is_setup,
        shares_host_pids: !entered && !has_pid_namespace(handle),
    })
}

/// Determines why the container ends, unless it was requested, and records it.
///
/// An exit needs no record of its own: a restarted agent would find the process gone, and ask the same.
fn record_cause(job: &Job, shared: &Shared, handle: &Handle) {
    let requested = handle.record().cause.as_ref().is_some_and(|cause| cause.reason.is_some());
    if !requested {
        let limitation = shared.chain.find_limitation(job, &handle.context());
        match limitation.and_then(|limitation| own_limitation(shared, handle, limitation)) {
            Some(limitation) => {
                handle.update_in_memory(|record| record.cause = Some(Cause::limitation(limitation)));
            }
            None => return,
        }
    }
    // The teardown must not wait for a full disk: it may be what frees space. All that a restarted agent would not
    // know is who requested it.
    if let Err(error) = shared.ledger.write(&*handle.record()) {
        tracing::warn!(container = %handle.id(), "cannot record why it ends: {}", error_chain::describe(&error));
    }
}

/// Passes a limitation on to the container of the tree that it is about. Returns it if that is this one.
pub(super) fn own_limitation(shared: &Shared, handle: &Handle, limitation: Limitation) -> Option<Limitation> {
    let Some(other) = limitation.container.clone().filter(|id| id != handle.id()) else {
        return Some(limitation);
    };
    let found = shared.table.get(&other).filter(|_| other.root() == handle.id().root());
    match found {
        Some(other) => other.request_stop(Cause::limitation(limitation)),
        None => tracing::warn!(
            container = %handle.id(),
            "limitation of `{other}` ignored: there is no such container in the same tree"
        ),
    }
    None
}

/// The kernel kills a container that shares the pid namespace of its parent when that ends, before the parent's task can.
fn explained_by_parent(shared: &Shared, handle: &Handle, cause: Cause, status: Option<i32>) -> Cause {
    if cause.reason.is_some() || status != Some(libc::SIGKILL) {
        return cause;
    }
    let parent = handle.id().parent().and_then(|parent| shared.table.get(&parent));
    let has_ended = |parent: &Arc<Handle>| {
        let process = parent.open_process().ok().flatten();
        process.is_some_and(|process| process.has_ended().unwrap_or(false))
    };
    let is_ending = |parent: &Arc<Handle>| parent.phase() != Phase::Running || has_ended(parent);
    match parent.filter(is_ending) {
        Some(parent) => Cause::because(Reason::ParentEnded, format!("container `{}` ended", parent.id())),
        None => cause,
    }
}

/// How its first process ended, from the keeper, after the end of all others in its pid namespace, and of the process that
/// has set it up: it may end after a short command.
fn process_end(
    shared: &Shared,
    handle: &Handle,
    process: Option<&Process>,
) -> Result<Option<ProcessEnd>, DestroyError> {
    if let Some(process) = process {
        drop(process.wait(Some(EXIT_TIMEOUT)));
    }
    let record = handle.record();
    let Some(slot) = record.part.keeper.as_ref() else { return Ok(None) };
    let keepers = shared.backend.launcher.keepers();
    let (end, remaining) = keepers.collect_with_remaining(slot, process);
    if remaining.reaper.is_some() {
        shared.backend.launcher.end_pid_namespace(handle.id(), slot)?;
    }
    if remaining.setup.is_some() {
        let id = || handle.id().clone();
        let failed = |source| DestroyError::Process { id: id(), source };
        if let Some(pid) = keepers.end_setup(slot, EXIT_TIMEOUT).map_err(failed)? {
            return Err(DestroyError::Stuck { id: id(), pids: vec![pid] });
        }
    }
    if end == ProcessEnd::Unknown {
        tracing::error!(
            container = %handle.id(),
            "the exit status of its command is unknown: keeper `{}` was killed before it could record it, or does not answer",
            slot.keeper
        );
    }
    Ok(Some(end))
}

/// Waits until the logger has received everything that a container has written, whose processes have ended. A logger that
/// does not read must not prevent the end of the container: then the switchboard is killed.
fn finish_log(shared: &Shared, handle: &Handle) {
    let Some(switchboard) = handle.record().part.switchboard else { return };
    let directory = shared.ledger.directory(handle.id());
    let problem = match wait_until_logged(&directory, LOG_TIMEOUT) {
        Ok(true) => None,
        Ok(false) => Some("its logger does not read".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        tracing::warn!(container = %handle.id(), "the end of its output is not logged: {problem}");
        end_switchboard(switchboard);
    }
    report_lost_output(&shared.chain, handle.id(), &directory);
}

/// Destroys the containers nested directly in this one, which destroy those nested in them, and waits for them.
async fn end_children(shared: &Shared, handle: &Handle, cause: &Cause) {
    let children = shared.table.children(handle.id());
    for child in &children {
        let message = match &cause.message {
            Some(message) => format!("container `{}` ended: {message}", handle.id()),
            None => format!("container `{}` ended", handle.id()),
        };
        // A limitation of the parent is also the reason of its children.
        let reason = match &cause.reason {
            Some(limitation @ Reason::Limitation(_)) => limitation.clone(),
            _ => Reason::ParentEnded,
        };
        child.request_stop(Cause {
            reason: Some(reason),
            message: Some(message),
            limited: cause.limited.clone(),
        });
    }
    for child in children {
        if child.phase().is_live() {
            child.ended().await;
        }
    }
}
