//! Teardown of a container of an engine.
//!
//! ```text
//! processes ─▶ exit status ─▶ output ─▶ logger ─▶ a failed launch: the engine's container ─▶ record the end
//! ```
//!
//! The container of the engine is kept for a while after its end: see `removal.rs`.
//!
//! A launch that somebody wants to be gone does not wait for an engine that does not answer: see `abandon.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::process::Process;
use tokio::time::timeout;

use super::abandon::ENGINE_GRACE;
use super::record::{DockerRecord, Handle};
use super::{Docker, Shared, abandon, engine_name, removal};
use crate::blocking::Job;
use crate::containerizer::lifecycle::{
    Attempt, Extent, Retention, STALL_WARNING, Teardown, TeardownError, cleaned_up, end_switchboard, in_job,
    record_end, remove_directory, remove_large, report_lost_output,
};
use crate::containerizer::record_part::MissedCleanup;
use crate::engine::State;
use crate::error_chain;
use crate::model::{Cause, Reason, Record, Termination, now_unix_ms};
use crate::plugin::CallError;
use crate::readiness::exited;
use crate::switchboard::{wait_until_closed, wait_until_logged};

/// How long the kernel may take to tell how a process ended.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the engine may take to pass on what a container has written last, and then the logger to receive it.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// How the processes of a container ended.
#[derive(Clone, Copy, Default)]
pub(super) struct End {
    status: Option<i32>,
    oom_killed: bool,
    /// The engine has not told: then it does not pass output on either.
    without_engine: bool,
    /// It was created, but not started, or its launch was given up.
    was_not_started: bool,
}

/// What an attempt of a teardown knows of those before: how the container ended, as soon as that is known. The engine may not
/// tell it twice.
#[derive(Default)]
pub(crate) struct Progress {
    end: Option<End>,
}

impl Teardown for Docker {
    type Progress = Progress;

    /// An engine may take long.
    const ANSWERS_DURING_ATTEMPT: bool = true;

    async fn begin_teardown(shared: &Arc<Shared>, handle: &Arc<Handle>, retention: Retention, cause: &Cause) {
        if cause.reason.is_some() && retention == Retention::Keep {
            // All that a restarted agent would not know is who requested it. A full disk must not delay the end.
            drop(shared.update_persisted(handle, |_| {}).await);
        }
    }

    async fn try_teardown(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        Attempt { retention, progress, lost }: Attempt<'_, Progress>,
    ) -> Result<Termination, TeardownError> {
        let is_given_up = || handle.record().part.abandoned;
        let end = match progress.end {
            // The engine may have started more processes since the attempt before.
            Some(known) if !is_given_up() => known,
            _ => *progress.end.insert(find_end(shared, handle, retention).await?),
        };
        finish_output(shared, handle, &end).await;
        let missed = clean_up(shared, handle, end.status, lost).await?;
        if retention == Retention::Remove && !is_given_up() {
            remove_from_engine(shared, handle).await?;
        }
        if is_given_up() {
            end_what_has_started(shared, handle, missed.is_empty()).await?;
        }
        let termination = termination(&handle.record(), &end, retention);
        let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
        let record = move |extent| -> Result<Termination, TeardownError> {
            record_end(&shared2, &handle2, retention, &termination, &missed, extent)?;
            handle2.set_process(None);
            Ok(termination.clone())
        };
        let all = record.clone();
        let outcome = match shared.pool.run(STALL_WARNING, move |_| record(Extent::Few)).await {
            Ok(outcome) => outcome,
            Err(abandoned) => Err(TeardownError::step("record how it ended", &abandoned)),
        };
        remove_large(shared, outcome, move || all(Extent::All)).await
    }

    fn ended(shared: &Shared) {
        // The engine may have it still, if its end was forced.
        shared.backend.sweep.notify_one();
    }

    fn finish_later(shared: &Arc<Shared>, handle: &Arc<Handle>) {
        abandon::remove_later(shared, handle);
    }
}

