//! The one owner of a container, from its first moment to its last.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cofferdam_linux::process::Process;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::cell::Cell;
use super::{House, LaunchError, Launched, destroy, launch};
use crate::chain::Watch;
use crate::container::Reason;
use crate::errand::Errands;
use crate::ledger::Cause;
use crate::readiness::readable;

/// A container whose command runs.
pub(super) struct Running {
    pub(super) process: Arc<Process>,
    pub(super) watches: Vec<Watch>,
}

/// Launches a container, stays with it while it runs, and undoes it.
pub(super) async fn live(
    house: Arc<House>,
    cell: Arc<Cell>,
    answer: oneshot::Sender<Result<Launched, LaunchError>>,
) {
    match launch::bring_up(&house, &cell).await {
        Ok(running) => {
            // Whoever asked may be gone; the container runs all the same.
            drop(answer.send(Ok(Launched { pid: running.process.pid() })));
            let cause = attend(&house, &cell, running).await;
            destroy::bring_down(&house, &cell, cause).await;
        }
        Err(error) => {
            tracing::warn!(container = %cell.id(), "{}", crate::report::chain(&error));
            let cause = cell
                .wish()
                .unwrap_or_else(|| Cause::because(Reason::LaunchFailed, crate::report::chain(&error)));
            destroy::undo_launch(&house, &cell, cause).await;
            drop(answer.send(Err(error)));
        }
    }
}

/// Stays with a container that ran before this agent did, and undoes it.
pub(super) async fn resume(house: Arc<House>, cell: Arc<Cell>, running: Running) {
    let cause = attend(&house, &cell, running).await;
    destroy::bring_down(&house, &cell, cause).await;
}

/// Waits until the container has to end: by itself, by a wish, or by a limit.
async fn attend(house: &Arc<House>, cell: &Arc<Cell>, running: Running) -> Cause {
    let Running { process, watches } = running;
    let (reached, mut limits) = mpsc::channel(1);
    let _watchers = Watchers(
        watches
            .into_iter()
            .filter_map(|watch| Watched::new(house, cell, watch))
            .map(|watch| tokio::spawn(observe(Arc::clone(house), Arc::clone(cell), watch, reached.clone())))
            .collect(),
    );
    drop(reached);
    tokio::select! {
        // An end by itself is looked at last: what ended it may be a limit or a wish.
        biased;
        Some(cause) = limits.recv() => cause,
        cause = cell.wished() => cause,
        () = ended(&process) => Cause::by_itself(),
    }
}

/// Ends the tasks when it is dropped.
struct Watchers(Vec<JoinHandle<()>>);

impl Drop for Watchers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Asks a plugin for a limitation whenever its descriptor becomes readable.
async fn observe(house: Arc<House>, cell: Arc<Cell>, watched: Watched, reached: mpsc::Sender<Cause>) {
    let plugin = &watched.plugin;
    while let Some(descriptor) = &watched.descriptor {
        let Ok(mut ready) = descriptor.readable().await else { return };
        ready.clear_ready();
        let asked = {
            let _turn = cell.turn().await;
            house.chain.limitation(&cell.case(), plugin, Some(descriptor.as_fd())).await
        };
        match asked {
            Ok(Some(limitation)) => {
                // The first limit counts; a full channel holds one already.
                drop(reached.try_send(Cause::over_limit(limitation)));
                return;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(container = %cell.id(), "cannot tell whether a limit was reached: {error}");
            }
        }
    }
}

/// What a plugin watches by. The kernel may take its time to close that, for an inotify instance some 20 ms: it is
/// not closed on a thread of the runtime.
struct Watched {
    plugin: String,
    descriptor: Option<AsyncFd<OwnedFd>>,
    errands: Errands,
}

impl Watched {
    fn new(house: &House, cell: &Cell, watch: Watch) -> Option<Self> {
        let Watch { plugin, descriptor } = watch;
        match readable(descriptor) {
            Ok(descriptor) => {
                Some(Self { plugin, descriptor: Some(descriptor), errands: house.errands.clone() })
            }
            Err(error) => {
                tracing::error!(container = %cell.id(), plugin, "cannot watch for its limits: {error}");
                None
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let descriptor = self.descriptor.take();
        self.errands.send(move || drop(descriptor));
    }
}

/// Waits until a process has ended.
async fn ended(process: &Process) {
    let pidfd = process.as_fd().try_clone_to_owned().and_then(readable);
    match pidfd {
        // Readable once and for ever.
        Ok(pidfd) => drop(pidfd.readable().await),
        Err(error) => {
            tracing::error!(pid = process.pid(), "cannot wait for a container's end by event: {error}");
            while !process.has_ended().unwrap_or(true) {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
