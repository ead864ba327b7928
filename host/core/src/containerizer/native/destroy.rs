//! Teardown of a container: the same for a failed launch, a kill, a limitation, an exit and a restart.
//!
//! ```text
//! children ─▶ record the cause ─▶ processes ─▶ exit status ─▶ chain, in reverse ─▶ cgroup ─▶ scratch, image ─▶ record the end
//! ```
//!
//! It does not depend on how far the container got: every step can be repeated, and does nothing where there is
//! nothing to do. All steps run in one job. When one fails, the teardown is retried from its beginning with
//! backoff, and the container stays visible with the reason: it is gone only when everything is.
//!
//! The kernel removes cgroups one at a time, so a few teardowns run at a time. When more containers end, their processes
//! are killed first, and end while their teardowns wait.
//!
//! An operator can force the end of a container whose plugins do not clean up. The missed cleanups are recorded, and
//! performed when the plugins can be called: see `missed.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::process::Process;
use cofferdam_linux::tree;
use cofferdam_plugin_model::{Limitation, Namespace};

use super::phase::{Event, after};
use super::record::Handle;
use super::{BACKOFF, STALL_WARNING, Shared, attach, missed};
use crate::blocking::Job;
use crate::containerizer::plugin_part::MissedCleanup;
use crate::error_chain;
use crate::keeper::ProcessEnd;
use crate::launcher::{DestroyError, Destroyed};
use crate::model::{Cause, Phase, Reason, Termination, now_unix_ms};
use crate::plugin::CallError;

/// A teardown whose pause has grown to this is not reported as prompt any more.
const PROMPT: Duration = Duration::from_secs(1);

/// How long a killed process may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What happens to the record and the sandbox after a teardown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retention {
    /// They are kept until the container is removed.
    Keep,
    /// They are removed: the container was never running.
    Remove,
}

/// Destroys a container, records how it ended, and wakes everyone who waits for it.
pub(super) async fn bring_down(shared: &Arc<Shared>, handle: &Arc<Handle>, cause: Cause) {
    let termination = tear_down(shared, handle, cause, Retention::Keep, || {}).await;
    if shared.ledger.is_reserve_used(handle.id()) {
        write_record_later(shared, handle);
    }
    missed::perform_later(shared, handle);
    tracing::info!(
        container = %handle.id(),
        status = termination.ended().map(|ended| ended.to_string()),
        reason = termination.reason.as_ref().map(Reason::mesos_name),
        "container ended"
    );
    handle.announce_end(termination);
}

/// Undoes a failed launch, including its record. Calls `on_delay` when that cannot be completed promptly.
pub(super) async fn roll_back_launch(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    cause: Cause,
    on_delay: impl FnMut() + Send,
) {
    let termination = tear_down(shared, handle, cause, Retention::Remove, on_delay).await;
    if !handle.record().part.missed.is_empty() {
        // It stays, as what it needs to be cleaned up.
        handle.announce_end(termination);
        return missed::perform_later(shared, handle);
    }
    shared.chain.removed(&handle.context()).await;
    shared.table.remove(handle.id());
    handle.announce_end(termination);
}

