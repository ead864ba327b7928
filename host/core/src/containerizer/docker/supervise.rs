//! The task that supervises a container from its launch to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::record::Handle;
use super::spec::Spec;
use super::{LaunchError, Shared, destroy, engine_name, launch};
use crate::containerizer::LaunchOutcome;
use crate::model::{Cause, Reason, Request};
use crate::readiness::exited;

/// How long output is kept for the client that the launch was requested for.
const FIRST_CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before an engine that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Launches a container, supervises it while it runs, and destroys it.
pub(super) async fn run(
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    request: Request,
    spec: Spec,
    answer: oneshot::Sender<Result<LaunchOutcome, LaunchError>>,
) {
    match launch::launch(&shared, &handle, request, spec).await {
        Ok(pid) => {
            expect_first_client(&handle);
            drop(answer.send(Ok(LaunchOutcome::Launched { pid })));
            supervise(shared, handle).await;
        }
        Err(error) => {
            let description = crate::error_chain::describe(&error);
            tracing::warn!(container = %handle.id(), "launch failed: {description}");
            let cause =
                handle.stop_request().unwrap_or_else(|| Cause::because(Reason::LaunchFailed, description));
            // Nothing is left when the client hears of the failure, unless the engine or the logger delays that: then it
            // hears at once, and the id stays taken until nothing is left.
            let mut unanswered = Some((answer, error));
            let mut answer = || {
                if let Some((answer, error)) = unanswered.take() {
                    drop(answer.send(Err(error)));
                }
            };
            destroy::roll_back_launch(&shared, &handle, cause, &mut answer).await;
            answer();
        }
    }
}

/// Supervises a running container, and destroys it when it has to end.
pub(super) async fn supervise(shared: Arc<Shared>, handle: Arc<Handle>) {
    let cause = tokio::select! {
        // The exit is checked last: its cause may be a request.
        biased;
        cause = handle.stop_requested() => cause,
        () = ended(&shared, &handle) => Cause::exited(),
    };
    destroy::bring_down(&shared, &handle, cause).await;
}

/// Waits until the container does not run.
async fn ended(shared: &Shared, handle: &Handle) {
    if let Some(process) = handle.process() {
        // Tells also while the engine does not answer.
        return exited(&process).await;
    }
    // It has ended already, or its processes are not visible to the agent.
    let container = engine_name(&handle.record());
    let mut reported = false;
    while let Err(error) = shared.engine.wait(&container).await {
        if error.is_missing() {
            return;
        }
        if !std::mem::replace(&mut reported, true) {
            let error = crate::error_chain::describe(&error);
            tracing::warn!(container = %handle.id(), "cannot wait for its end yet: {error}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Stops keeping output for a client that does not come: the container would have to wait.
fn expect_first_client(handle: &Arc<Handle>) {
    if handle.record().request.attached {
        let handle = Arc::downgrade(handle);
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_CLIENT_TIMEOUT).await;
            drop(handle.upgrade().and_then(|handle| handle.take_attachment()));
        });
    }
}
