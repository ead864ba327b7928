//! Teardown of a container: the same for a failed launch, a kill, an exit and a restart.
//!
//! ```text
//! processes ─▶ exit status ─▶ output ─▶ logger ─▶ a failed launch: the engine's container, sandbox, record
//!                                                 otherwise: record the end
//! ```
//!
//! Every step can be repeated. When one fails, the teardown is retried from its beginning with backoff, and the container
//! stays visible with the reason. The container of the engine is kept for a while after its end: see `removal.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::process::Process;
use cofferdam_linux::tree;
use tokio::time::timeout;

use super::record::{DockerRecord, Handle};
use super::{BACKOFF, STALL_WARNING, Shared, engine_name, removal, task_name};
use crate::containerizer::plugin_part::MissedCleanup;
use crate::engine::{EngineError, State};
use crate::error_chain;
use crate::model::{Cause, Phase, ProcessId, Reason, Record, Termination, now_unix_ms};
use crate::plugin::CallError;
use crate::readiness::exited;
use crate::switchboard::{wait_until_closed, wait_until_logged};

/// A teardown that takes longer is not reported as prompt any more.
const PROMPT: Duration = Duration::from_secs(1);

/// How long the engine may take to kill a container, or to tell how it ended, before the agent does without.
const ENGINE_GRACE: Duration = Duration::from_secs(2);

/// How long the kernel may take to tell how a process ended.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the engine may take to pass on what a container has written last, and then the logger to receive it.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to the record and the sandbox after a teardown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retention {
    /// They are kept until the container is removed.
    Keep,
    /// They are removed: the container was never running.
    Remove,
}

/// Why a teardown is not complete.
enum TeardownError {
    /// The engine does not do what is needed.
    Engine(EngineError),
    /// The logger failed in `cleanup`.
    Cleanup(Vec<CallError>),
    /// A step of the agent failed.
    Step(String),
}

impl TeardownError {
    fn step(action: &str, error: &dyn std::error::Error) -> Self {
        Self::Step(format!("cannot {action}: {}", error_chain::describe(error)))
    }

    fn messages(&self) -> Vec<String> {
        match self {
            Self::Engine(error) => vec![error_chain::describe(error)],
            Self::Cleanup(errors) => errors.iter().map(ToString::to_string).collect(),
            Self::Step(message) => vec![message.clone()],
        }
    }
}

/// How the processes of a container ended.
#[derive(Clone, Copy, Default)]
struct End {
    status: Option<i32>,
    oom_killed: bool,
    /// The engine has not told: then it does not pass output on either.
    without_engine: bool,
    /// It was created, but not started.
    was_not_started: bool,
}

/// Destroys a container, records how it ended, and wakes everyone who waits for it.
pub(super) async fn bring_down(shared: &Arc<Shared>, handle: &Arc<Handle>, cause: Cause) {
    let termination = tear_down(shared, handle, cause, Retention::Keep, || {}).await;
    clean_up_later(shared, handle);
    tracing::info!(
        container = %handle.id(),
        status = termination.ended().map(|ended| ended.to_string()),
        reason = termination.reason.as_ref().map(Reason::mesos_name),
        "container ended"
    );
    handle.announce_end(termination);
    shared.sweep.notify_one();
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
        // It stays, as what the logger needs to clean up.
        handle.announce_end(termination);
        return clean_up_later(shared, handle);
    }
    shared.chain.removed(&handle.context()).await;
    shared.table.remove(handle.id());
    handle.announce_end(termination);
    // The engine may have it still, if its end was forced.
    shared.sweep.notify_one();
}

