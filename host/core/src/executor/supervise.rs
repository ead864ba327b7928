//! The task that supervises an executor, from the launch of its container to the last update of its tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::handle::{Handle, WriteError};
use super::state::{End, ExecutorPhase};
use super::update::{TaskState, Verdict};
use crate::containerizer::LaunchOutcome;
use crate::error_chain;
use crate::model::{Request, now_unix_ms};

/// Pause before something that failed is tried again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Pause before a container that is not known yet is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(100);

/// How long the executor of a single task may go on beyond its grace period when its task has ended: it waits 60 seconds at most
/// for the acknowledgement. Whatever then runs in its container is of no task.
const LINGER: Duration = Duration::from_secs(65);

/// What has to happen by when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// The executor has not subscribed in time.
    Subscription { again: bool },
    /// Its grace period is over.
    Kill,
}

/// Launches the container of an executor, and supervises it.
pub(super) fn launched(shared: &Arc<Shared>, handle: &Arc<Handle>, request: Request) {
    spawn(shared, handle, Some(request));
}

/// Supervises an executor of an earlier agent.
pub(super) fn recovered(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    spawn(shared, handle, None);
}

fn spawn(shared: &Arc<Shared>, handle: &Arc<Handle>, request: Option<Request>) {
    let task = format!("the task that supervises the executor in container `{}`", handle.container());
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task, async move { supervise(&shared2, &handle, request).await });
}

async fn supervise(shared: &Arc<Shared>, handle: &Arc<Handle>, request: Option<Request>) {
    let end = wait_for_end(shared, handle, request).await;
    // Updates that came before are recorded before.
    let decorating = shared.decorating(handle).await;
    let entries = handle.state().terminate(&end, now_unix_ms());
    let decorations = shared.decorations(handle, &entries).await;
    until_written(handle, || async {
        let _operation = handle.operation().await;
        let entries = handle.state().terminate(&end, now_unix_ms());
        handle.write(decorations.apply(entries)).await
    })
    .await;
    drop(decorating);
    // Whoever still waits to subscribe gets to know that it has ended.
    handle.set_launched();
    handle.disconnect();
    tracing::info!(container = %handle.container(), "executor ended");
    let completed = handle.state().is_completed();
    if completed {
        shared.remove_after_hooks(handle);
    }
}

async fn wait_for_end(shared: &Arc<Shared>, handle: &Arc<Handle>, request: Option<Request>) -> End {
    let is_recovered = request.is_none();
    let lifetime = lifetime(shared, handle, request);
    tokio::pin!(lifetime);
    let started = Instant::now();
    let (mut terminating, mut done) = (None, None);
    loop {
        let due = due(shared, handle, started, is_recovered, &mut terminating, &mut done);
        tokio::select! {
            end = &mut lifetime => return end,
            () = handle.changed() => {}
            due = at(due) => match due {
                Due::Subscription { again } => {
                    let verdict = not_subscribed(shared, again);
                    until_written(handle, || async {
                        let _operation = handle.operation().await;
                        // It may have subscribed at the last moment.
                        if handle.is_connected() { Ok(()) } else { shared.stop(handle, verdict.clone()).await }
                    }).await;
                }
                Due::Kill => {
                    match shared.containerizer.kill(handle.container(), libc::SIGKILL).await {
                        // It ends.
                        Ok(true) => return lifetime.await,
                        // Its launch has only begun, or it has ended just now.
                        Ok(false) => {}
                        Err(error) => {
                            let error = error_chain::describe(&error);
                            tracing::warn!(container = %handle.container(), "executor not killed: {error}");
                        }
                    }
                    terminating = Some(Instant::now() + KILL_AGAIN);
                    done = terminating;
                }
            },
        }
    }
}

/// The container of an executor, from its launch to its end.
async fn lifetime(shared: &Arc<Shared>, handle: &Arc<Handle>, request: Option<Request>) -> End {
    if let Some(request) = request {
        let request = match shared.complete_by_hooks(handle, request).await {
            Ok(request) => request,
            Err(reason) => return End::NotLaunched(reason),
        };
        match shared.containerizer.launch(request).await {
            Ok(LaunchOutcome::Launched { .. }) => handle.set_launched(),
            Ok(LaunchOutcome::NotSupported) => {
                return End::NotLaunched("no containerizer of this agent supports the container".to_owned());
            }
            Err(error) => return End::NotLaunched(error_chain::describe(&error)),
        }
    }
    match shared.containerizer.wait(handle.container()).await {
        Some(termination) => End::Ended(termination),
        None => End::Lost,
    }
}

/// What is due next.
fn due(
    shared: &Shared,
    handle: &Handle,
    started: Instant,
    is_recovered: bool,
    terminating: &mut Option<Instant>,
    done: &mut Option<Instant>,
) -> Option<(Instant, Due)> {
    let (phase, subscribed, grace, is_done) = {
        let state = handle.state();
        let is_done = state.executor.kind.is_of_one_task() && state.live_tasks().is_empty();
        (state.phase, state.subscribed, Duration::from_millis(state.executor.shutdown_grace_ms), is_done)
    };
    match phase {
        ExecutorPhase::Terminating => {
            let wait = match (handle.is_connected(), subscribed) {
                (true, _) => grace,
                // It hears of it when it subscribes again, until it should have.
                (false, true) => {
                    let timeout = shared.config.reregistration_timeout;
                    let reconnects = if is_recovered && !handle.was_connected() {
                        (started + timeout).saturating_duration_since(Instant::now())
                    } else {
                        timeout
                    };
                    grace.min(reconnects)
                }
                (false, false) => Duration::ZERO,
            };
            Some((*terminating.get_or_insert_with(|| Instant::now() + wait), Due::Kill))
        }
        ExecutorPhase::Running if is_done => {
            let at = *done.get_or_insert_with(|| Instant::now() + grace.saturating_add(LINGER));
            Some((at, Due::Kill))
        }
        ExecutorPhase::Registering if !subscribed => {
            Some((started + shared.config.registration_timeout, Due::Subscription { again: false }))
        }
        ExecutorPhase::Running if is_recovered && !handle.was_connected() => {
            Some((started + shared.config.reregistration_timeout, Due::Subscription { again: true }))
        }
        _ => None,
    }
}

fn not_subscribed(shared: &Shared, again: bool) -> Verdict {
    let (reason, timeout) = match again {
        true => ("REASON_EXECUTOR_REREGISTRATION_TIMEOUT", shared.config.reregistration_timeout),
        false => ("REASON_EXECUTOR_REGISTRATION_TIMEOUT", shared.config.registration_timeout),
    };
    let what = if again { "again after the agent was restarted" } else { "after its launch" };
    Verdict::new(
        TaskState::TaskFailed,
        reason,
        format!("the executor did not subscribe within {timeout:?} {what}"),
    )
}

async fn at(due: Option<(Instant, Due)>) -> Due {
    match due {
        Some((time, due)) => {
            tokio::time::sleep_until(time).await;
            due
        }
        None => std::future::pending().await,
    }
}

/// Repeats what has to be written until it is, as on a full disk.
async fn until_written<F>(handle: &Handle, write: impl Fn() -> F)
where
    F: Future<Output = Result<(), WriteError>>,
{
    let mut pause = RETRY.0;
    while let Err(error) = write().await {
        tracing::error!(container = %handle.container(), "{}", error_chain::describe(&error));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}