/// Retries the teardown until it succeeds.
async fn tear_down(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    cause: Cause,
    retention: Retention,
    mut on_delay: impl FnMut() + Send,
) -> Termination {
    // Later stop requests have no effect.
    handle.request_stop(cause.clone());
    handle.update_in_memory(|record| {
        record.phase = after(record.phase, Event::Ending).unwrap_or(Phase::Destroying);
        record.cause = Some(cause.clone());
    });
    let children_end = end_children(shared, handle, &cause);
    tokio::pin!(children_end);
    tokio::select! {
        () = &mut children_end => {}
        () = tokio::time::sleep(PROMPT) => {
            // A plugin that does not clean up after a nested container must not keep its parent's processes alive.
            kill_processes(shared, handle).await;
            children_end.await;
        }
    }
    let mut backoff = BACKOFF.0;
    let mut lost = BTreeMap::new();
    let mut first = true;
    loop {
        let was_forced = handle.is_forced();
        let attempt = try_teardown(shared, handle, retention, std::mem::take(&mut first), lost.clone()).await;
        let error = match attempt {
            Ok(termination) => {
                handle.show_missed();
                return termination;
            }
            Err(error) => error,
        };
        let late = error.late_plugins();
        let messages = error.messages();
        handle.set_cleanup_errors(messages.clone());
        if !late.is_empty() || backoff >= PROMPT {
            on_delay();
        }
        // The other plugins are called before this one is called again.
        if let TeardownError::JobLost(error) = &error
            && lost.insert(error.plugin().to_owned(), error.clone()).is_none()
        {
            continue;
        }
        for message in &messages {
            tracing::warn!(container = %handle.id(), "cleanup failed, will be retried: {message}");
        }
        lost.clear();
        // A late call wakes the teardown when it returns; nothing is gained by an attempt before that.
        let others_failed = error.others_failed();
        tokio::select! {
            () = shared.chain.any_callable(&late, handle.id()), if !late.is_empty() => {}
            () = tokio::time::sleep(backoff), if others_failed => {
                backoff = (backoff * 2).min(BACKOFF.1);
            }
            () = handle.forced(), if !was_forced => {}
        }
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

/// Why a teardown is not complete.
enum TeardownError {
    /// A step of the agent failed.
    Step(String),
    /// Plugins failed in `cleanup`, or could not be called.
    Cleanup(Vec<CallError>),
    /// The job was lost to a plugin that timed out or changed its thread.
    JobLost(CallError),
}

impl TeardownError {
    fn step(action: &str, error: &dyn std::error::Error) -> Self {
        Self::Step(format!("cannot {action}: {}", error_chain::describe(error)))
    }

    fn calls(&self) -> &[CallError] {
        match self {
            Self::Step(_) => &[],
            Self::Cleanup(errors) => errors,
            Self::JobLost(error) => std::slice::from_ref(error),
        }
    }

    fn messages(&self) -> Vec<String> {
        match self {
            Self::Step(message) => vec![message.clone()],
            _ => self.calls().iter().map(ToString::to_string).collect(),
        }
    }

    /// Plugins that cannot be called before a late call has returned.
    fn late_plugins(&self) -> BTreeSet<String> {
        let late = self.calls().iter().filter(|error| error.is_late());
        late.map(|error| error.plugin().to_owned()).collect()
    }

    /// Whether anything else failed, which may succeed in a while.
    fn others_failed(&self) -> bool {
        matches!(self, Self::Step(_)) || !self.calls().iter().all(CallError::is_late)
    }
}

/// Attempts the teardown once, without calling the plugins to which it has just lost a job.
async fn try_teardown(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    retention: Retention,
    mut first: bool,
    lost: BTreeMap<String, CallError>,
) -> Result<Termination, TeardownError> {
    let _op_lock = handle.op_lock().await;
    let mut permit = shared.teardowns.try_acquire().ok();
    if permit.is_none() {
        if std::mem::take(&mut first) {
            let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
            let work = move |job: &Job| {
                begin(job, &shared2, &handle2)?;
                kill_pid_namespace(&handle2);
                Ok(())
            };
            run_job(shared, work).await?;
        }
        // Others may wait for a plugin, or for a process that does not end: they delay this one no longer.
        permit = tokio::time::timeout(PROMPT, shared.teardowns.acquire()).await.ok().and_then(Result::ok);
    }
    let _permit = permit;
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    let work = move |job: &Job| {
        if first {
            begin(job, &shared2, &handle2)?;
        }
        run_steps(job, &shared2, &handle2, retention, &lost)
    };
    run_job(shared, work).await
}

/// Records the cause. Called once only: a plugin that does not return from a call in this must not prevent the cleanup of
/// others.
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

/// Runs a job of a teardown.
async fn run_job<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Job) -> Result<T, TeardownError> + Send + 'static,
) -> Result<T, TeardownError> {
    match shared.pool.run(shared.chain.teardown_timeout(), work).await {
        Ok(outcome) => outcome,
        Err(abandoned) => Err(match shared.chain.attribute(abandoned) {
            error @ (CallError::TimedOut { .. } | CallError::ThreadChanged { .. }) => {
                TeardownError::JobLost(error)
            }
            other => TeardownError::step("clean up", &other),
        }),
    }
}