/// Retries the teardown until it succeeds.
async fn tear_down(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    cause: Cause,
    retention: Retention,
    mut on_delay: impl FnMut() + Send,
) -> Termination {
    // Later stop requests do not change the cause.
    handle.request_stop(cause.clone());
    handle.update_in_memory(|record| {
        record.phase = Phase::Destroying;
        record.cause = Some(cause.clone());
    });
    if cause.reason.is_some() && retention == Retention::Keep {
        // All that a restarted agent would not know is who requested it. A full disk must not delay the end.
        drop(shared.update_persisted(handle, |_| {}).await);
    }
    let mut backoff = BACKOFF.0;
    let mut end = None;
    loop {
        let (was_forced, was_repeated) = (handle.is_forced(), handle.is_stop_repeated());
        let attempt = try_tear_down(shared, handle, retention, &mut end);
        tokio::pin!(attempt);
        let outcome = tokio::select! {
            outcome = &mut attempt => outcome,
            () = tokio::time::sleep(PROMPT) => {
                on_delay();
                attempt.await
            }
        };
        let error = match outcome {
            Ok(termination) => {
                handle.show_missed();
                return termination;
            }
            Err(error) => error,
        };
        let messages = error.messages();
        for message in &messages {
            tracing::warn!(container = %handle.id(), "cleanup failed, will be retried: {message}");
        }
        handle.set_cleanup_errors(messages);
        if backoff >= PROMPT || matches!(&error, TeardownError::Engine(error) if error.is_outage()) {
            on_delay();
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = handle.forced(), if !was_forced => {}
            () = handle.stop_repeated(), if !was_repeated => {}
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Attempts the teardown once. `end` is how the container ended, as soon as that is known: the engine may not tell it twice.
async fn try_tear_down(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    retention: Retention,
    end: &mut Option<End>,
) -> Result<Termination, TeardownError> {
    // Also waits for a request to the engine whose effect is only known from its answer.
    let _op_lock = handle.op_lock().await;
    let end = match *end {
        Some(known) => known,
        None => *end.insert(find_end(shared, handle).await?),
    };
    finish_output(shared, handle, &end).await;
    let missed = clean_up(shared, handle, end.status).await?;
    if retention == Retention::Remove {
        remove_from_engine(shared, handle).await?;
    }
    let record = handle.record();
    let termination = termination(&record, &end, retention);
    let retention = if missed.is_empty() { retention } else { Retention::Keep };
    let (shared2, handle2, termination2) = (Arc::clone(shared), Arc::clone(handle), termination.clone());
    let work = move |_: &_| record_end(&shared2, &handle2, retention, termination2, missed);
    match shared.pool.run(STALL_WARNING, work).await {
        Ok(outcome) => outcome?,
        Err(abandoned) => return Err(TeardownError::step("record how it ended", &abandoned)),
    }
    handle.set_process(None);
    Ok(termination)
}

/// Removes the container from its engine; the sweep does it if the end is forced.
async fn remove_from_engine(shared: &Arc<Shared>, handle: &Arc<Handle>) -> Result<(), TeardownError> {
    match removal::remove(shared, handle).await {
        Err(error) if handle.is_forced() => {
            let error = error_chain::describe(&error);
            tracing::error!(container = %handle.id(), "its end is forced; it may be left in the engine: {error}");
            Ok(())
        }
        removed => removed.map_err(TeardownError::Engine),
    }
}

/// Ends all processes of a container, without its engine if that is forced.
async fn find_end(shared: &Shared, handle: &Handle) -> Result<End, TeardownError> {
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
        shared.engine.wait(&name).await?;
        shared.engine.container(&name).await
    };
    let grace = if by_engine { ENGINE_GRACE } else { Duration::ZERO };
    let answer = timeout(grace, ask).await.unwrap_or_else(|_| Err(shared.engine.timed_out(grace)));
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
        let asked = shared.engine.kill(&engine_name(record), libc::SIGKILL).await;
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
    let ended = timeout(shared.destroy_timeout, exited(process)).await;
    ended.map(|()| false).map_err(|_| {
        let seconds = shared.destroy_timeout.as_secs();
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
        let found = shared.engine.container(&name).await.map_err(TeardownError::Engine)?;
        Ok::<_, TeardownError>(found.filter(|found| shared.owns(found, record)))
    };
    let Some(found) = find().await? else { return Ok(End::default()) };
    if found.state.running {
        shared.engine.kill(&found.id, libc::SIGKILL).await.map_err(TeardownError::Engine)?;
        let waiting = shared.engine.wait(&found.id);
        match timeout(shared.destroy_timeout, waiting).await {
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
    let Some(ProcessId { pid, start_time }) = handle.record().part.switchboard else { return };
    let directory = shared.ledger.directory(handle.id());
    let id = handle.id().clone();
    let End { without_engine, was_not_started, .. } = *end;
    let end_switchboard = move || {
        if let Ok(process) = Process::open(pid, start_time) {
            drop(process.kill());
        }
    };
    let work = move |_: &_| {
        if was_not_started {
            // It has written nothing, and the engine keeps the connection all the same.
            return end_switchboard();
        }
        if !without_engine && matches!(wait_until_closed(&directory, OUTPUT_TIMEOUT), Ok(true)) {
            return;
        }
        let problem = match wait_until_logged(&directory, LOG_TIMEOUT) {
            Ok(true) => return,
            Ok(false) => "its logger does not read".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(container = %id, "the end of its output is not logged: {problem}");
        end_switchboard();
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
) -> Result<Vec<MissedCleanup>, TeardownError> {
    let mut context = handle.context();
    if context.participants.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(termination) = &mut context.details.termination {
        termination.status = status;
    }
    let chain = shared.chain.clone();
    let work = move |job: &_| chain.cleanup(job, &context, &BTreeMap::new());
    let failed = match shared.pool.run(shared.chain.teardown_timeout(), work).await {
        Ok(failed) => failed,
        Err(abandoned) => vec![shared.chain.attribute(abandoned)],
    };
    if failed.is_empty() {
        return Ok(Vec::new());
    }
    if !handle.is_forced() {
        return Err(TeardownError::Cleanup(failed));
    }
    let missed = |error: &CallError| {
        tracing::error!(container = %handle.id(), "its end is forced without a cleanup: {error}");
        MissedCleanup { plugin: error.plugin().to_owned(), reason: error.to_string() }
    };
    Ok(failed.iter().map(missed).collect())
}

fn termination(record: &Record<DockerRecord>, end: &End, retention: Retention) -> Termination {
    let cause = record.cause.clone().unwrap_or_default();
    let launch_failed = retention == Retention::Remove || cause.reason == Some(Reason::LaunchFailed);
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

/// Records the end: the last step.
fn record_end(
    shared: &Shared,
    handle: &Handle,
    retention: Retention,
    termination: Termination,
    missed: Vec<MissedCleanup>,
) -> Result<(), TeardownError> {
    if retention == Retention::Keep {
        let ended = handle.persist_end(&shared.ledger, |record| {
            record.phase = Phase::Ended;
            record.process = None;
            record.part.missed = missed;
            record.termination = Some(termination);
        });
        return ended.map(drop).map_err(|error| TeardownError::step("record how it ended", &error));
    }
    remove_directory(&handle.record().sandbox)
        .map_err(|error| TeardownError::step("remove its sandbox", &error))?;
    shared.ledger.remove(handle.id()).map_err(|error| TeardownError::step("remove its record", &error))?;
    handle.update_in_memory(|record| {
        record.phase = Phase::Ended;
        record.termination = Some(termination);
    });
    Ok(())
}

/// Calls `cleanup` of a logger that missed it, until it succeeds.
pub(super) fn clean_up_later(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if handle.record().part.missed.is_empty() {
        return;
    }
    handle.show_missed();
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let mut pause = BACKOFF.0;
        loop {
            let is_known = shared2.table.get(handle.id()).is_some_and(|known| Arc::ptr_eq(&known, &handle));
            let missed = handle.record().part.missed.clone();
            if !is_known || missed.iter().all(|missed| shared2.chain.plugin(&missed.plugin).is_none()) {
                return;
            }
            let _op_lock = handle.op_lock().await;
            let status = handle.record().termination.as_ref().and_then(|termination| termination.status);
            if clean_up(&shared2, &handle, status).await.is_ok_and(|missed| missed.is_empty())
                && shared2.update_persisted(&handle, |record| record.part.missed.clear()).await.is_ok()
            {
                return handle.show_missed();
            }
            drop(_op_lock);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    });
}

/// Removes a directory of a container, which nobody is trusted to have left as it was created. A missing one is no error.
pub(super) fn remove_directory(path: &Path) -> Result<(), tree::RemoveError> {
    if path.as_os_str().is_empty() { Ok(()) } else { tree::remove(path) }
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
