//! What tells that a running container has to end: its first process, a stop request, or a limit that a plugin watches.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::record::Handle;
use super::{Shared, destroy};
use crate::blocking::BlockingPool;
use crate::chain::Watch;
use crate::descriptor_store::Stored;
use crate::model::Cause;
use crate::readiness::{Awaitable, exited};

/// Pause before another attempt to get a descriptor back.
const RETRY: Duration = Duration::from_millis(100);

/// Waits until the container has to end: because its command exited, on request, or at a limit.
pub(super) async fn wait_for_end(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    watches: Vec<PluginWatch>,
) -> Cause {
    let (sender, mut limitations) = mpsc::channel(1);
    let _watchers = Watchers(
        watches
            .into_iter()
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
        () = first_process_ended(shared, handle) => Cause::exited(),
    }
}

/// Waits until the first process has ended.
async fn first_process_ended(shared: &Shared, handle: &Handle) {
    if let Some(process) = handle.process() {
        tokio::select! {
            () = exited(&process) => return,
            () = shared.stored_from_now() => {}
        }
        if let Err(error) = handle.store_process(&process, &shared.backend.descriptors) {
            tracing::warn!(container = %handle.id(), "its pidfd stays in the table of the agent: {error}");
            return exited(&process).await;
        }
    }
    while let Some(stored) = handle.stored_process() {
        if stored.pidfd.ready().await {
            return;
        }
        tracing::error!(container = %handle.id(), "its stored pidfd is lost, and opened again");
        match stored.reopen() {
            Ok(Some(process)) => {
                handle.set_process(Some(Arc::clone(&process)));
                return exited(&process).await;
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(container = %handle.id(), "cannot tell yet whether it has ended: {error}");
                tokio::time::sleep(RETRY).await;
                // It stays lost.
                stored.pidfd.set_ready();
            }
        }
    }
}

/// Tasks that are aborted on drop.
struct Watchers(Vec<JoinHandle<()>>);

impl Drop for Watchers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Calls `limitation` of a plugin whenever something happens on its descriptor.
async fn watch_limit(
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    mut watch: PluginWatch,
    limitations: mpsc::Sender<Cause>,
) {
    while watch.ready(&shared, &handle).await {
        let limitation = {
            let _op_lock = handle.op_lock().await;
            let descriptor = watch.in_table();
            shared.chain.limitation(&handle.context(), &watch.plugin, descriptor).await
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

/// The descriptor of a plugin's watch. Closing an inotify instance may take the kernel some 20 ms, so it is not closed on
/// a thread of the runtime.
pub(crate) struct PluginWatch {
    plugin: String,
    place: Place,
    pool: BlockingPool,
}

/// Where a descriptor is.
enum Place {
    Table(Awaitable),
    Stored(Stored),
    Nowhere,
}

impl PluginWatch {
    /// A descriptor that stays in the process's table for now.
    pub(super) fn new(shared: &Shared, handle: &Handle, Watch { plugin, descriptor }: Watch) -> Self {
        let place = match Awaitable::new(descriptor) {
            Ok(descriptor) => Place::Table(descriptor),
            Err(error) => {
                tracing::error!(container = %handle.id(), plugin, "cannot poll the plugin's watch descriptor: {error}");
                Place::Nowhere
            }
        };
        Self { plugin, place, pool: shared.pool.clone() }
    }

    /// A descriptor that is stored at once.
    pub(super) fn stored(shared: &Shared, handle: &Handle, watch: Watch) -> Self {
        match shared.backend.descriptors.put(watch.descriptor.as_fd()) {
            Ok(stored) => {
                Self { plugin: watch.plugin, place: Place::Stored(stored), pool: shared.pool.clone() }
            }
            Err(_) => Self::new(shared, handle, watch),
        }
    }

    /// Waits until something happens on the descriptor, which is in the process's table then. Returns false if nothing
    /// ever will.
    async fn ready(&mut self, shared: &Shared, handle: &Handle) -> bool {
        loop {
            match &self.place {
                Place::Nowhere => return false,
                Place::Table(descriptor) => {
                    tokio::select! {
                        ready = descriptor.ready() => return ready.is_ok(),
                        () = shared.stored_from_now() => {}
                    }
                    match shared.backend.descriptors.put(descriptor.as_fd()) {
                        Ok(stored) => self.set_place(Place::Stored(stored)),
                        Err(_) => return descriptor.ready().await.is_ok(),
                    }
                }
                Place::Stored(stored) => {
                    if !stored.ready().await {
                        let (container, plugin) = (handle.id(), &self.plugin);
                        tracing::error!(%container, plugin, "the plugin's watch descriptor is lost; its limit is not watched");
                        return false;
                    }
                    match stored.open().and_then(Awaitable::new) {
                        Ok(descriptor) => {
                            self.set_place(Place::Table(descriptor));
                            return true;
                        }
                        // There is no space in the table; it stays ready.
                        Err(_) => {
                            tokio::time::sleep(RETRY).await;
                            stored.set_ready();
                        }
                    }
                }
            }
        }
    }

    fn in_table(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::Table(descriptor) => Some(descriptor.as_fd()),
            _ => None,
        }
    }

    fn set_place(&mut self, place: Place) {
        let before = std::mem::replace(&mut self.place, place);
        self.pool.spawn(move || drop(before));
    }
}

impl Drop for PluginWatch {
    fn drop(&mut self) {
        self.set_place(Place::Nowhere);
    }
}
