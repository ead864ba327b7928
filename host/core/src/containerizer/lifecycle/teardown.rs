//! Teardown of a container: the same for a failed launch, a kill, a limitation, an exit and a restart.
//!
//! It does not depend on how far the container got: every step can be repeated, and does nothing where there is nothing to
//! do. When one fails, the teardown is retried from its beginning with backoff, and the container stays visible with the
//! reason: it is gone only when everything is.
//!
//! An operator can force the end of a container whose plugins do not clean up. The missed cleanups are recorded, and
//! performed when the plugins can be called: see `missed.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::tree;

use super::{Backend, Extent, Handle, Shared, missed, remove_directory, task_name};
use crate::blocking::Job;
use crate::containerizer::record_part::{MissedCleanup, RecordPart};
use crate::engine::EngineError;
use crate::error_chain;
use crate::model::{Cause, Phase, Reason, Termination};
use crate::plugin::CallError;

/// A teardown that takes longer, or whose pause has grown to this, is not reported as prompt any more.
pub(crate) const PROMPT: Duration = Duration::from_secs(1);

/// The steps in which a backend destroys a container.
pub(crate) trait Teardown: Backend {
    /// What one attempt knows that the next one cannot find out again.
    type Progress: Default + Send;

    /// Whether a client hears of a failed launch as soon as an attempt takes longer than is prompt. Otherwise it hears when
    /// an attempt has failed.
    const ANSWERS_DURING_ATTEMPT: bool;

    /// Prepares the teardown, once. Nothing that fails here may prevent it.
    fn begin_teardown(
        shared: &Arc<Shared<Self>>,
        handle: &Arc<Handle<Self>>,
        retention: Retention,
        cause: &Cause,
    ) -> impl Future<Output = ()> + Send;

    /// Attempts the teardown once, from its beginning to [`record_end`]. The container's operation lock is held.
    fn try_teardown(
        shared: &Arc<Shared<Self>>,
        handle: &Arc<Handle<Self>>,
        attempt: Attempt<'_, Self::Progress>,
    ) -> impl Future<Output = Result<Termination, TeardownError>> + Send;

    /// A container has ended.
    fn ended(_shared: &Shared<Self>) {}

    /// Does, in a task, what is left to do for a container that has ended.
    fn finish_later(_shared: &Arc<Shared<Self>>, _handle: &Arc<Handle<Self>>) {}
}

/// An attempt of a teardown.
pub(crate) struct Attempt<'a, P> {
    pub(crate) retention: Retention,
    pub(crate) progress: &'a mut P,
    /// Plugins to which the attempt before has lost its job, which are not called.
    pub(crate) lost: BTreeMap<String, CallError>,
}

/// What happens to the record and the sandbox after a teardown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retention {
    /// They are kept until the container is removed.
    Keep,
    /// They are removed: the container was never running.
    Remove,
}

/// Why a teardown is not complete.
pub(crate) enum TeardownError {
    /// A step of the agent failed.
    Step(String),
    /// A directory is not removed: what for, and why.
    Directory(&'static str, tree::RemoveError),
    /// The engine does not do what is needed.
    Engine(EngineError),
    /// Plugins failed in `cleanup`, or could not be called.
    Cleanup(Vec<CallError>),
    /// The job was lost to a plugin that timed out or changed its thread.
    JobLost(CallError),
}

impl TeardownError {
    pub(crate) fn step(action: &str, error: &dyn std::error::Error) -> Self {
        Self::Step(format!("cannot {action}: {}", error_chain::describe(error)))
    }

    fn calls(&self) -> &[CallError] {
        match self {
            Self::Step(_) | Self::Directory(..) | Self::Engine(_) => &[],
            Self::Cleanup(errors) => errors,
            Self::JobLost(error) => std::slice::from_ref(error),
        }
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        match self {
            Self::Step(message) => vec![message.clone()],
            Self::Directory(action, error) => {
                vec![format!("cannot {action}: {}", error_chain::describe(error))]
            }
            Self::Engine(error) => vec![error_chain::describe(error)],
            Self::Cleanup(_) | Self::JobLost(_) => self.calls().iter().map(ToString::to_string).collect(),
        }
    }