/// Removes the container from its engine; the sweep does it if the end is forced.
async fn remove_from_engine(shared: &Arc<Shared>, handle: &Arc<Handle>) -> Result<(), TeardownError> {
    let remove = async { removal::remove(shared, handle).await.map_err(TeardownError::Engine) };
    match abandon::unless_overdue(handle, Retention::Remove, remove).await {
        None => {
            abandon::mark(handle, Retention::Remove);
            Ok(())
        }
        Some(Err(TeardownError::Engine(error))) if handle.is_forced() => {
            let error = error_chain::describe(&error);
            tracing::error!(container = %handle.id(), "its end is forced; it may be left in the engine: {error}");
            Ok(())
        }
        Some(removed) => removed,
    }
}

/// Ends all processes of a container, without its engine if that is forced, or if it was not launched and somebody wants it to
/// be gone or its agent has died.
async fn find_end(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    retention: Retention,
) -> Result<End, TeardownError> {
    let record = handle.record();
    // The agent of one whose record is kept has died.
    let is_launch = retention == Retention::Remove || has_failed_to_launch(&record);
    if !is_launch || !record.part.requested || handle.process().is_some() {
        return find_end_by_engine(shared, handle).await;
    }
    if !record.part.abandoned {
        let by_engine = find_end_by_engine(shared, handle);
        if let Some(end) = abandon::unless_overdue(handle, retention, by_engine).await {
            return end;
        }
        abandon::mark(handle, retention);
    }
    let Err(failed) = abandon::end_without_engine(shared, handle).await else {
        return Ok(End { was_not_started: true, ..End::default() });
    };
    // The engine may be back, and may do what the agent cannot.
    let end = tokio::select! {
        biased;
        end = end_processes(shared, handle) => end,
        () = abandon::overdue(handle, retention) => {
            Err(TeardownError::Engine(shared.backend.engine.timed_out(ENGINE_GRACE)))
        }
    };
    match end {
        Ok(end) => {
            handle.update_in_memory(|record| record.part.abandoned = false);
            Ok(end)
        }
        Err(TeardownError::Engine(_)) if handle.is_forced() => {
            let failed = failed.messages().join("; ");
            tracing::error!(container = %handle.id(), "its end is forced; it may have processes: {failed}");
            Ok(End { without_engine: true, ..End::default() })
        }
        Err(_) => Err(failed),
    }
}

/// Ends what an engine that does not answer has started since its processes were ended: what had mounted the sandbox before
/// that was removed is in its cgroups by now, and what had not does not run.
async fn end_what_has_started(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    removes_sandbox: bool,
) -> Result<(), TeardownError> {
    if removes_sandbox {
        let sandbox = handle.record().sandbox.clone();
        let remove = move |extent| {
            remove_directory(&sandbox, extent)
                .map_err(|error| TeardownError::Directory("remove its sandbox", error))
        };
        let all = remove.clone();
        let removed = match shared.pool.run(STALL_WARNING, move |_| remove(Extent::Few)).await {
            Ok(removed) => removed,
            Err(abandoned) => Err(TeardownError::step("remove its sandbox", &abandoned)),
        };
        remove_large(shared, removed, move || all(Extent::All)).await?;
    }
    match abandon::end_without_engine(shared, handle).await {
        Err(error) if handle.is_forced() => {
            let error = error.messages().join("; ");
            tracing::error!(container = %handle.id(), "its end is forced; it may have processes: {error}");
            Ok(())
        }
        ended => ended,
    }
}

async fn find_end_by_engine(shared: &Shared, handle: &Handle) -> Result<End, TeardownError> {
    match end_processes(shared, handle).await {
        Err(TeardownError::Engine(error)) if handle.is_forced() => {
            let error = error_chain::describe(&error);
            tracing::error!(container = %handle.id(), "its end is forced without the engine: {error}");
            Ok(End::default())
        }
        end => end,
    }
}

