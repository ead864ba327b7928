//! The task that supervises a container from its launch to its end.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::admit::admit;
use super::attach::expect_first_client;
use super::teardown::{self, Teardown};
use super::{Handle, Shared, task_name};
use crate::containerizer::{LaunchError, LaunchOutcome};
use crate::error_chain;
use crate::model::{Cause, Reason, Request};

/// How a backend launches a container, and finds out that it has to end.
pub(crate) trait Launch: Teardown {
    /// What a request comes to for the backend, which is known before anything exists.
    type Spec: Send + 'static;

    /// What tells that a running container has to end.
    type Watching: Send + 'static;

    /// Whether a request is for this backend.
    fn supports(request: &Request) -> bool;

    /// Checks what only the backend can check of a request.
    fn spec(shared: &Shared<Self>, request: &Request) -> Result<Self::Spec, LaunchError>;

    /// Launches a container up to its running command. A stop request cancels it. What exists after a failure is left to
    /// the teardown.
    fn launch(
        shared: &Arc<Shared<Self>>,
        handle: &Arc<Handle<Self>>,
        request: Request,
        spec: Self::Spec,
    ) -> impl Future<Output = Result<Launched<Self::Watching>, LaunchError>> + Send;

    /// Waits until a running container has to end: because its command exited, on request, or at a limit.
    fn wait_for_end(
        shared: &Arc<Shared<Self>>,
        handle: &Arc<Handle<Self>>,
        watching: Self::Watching,
    ) -> impl Future<Output = Cause> + Send;
}

/// A container whose command is running.
pub(crate) struct Launched<W> {
    /// Its first process; 0 if it has ended already, or is not in a pid namespace of the agent.
    pub(crate) pid: i32,
    /// What tells that it has to end.
    pub(crate) watching: W,
}

/// Launches a container in a task of its own, which supervises it until it has ended.
pub(super) async fn launch<B: Launch>(
    shared: &Arc<Shared<B>>,
    request: Request,
) -> Result<LaunchOutcome, LaunchError> {
    if !B::supports(&request) {
        return Ok(LaunchOutcome::NotSupported);
    }
    request.check()?;
    let spec = B::spec(shared, &request)?;
    let handle = admit(&**shared, &request)?;
    let (answer, launched) = oneshot::channel();
    let task = task_name(handle.id());
    shared.fatal.spawn(task, run(Arc::clone(shared), handle, request, spec, answer));
    // The task always answers, unless the runtime shuts down.
    launched.await.unwrap_or(Err(LaunchError::ShuttingDown))
}

/// Launches a container, supervises it while it is running, and destroys it.
async fn run<B: Launch>(
    shared: Arc<Shared<B>>,
    handle: Arc<Handle<B>>,
    request: Request,
    spec: B::Spec,
    answer: oneshot::Sender<Result<LaunchOutcome, LaunchError>>,
) {
    match B::launch(&shared, &handle, request, spec).await {
        Ok(Launched { pid, watching }) => {
            expect_first_client::<B>(&handle);
            // The client may have disconnected; the container runs all the same.
            drop(answer.send(Ok(LaunchOutcome::Launched { pid })));
            supervise(shared, handle, watching).await;
        }
        Err(error) => {
            let description = error_chain::describe(&error);
            tracing::warn!(container = %handle.id(), "launch failed: {description}");
            let cause =
                handle.stop_request().unwrap_or_else(|| Cause::because(Reason::LaunchFailed, description));
            // Nothing is left when the client hears of the failure, unless a plugin or an engine delays that: then it hears
            // at once, and the id stays taken until nothing is left.
            let mut unanswered = Some((answer, error));
            let mut answer = || {
                if let Some((answer, error)) = unanswered.take() {
                    drop(answer.send(Err(error)));
                }
            };
            teardown::roll_back_launch(&shared, &handle, cause, &mut answer).await;
            answer();
        }
    }
}

/// Supervises a running container, and destroys it when it has to end.
pub(crate) async fn supervise<B: Launch>(
    shared: Arc<Shared<B>>,
    handle: Arc<Handle<B>>,
    watching: B::Watching,
) {
    let cause = B::wait_for_end(&shared, &handle, watching).await;
    teardown::bring_down(&shared, &handle, cause).await;
}