/// Runs every step. Blocks.
fn run_steps(
    job: &Job,
    shared: &Shared,
    handle: &Handle,
    retention: Retention,
    lost: &BTreeMap<String, CallError>,
) -> Result<Termination, TeardownError> {
    let id = handle.id();
    let cause = handle.record().cause.clone().unwrap_or_default();
    let process = open_process(handle)?;
    let failed = |error| TeardownError::step("kill its processes", &error);
    kill(shared, handle, process.as_deref()).map_err(failed)?;
    let end = process_end(shared, handle, process.as_deref()).map_err(failed)?;
    drop(process);
    attach::finish_log(shared, handle);
    let status = match end {
        Some(ProcessEnd::Ended(status)) => Some(status),
        _ => None,
    };
    let mut context = handle.context();
    if let Some(termination) = &mut context.details.termination {
        termination.status = status;
    }
    let failed = shared.chain.cleanup(job, &context, lost);
    // If this job was abandoned during its last cleanup call, another attempt is already running.
    if job.is_abandoned() || !failed.is_empty() && !handle.is_forced() {
        return Err(TeardownError::Cleanup(failed));
    }
    let missed: Vec<_> = failed.iter().map(missed::of_error).collect();
    for MissedCleanup { plugin, reason } in &missed {
        tracing::error!(container = %id, plugin, "its end is forced without the plugin's cleanup: {reason}");
    }
    // Its record is what the cleanup needs.
    let retention = if missed.is_empty() { retention } else { Retention::Keep };
    shared.launcher.cleanup(id).map_err(|error| TeardownError::step("remove its cgroups", &error))?;
    remove_directory(&handle.record().part.scratch)
        .map_err(|error| TeardownError::step("remove its scratch directory", &error))?;
    if handle.record().request.image.is_some() {
        shared.provisioner.release(id);
    }
    let cause = explained_by_parent(shared, handle, cause, status);
    let launch_failed = retention == Retention::Remove || cause.reason == Some(Reason::LaunchFailed);
    let termination = Termination {
        // No client was told that the command of a failed launch ran.
        status: status.filter(|_| !launch_failed),
        reason: cause.reason,
        message: cause.message.or_else(|| {
            (end == Some(ProcessEnd::Unknown))
                .then(|| "its exit status is unknown, as its keeper was killed or did not answer".to_owned())
        }),
        limited: cause.limited,
        at_unix_ms: now_unix_ms(),
    };
    let slot = handle.record().part.keeper.clone();
    record_end(shared, handle, retention, &termination, missed)?;
    handle.set_process(None);
    if let Some(slot) = slot {
        shared.launcher.keepers().forget(&slot);
    }
    Ok(termination)
}

/// The first process of a container, if it has one.
fn open_process(handle: &Handle) -> Result<Option<Arc<Process>>, TeardownError> {
    handle.open_process().map_err(|error| TeardownError::step("open its first process", &error))
}

/// Kills all processes of a container.
pub(super) fn kill(shared: &Shared, handle: &Handle, process: Option<&Process>) -> Result<(), DestroyError> {
    let entered = handle.record().part.plan.enter_namespaces.contains_key(&Namespace::Pid);
    let shares_host_pids = !entered && !has_pid_namespace(handle);
    shared.launcher.destroy(Destroyed { id: handle.id(), first: process, shares_host_pids })
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

/// How its first process ended, from the keeper, after the end of all others in its pid namespace.
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
    let (end, reaper) = shared.launcher.keepers().collect_with_reaper(slot, process);
    if reaper.is_some() {
        shared.launcher.end_pid_namespace(handle.id(), slot)?;
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

/// Records the end: the last step.
fn record_end(
    shared: &Shared,
    handle: &Handle,
    retention: Retention,
    termination: &Termination,
    missed: Vec<MissedCleanup>,
) -> Result<(), TeardownError> {
    match retention {
        Retention::Keep => handle
            .persist_end(&shared.ledger, |record| {
                record.phase = Phase::Ended;
                record.process = None;
                record.part.keeper = None;
                record.part.missed = missed;
                record.termination = Some(termination.clone());
            })
            .map(drop)
            .map_err(|error| TeardownError::step("record how it ended", &error)),
        Retention::Remove => {
            remove_directory(&handle.record().sandbox)
                .map_err(|error| TeardownError::step("remove its sandbox", &error))?;
            shared
                .ledger
                .remove(handle.id())
                .map_err(|error| TeardownError::step("remove its record", &error))?;
            handle.update_in_memory(|record| {
                record.phase = Phase::Ended;
                record.termination = Some(termination.clone());
            });
            Ok(())
        }
    }
}

/// Writes the record of a container that has ended as soon as there is space. Until then its end is in reserved space.
pub(super) fn write_record_later(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    tracing::error!(container = %handle.id(), "its record cannot be written; how it ended is in reserved space");
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    let task = format!("the task that writes the record of container `{}`", handle.id());
    shared.fatal.spawn(task, async move {
        let mut pause = PROMPT;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
            let _op_lock = handle.op_lock().await;
            // It may have been removed, and the id may be that of a new container.
            let is_known = shared2.table.get(handle.id()).is_some_and(|known| Arc::ptr_eq(&known, &handle));
            if !is_known || shared2.update_persisted(&handle, |_| {}).await.is_ok() {
                return;
            }
        }
    });
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

/// Removes a directory of a container, which nobody is trusted to have left as it was created. A missing one, and one
/// that was never determined, is no error.
pub(super) fn remove_directory(path: &Path) -> Result<(), tree::RemoveError> {
    if path.as_os_str().is_empty() { Ok(()) } else { tree::remove(path) }
}