    /// Plugins that cannot be called before a late call has returned.
    fn late_plugins(&self) -> BTreeSet<String> {
        let late = self.calls().iter().filter(|error| error.is_late());
        late.map(|error| error.plugin().to_owned()).collect()
    }

    /// Whether anything but a late call prevents the teardown, which may succeed in a while.
    fn may_succeed_later(&self) -> bool {
        let calls = self.calls();
        calls.is_empty() || !calls.iter().all(CallError::is_late)
    }

    /// Whether it is not known when the teardown can succeed.
    fn is_open_ended(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_outage(),
            other => other.calls().iter().any(CallError::is_late),
        }
    }
}

/// Destroys a container, records how it ended, and wakes everyone who waits for it.
pub(super) async fn bring_down<B: Teardown>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>, cause: Cause) {
    let termination = tear_down(shared, handle, cause, Retention::Keep, || {}).await;
    finish_later(shared, handle);
    tracing::info!(
        container = %handle.id(),
        status = termination.ended().map(|ended| ended.to_string()),
        reason = termination.reason.as_ref().map(Reason::mesos_name),
        "container ended"
    );
    handle.announce_end(termination);
    B::ended(shared);
}

/// Undoes a failed launch, including its record. Calls `on_delay` when that cannot be completed promptly.
pub(super) async fn roll_back_launch<B: Teardown>(
    shared: &Arc<Shared<B>>,
    handle: &Arc<Handle<B>>,
    cause: Cause,
    on_delay: impl FnMut() + Send,
) {
    let termination = tear_down(shared, handle, cause, Retention::Remove, on_delay).await;
    if !handle.record().part.is_needed_after_end() {
        shared.chain.removed(&handle.context()).await;
        shared.table.remove(handle.id());
    } else {
        // It stays, as what is needed to clean up.
        finish_later(shared, handle);
    }
    handle.announce_end(termination);
    B::ended(shared);
}

/// Does what is left to do for a container that has ended.
pub(super) fn finish_later<B: Teardown>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>) {
    if shared.ledger.is_reserve_used(handle.id()) {
        write_record_later(shared, handle);
    }
    missed::perform_later(shared, handle);
    B::finish_later(shared, handle);
}

/// Retries the teardown until it succeeds.
async fn tear_down<B: Teardown>(
    shared: &Arc<Shared<B>>,
    handle: &Arc<Handle<B>>,
    cause: Cause,
    retention: Retention,
    mut on_delay: impl FnMut() + Send,
) -> Termination {
    // Later stop requests do not change the cause.
    handle.request_stop(cause.clone());
    handle.update_in_memory(|record| {
        record.phase = record.phase.max(Phase::Destroying);
        record.cause = Some(cause.clone());
    });
    B::begin_teardown(shared, handle, retention, &cause).await;
    let (mut pause, longest) = B::BACKOFF;
    let mut progress = B::Progress::default();
    let mut lost = BTreeMap::new();
    loop {
        let (was_forced, was_repeated) = (handle.is_forced(), handle.is_stop_repeated());
        let attempt = Attempt { retention, progress: &mut progress, lost: lost.clone() };
        let outcome = attempt_once(shared, handle, attempt, &mut on_delay).await;
        let error = match outcome {
            Ok(termination) => {
                handle.show_missed();
                return termination;
            }
            Err(error) => error,
        };
        let messages = error.messages();
        handle.set_cleanup_errors(messages.clone());
        if error.is_open_ended() || pause >= PROMPT {
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
        let late = error.late_plugins();
        tokio::select! {
            () = shared.chain.any_callable(&late, handle.id()), if !late.is_empty() => {}
            () = tokio::time::sleep(pause), if error.may_succeed_later() => pause = (pause * 2).min(longest),
            () = handle.forced(), if !was_forced => {}
            () = handle.stop_repeated(), if !was_repeated => {}
        }
    }
}

/// Attempts the teardown once, when other operations on the container are complete: the effect of some is only known then.
async fn attempt_once<B: Teardown>(
    shared: &Arc<Shared<B>>,
    handle: &Arc<Handle<B>>,
    attempt: Attempt<'_, B::Progress>,
    mut on_delay: impl FnMut() + Send,
) -> Result<Termination, TeardownError> {
    let attempt = async {
        let _op_lock = handle.op_lock().await;
        B::try_teardown(shared, handle, attempt).await
    };
    tokio::pin!(attempt);
    tokio::select! {
        outcome = &mut attempt => outcome,
        () = tokio::time::sleep(PROMPT), if B::ANSWERS_DURING_ATTEMPT => {
            on_delay();
            attempt.await
        }
    }
}

/// Runs steps of a teardown that call plugins in a job.
pub(crate) async fn in_job<B: Backend, T: Send + 'static>(
    shared: &Shared<B>,
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

/// Repeats the last steps of an attempt on a thread for removals, if their outcome is that a directory is large.
pub(crate) async fn remove_large<B: Backend, T: Send + 'static>(
    shared: &Shared<B>,
    outcome: Result<T, TeardownError>,
    steps: impl FnOnce() -> Result<T, TeardownError> + Send + 'static,
) -> Result<T, TeardownError> {
    match outcome {
        Err(TeardownError::Directory(action, error)) if error.is_unfinished() => {
            let repeated = shared.pool.removals().run(steps).await;
            repeated.unwrap_or_else(|lost| Err(TeardownError::step(action, &lost)))
        }
        outcome => outcome,
    }
}