/// Ends all processes of a container, and finds out how.
async fn end_processes(shared: &Shared, handle: &Handle) -> Result<End, TeardownError> {
    let record = handle.record();
    if !record.part.requested {
        return Ok(End::default());
    }
    let Some(process) = handle.process() else { return end_by_engine(shared, &record).await };
    let by_engine = process.has_ended().unwrap_or(false) || kill(shared, &record, &process).await?;
    // The kernel tells it more precisely, and without the engine.
    let waited = Arc::clone(&process);
    let status = shared.pool.run(STALL_WARNING, move |_| waited.wait_status(STATUS_TIMEOUT)).await;
    let status = status.ok().and_then(Result::ok).flatten();
    // The engine may see the end later.
    let name = engine_name(&record);
    let ask = async {
        shared.backend.engine.wait(&name).await?;
        shared.backend.engine.container(&name).await
    };
    let grace = if by_engine { ENGINE_GRACE } else { Duration::ZERO };
    let answer = timeout(grace, ask).await.unwrap_or_else(|_| Err(shared.backend.engine.timed_out(grace)));
    // The status of one that ended by itself is worth waiting for, unless somebody wants it to be gone.
    let ended_by_itself = record.cause.as_ref().is_none_or(|cause| cause.reason.is_none());
    match answer {
        Ok(Some(found)) => Ok(End {
            status: status.or_else(|| Some(raw_status(found.state.exit_code))),
            oom_killed: found.state.oom_killed,
            ..End::default()
        }),
        Err(error)
            if status.is_none() && ended_by_itself && error.is_outage() && !handle.is_stop_repeated() =>
        {
            Err(TeardownError::Engine(error))
        }
        answer => Ok(End { status, without_engine: answer.is_err(), ..End::default() }),
    }
}

/// Kills a container: by its engine, and without if that does not do it. Returns whether it did.
async fn kill(
    shared: &Shared,
    record: &Record<DockerRecord>,
    process: &Process,
) -> Result<bool, TeardownError> {
    let by_engine = async {
        let asked = shared.backend.engine.kill(&engine_name(record), libc::SIGKILL).await;
        if let Err(error) = &asked {
            tracing::warn!(container = %record.id, "{}", error_chain::describe(error));
        }
        exited(process).await;
    };
    if timeout(ENGINE_GRACE, by_engine).await.is_ok() {
        return Ok(true);
    }
    tracing::warn!(container = %record.id, "the engine has not killed it; the agent does");
    process.kill().map_err(|error| TeardownError::step("kill its first process", &error))?;
    let ended = timeout(shared.backend.destroy_timeout, exited(process)).await;
    ended.map(|()| false).map_err(|_| {
        let seconds = shared.backend.destroy_timeout.as_secs();
        TeardownError::Step(format!(
            "its first process, {}, has not ended {seconds}s after SIGKILL",
            process.pid()
        ))
    })
}

/// As above, for a container whose first process is not known: the engine has to tell.
async fn end_by_engine(shared: &Shared, record: &Record<DockerRecord>) -> Result<End, TeardownError> {
    let name = engine_name(record);
    let find = || async {
        let found = shared.backend.engine.container(&name).await.map_err(TeardownError::Engine)?;
        Ok::<_, TeardownError>(found.filter(|found| shared.owns(found, record)))
    };
    let Some(found) = find().await? else { return Ok(End::default()) };
    if found.state.running {
        shared.backend.engine.kill(&found.id, libc::SIGKILL).await.map_err(TeardownError::Engine)?;
        let waiting = shared.backend.engine.wait(&found.id);
        match timeout(shared.backend.destroy_timeout, waiting).await {
            Ok(waited) => waited.map_err(TeardownError::Engine)?,
            Err(_) => return Err(TeardownError::Step("it has not ended after SIGKILL".to_owned())),
        }
    }
    let Some(found) = find().await? else { return Ok(End::default()) };
    let State { status, exit_code, oom_killed, .. } = found.state;
    // One that was only created has no exit status.
    let was_not_started = status == "created";
    let status = (!was_not_started).then(|| raw_status(exit_code));
    Ok(End { status, oom_killed, was_not_started, ..End::default() })
}

