//! The task that supervises a container from its launch to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::launch::{self, Running};
use super::record::Handle;
use super::{LaunchError, Shared, destroy};
use crate::blocking::BlockingPool;
use crate::chain::Watch;
use crate::containerizer::LaunchOutcome;
use crate::model::{Cause, Reason, Request};
use crate::readiness::{exited, readable};

/// Launches a container, supervises it while it runs, and destroys it.
pub(super) async fn run(
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    request: Request,
    answer: oneshot::Sender<Result<LaunchOutcome, LaunchError>>,
) {
    match launch::launch(&shared, &handle, request).await {
        Ok(running) => {
            // The client may have disconnected; the container runs all the same.
            drop(answer.send(Ok(LaunchOutcome::Launched { pid: running.process.pid() })));
            supervise(shared, handle, running).await;
        }
        Err(error) => {
            let description = crate::error_chain::describe(&error);
            tracing::warn!(container = %handle.id(), "launch failed: {description}");
            let cause =
                handle.stop_request().unwrap_or_else(|| Cause::because(Reason::LaunchFailed, description));
            // Nothing is left when the client hears of the failure, unless a plugin delays that: then it hears at
            // once, and the id stays taken until nothing is left.
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
pub(super) async fn supervise(shared: Arc<Shared>, handle: Arc<Handle>, running: Running) {
    let cause = wait_for_end(&shared, &handle, running).await;
    destroy::bring_down(&shared, &handle, cause).await;
}

/// Waits until the container has to end: because its command exited, on request, or at a limit.
async fn wait_for_end(shared: &Arc<Shared>, handle: &Arc<Handle>, running: Running) -> Cause {
    let Running { process, watches } = running;
    let (sender, mut limitations) = mpsc::channel(1);
    let _watchers = Watchers(
        watches
            .into_iter()
            .filter_map(|watch| RegisteredWatch::new(shared, handle, watch))
            .map(|watch| {
                let task = format!("the task that watches a limit of container `{}`", handle.id());
                let watching = watch_limit(Arc::clone(shared), Arc::clone(handle), watch, sender.clone());
                shared.fatal.spawn(task, watching)
            })
            .collect(),
    );
    drop(sender);
    tokio::select! {
        // The exit is checked last: its cause may be a limitation or a request.
        biased;
        Some(cause) = limitations.recv() => cause,
        cause = handle.stop_requested() => cause,
        () = exited(&process) => Cause::exited(),
    }
}

/// Tasks that are aborted on drop.
struct Watchers(Vec<JoinHandle<()>>);

impl Drop for Watchers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Calls `limitation` of a plugin whenever its descriptor becomes readable.
async fn watch_limit(
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    watch: RegisteredWatch,
    limitations: mpsc::Sender<Cause>,
) {
    let plugin = &watch.plugin;
    while let Some(descriptor) = &watch.descriptor {
        let Ok(mut ready) = descriptor.readable().await else { return };
        ready.clear_ready();
        let limitation = {
            let _op_lock = handle.op_lock().await;
            shared.chain.limitation(&handle.context(), plugin, Some(descriptor.as_fd())).await
        };
        match limitation {
            Ok(Some(limitation)) => {
                let own = destroy::own_limitation(&shared, &handle, limitation);
                let Some(limitation) = own else { continue };
                // The first one determines the cause; if the channel is full, it holds one already.
                drop(limitations.try_send(Cause::limitation(limitation)));
                return;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(container = %handle.id(), "cannot tell whether a limit was exceeded: {error}");
            }
        }
    }
}

/// A watch that is registered with the async runtime. Closing an inotify instance may take the kernel some 20 ms, so
/// the descriptor is not closed on a thread of the runtime.
struct RegisteredWatch {
    plugin: String,
    descriptor: Option<AsyncFd<OwnedFd>>,
    pool: BlockingPool,
}

impl RegisteredWatch {
    fn new(shared: &Shared, handle: &Handle, watch: Watch) -> Option<Self> {
        let Watch { plugin, descriptor } = watch;
        match readable(descriptor) {
            Ok(descriptor) => Some(Self { plugin, descriptor: Some(descriptor), pool: shared.pool.clone() }),
            Err(error) => {
                tracing::error!(container = %handle.id(), plugin, "cannot poll the plugin's watch descriptor: {error}");
                None
            }
        }
    }
}

impl Drop for RegisteredWatch {
    fn drop(&mut self) {
        let descriptor = self.descriptor.take();
        self.pool.spawn(move || drop(descriptor));
    }
}