/// Judges the cleanups of a container's plugins by those that failed. Returns what was missed, if the end is forced.
pub(crate) fn cleaned_up<P: RecordPart>(
    job: &Job,
    handle: &super::ContainerHandle<P>,
    failed: Vec<CallError>,
) -> Result<Vec<MissedCleanup>, TeardownError> {
    // If the job was abandoned during its last cleanup call, another attempt is already running.
    if job.is_abandoned() || !failed.is_empty() && !handle.is_forced() {
        return Err(TeardownError::Cleanup(failed));
    }
    let missed: Vec<_> = failed.iter().map(MissedCleanup::from).collect();
    for MissedCleanup { plugin, reason } in &missed {
        tracing::error!(container = %handle.id(), plugin, "its end is forced without the plugin's cleanup: {reason}");
    }
    Ok(missed)
}

/// Records the end: the last step. Blocks.
pub(crate) fn record_end<B: Backend>(
    shared: &Shared<B>,
    handle: &Handle<B>,
    retention: Retention,
    termination: &Termination,
    missed: &[MissedCleanup],
    extent: Extent,
) -> Result<(), TeardownError> {
    let is_kept = retention == Retention::Keep || !missed.is_empty();
    if !is_kept {
        remove_directory(&handle.record().sandbox, extent)
            .map_err(|error| TeardownError::Directory("remove its sandbox", error))?;
    }
    // Its record is what the cleanup needs.
    if is_kept || handle.record().part.is_needed_after_end() {
        let ended = handle.persist_end(&shared.ledger, |record| {
            record.phase = Phase::Ended;
            record.process = None;
            record.part.end(missed.to_vec());
            record.termination = Some(termination.clone());
        });
        return ended.map(drop).map_err(|error| TeardownError::step("record how it ended", &error));
    }
    shared.ledger.remove(handle.id()).map_err(|error| TeardownError::step("remove its record", &error))?;
    handle.update_in_memory(|record| {
        record.phase = Phase::Ended;
        record.termination = Some(termination.clone());
    });
    Ok(())
}

/// Writes the record of a container that has ended as soon as there is space. Until then its end is in reserved space.
fn write_record_later<B: Teardown>(shared: &Arc<Shared<B>>, handle: &Arc<Handle<B>>) {
    tracing::error!(container = %handle.id(), "its record cannot be written; how it ended is in reserved space");
    let (shared2, handle) = (Arc::clone(shared), Arc::clone(handle));
    shared.fatal.spawn(task_name(handle.id()), async move {
        let (mut pause, longest) = (PROMPT, B::BACKOFF.1);
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
            let _op_lock = handle.op_lock().await;
            if !shared2.is_known(&handle) || shared2.update_persisted(&handle, |_| {}).await.is_ok() {
                return;
            }
        }
    });
}