/// The wait status of what the engine reports as a shell does: 128 and a number for a signal.
fn raw_status(exit_code: i32) -> i32 {
    match exit_code {
        129..=192 => exit_code - 128,
        code => (code & 0xff) << 8,
    }
}

/// Waits until the logger has received everything that the container has written. Neither an engine nor a logger that does
/// not answer must prevent its end.
async fn finish_output(shared: &Arc<Shared>, handle: &Arc<Handle>, end: &End) {
    let Some(switchboard) = handle.record().part.switchboard else { return };
    let directory = shared.ledger.directory(handle.id());
    let (id, chain) = (handle.id().clone(), shared.chain.clone());
    let End { without_engine, was_not_started, .. } = *end;
    let work = move |_: &_| {
        if was_not_started {
            // The engine keeps the connection all the same. If it was given up, it may have run and written something.
            end_switchboard(switchboard);
        } else if without_engine || !matches!(wait_until_closed(&directory, OUTPUT_TIMEOUT), Ok(true)) {
            let problem = match wait_until_logged(&directory, LOG_TIMEOUT) {
                Ok(true) => None,
                Ok(false) => Some("its logger does not read".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                tracing::warn!(container = %id, "the end of its output is not logged: {problem}");
                end_switchboard(switchboard);
            }
        }
        report_lost_output(&chain, &id, &directory);
    };
    drop(shared.pool.run(STALL_WARNING, work).await);
    // It is not waited for again if the teardown is retried.
    handle.update_in_memory(|record| record.part.switchboard = None);
}

/// Calls `cleanup` of the logger. Returns what it missed, if the end is forced.
async fn clean_up(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    status: Option<i32>,
    lost: BTreeMap<String, CallError>,
) -> Result<Vec<MissedCleanup>, TeardownError> {
    let mut context = handle.context();
    if context.participants.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(termination) = &mut context.details.termination {
        termination.status = status;
    }
    let (chain, handle) = (shared.chain.clone(), Arc::clone(handle));
    let work = move |job: &Job| {
        let failed = chain.cleanup(job, &context, &lost);
        cleaned_up(job, &handle, failed)
    };
    in_job(shared, work).await
}

/// Whether a container ends because its launch has failed, or the agent died during that.
fn has_failed_to_launch(record: &Record<DockerRecord>) -> bool {
    record.cause.as_ref().is_some_and(|cause| cause.reason == Some(Reason::LaunchFailed))
}

fn termination(record: &Record<DockerRecord>, end: &End, retention: Retention) -> Termination {
    let cause = record.cause.clone().unwrap_or_default();
    let launch_failed = retention == Retention::Remove || has_failed_to_launch(record);
    let was_killed = end.status.is_none_or(|status| status & 0x7f == libc::SIGKILL);
    let (reason, message) = match cause.reason {
        None if end.oom_killed && was_killed => (
            Some(Reason::Limitation("REASON_CONTAINER_LIMITATION_MEMORY".to_owned())),
            Some("the container exceeded its memory limit".to_owned()),
        ),
        reason => (reason, cause.message),
    };
    Termination {
        // No client was told that the command of a failed launch ran.
        status: end.status.filter(|_| !launch_failed),
        message: message.or_else(|| {
            (end.status.is_none() && !launch_failed)
                .then(|| "its exit status is unknown, as the engine has lost it".to_owned())
        }),
        reason,
        limited: cause.limited,
        at_unix_ms: now_unix_ms(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ended;

    #[test]
    fn an_exit_code_of_a_shell_becomes_a_wait_status() {
        for (code, expected) in [
            (0, Ended::Exited(0)),
            (7, Ended::Exited(7)),
            (128, Ended::Exited(128)),
            (137, Ended::Signaled(9)),
            (255, Ended::Exited(255)),
        ] {
            assert_eq!(Ended::from_raw(raw_status(code)), expected);
        }
    }
}
