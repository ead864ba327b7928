//! Launches that are given up before their engine has answered.
//!
//! An engine that is stopped, or that waits for a volume driver, does what it was asked for at any time later, or never.
//! Whoever wants the container to be gone does not wait for that:
//!
//! - What the engine has started is found by its cgroup, and killed.
//! - What it starts later does not run, as the sandbox that has to be mounted is gone. What it has started until then is
//!   searched for once more.
//! - What it has created is removed when it answers. Until then the record is kept, and the id is taken.
//!
//! A launch whose agent has died has no client any more: the next agent gives it up without being asked to, and its record stays.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_linux::process::Process;
use tokio::time::sleep;

use super::phase::cancelled;
use super::record::Handle;
use super::{Docker, LaunchError, RemoveError, Shared, processes};
use crate::containerizer::lifecycle::{
    Backend, PROMPT, Retention, STALL_WARNING, TeardownError, remove_known, task_name,
};
use crate::error_chain;
use crate::model::Reason;

/// How long the engine may take to kill a container, or to tell how it ended, before the agent does without.
pub(super) const ENGINE_GRACE: Duration = Duration::from_secs(2);

/// How often processes of a container are searched for that were forked during the search before.
const SEARCHES: usize = 16;

/// Waits for an answer of the engine, unless somebody wants the container to be gone and it takes too long.
pub(super) async fn answered<T>(
    handle: &Handle,
    answer: impl Future<Output = Result<T, LaunchError>>,
) -> Result<T, LaunchError> {
    tokio::select! {
        biased;
        answer = answer => answer,
        () = overdue(handle, Retention::Remove) => {
            mark(handle, Retention::Remove);
            Err(cancelled(handle, handle.stop_request().and_then(|cause| cause.message)))
        }
    }
}

/// Waits for an engine that is asked to end or to remove a container. `None` if somebody wants the container to be gone, and the
/// engine takes too long or is gone itself.
pub(super) async fn unless_overdue<T>(
    handle: &Handle,
    retention: Retention,
    asked: impl Future<Output = Result<T, TeardownError>>,
) -> Option<Result<T, TeardownError>> {
    let overdue = overdue(handle, retention);
    tokio::pin!(overdue);
    let answer = tokio::select! {
        biased;
        answer = asked => answer,
        () = &mut overdue => return None,
    };
    match answer {
        // It may be back in a moment.
        Err(TeardownError::Engine(error)) if error.is_outage() && is_unwanted(handle, retention) => {
            overdue.await;
            None
        }
        answer => Some(answer),
    }
}

/// Waits until somebody wants the container to be gone, and its engine has had time for an answer.
pub(super) async fn overdue(handle: &Handle, retention: Retention) {
    handle.stop_requested().await;
    if !is_unwanted(handle, retention) {
        handle.stop_repeated().await;
    }
    sleep(ENGINE_GRACE).await;
}

/// Whether somebody wants the container of a launch to be gone, or its agent has died, and with it the connection of its client. The
/// client of a launch that fails has its error before the container is gone.
fn is_unwanted(handle: &Handle, retention: Retention) -> bool {
    let has_failed = handle.stop_request().is_none_or(|cause| cause.reason == Some(Reason::LaunchFailed));
    retention == Retention::Keep || !has_failed || handle.is_stop_repeated()
}

/// Notes that the engine may have the container still.
pub(super) fn mark(handle: &Handle, retention: Retention) {
    tracing::warn!(
        container = %handle.id(),
        "its launch is given up without the engine, which does not answer; it is removed from the engine later"
    );
    handle.update_in_memory(|record| {
        record.part.abandoned = true;
        record.part.kept = retention == Retention::Keep;
    });
}

/// Ends the processes that the engine has started for a container.
pub(super) async fn end_without_engine(shared: &Shared, handle: &Handle) -> Result<(), TeardownError> {
    let Some(engine_id) = handle.record().part.engine_id.clone() else { return Ok(()) };
    let timeout = shared.backend.destroy_timeout;
    let killed = shared.pool.run(STALL_WARNING, move |_| kill_all(&engine_id, timeout)).await;
    match killed {
        Ok(killed) => killed.map_err(|error| TeardownError::step("kill its processes", &error)),
        Err(abandoned) => Err(TeardownError::step("kill its processes", &abandoned)),
    }
}

/// Kills all processes in the cgroups of a container. It is an error if one may be left. Blocks.
fn kill_all(engine_id: &str, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    for _ in 0..SEARCHES {
        let found = processes::of(engine_id)?;
        if found.is_empty() {
            return Ok(());
        }
        // The others as well, if one of them cannot be killed.
        let killed: Vec<_> = found.iter().map(Process::kill).collect();
        killed.into_iter().collect::<Result<(), _>>().map_err(io::Error::other)?;
        for process in &found {
            if !process.wait(Some(deadline.saturating_duration_since(Instant::now())))? {
                let (pid, seconds) = (process.pid(), timeout.as_secs());
                let message = format!("process {pid} has not ended {seconds}s after SIGKILL");
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }
    match processes::of(engine_id)?.len() {
        0 => Ok(()),
        left => Err(io::Error::other(format!("{left} are left after {SEARCHES} searches"))),
    }
}

/// Removes a container whose launch was given up from the engine as soon as that answers, and then its record, unless that is
/// kept.
pub(super) fn remove_later(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if !handle.record().part.abandoned {
        return;
    }
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let (mut pause, longest) = Docker::BACKOFF;
        loop {
            match remove_now(&shared2, &handle).await {
                Ok(()) => break,
                Err(error) => {
                    let error = error_chain::describe(&error);
                    tracing::debug!(container = %handle.id(), "cannot be removed from the engine yet: {error}");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        expect_late(&shared2, &handle).await;
    });
}

async fn remove_now(shared: &Arc<Shared>, handle: &Arc<Handle>) -> Result<(), RemoveError> {
    if !handle.record().part.kept {
        return remove_known(shared, handle).await.map(drop);
    }
    let _op_lock = handle.op_lock().await;
    if !shared.is_known(handle) {
        return Ok(());
    }
    Docker::before_removal(shared, handle).await?;
    shared.update_persisted(handle, |record| record.part.abandoned = false).await?;
    Ok(())
}

/// Has the sweep remove a container that the engine creates later, for as long as that may take.
async fn expect_late(shared: &Shared, handle: &Handle) {
    if handle.record().part.engine_id.is_some() {
        return;
    }
    let mut left = shared.backend.config.timeouts.launch;
    while !left.is_zero() {
        sleep(PROMPT).await;
        shared.backend.sweep.notify_one();
        left = left.saturating_sub(PROMPT);
    }
}
