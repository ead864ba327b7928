//! A container as everyone but its supervising task sees it.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cofferdam_linux::process::Process;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{MutexGuard, OwnedMutexGuard, watch};

use super::first_process::{FirstProcess, StoredProcess};
use crate::descriptor_store::DescriptorStore;
use crate::events::{EventKind, Events};
use crate::ledger::{Ledger, LedgerError, Recorded};
use crate::model::view::Summary;
use crate::model::{Cause, ContainerId, FetchProgress, Phase, PullProgress, Record, Termination};

/// A container: its record, and a place for stop requests. `P` is the record part of its containerizer.
pub(crate) struct ContainerHandle<P> {
    id: ContainerId,
    /// Where changes of the record are reported.
    events: Events,
    record: Mutex<Arc<Record<P>>>,
    /// Held while the record is changed, so that changes reach the disk in order.
    updating: Mutex<()>,
    /// What prevents its cleanup.
    cleanup_errors: Mutex<Vec<String>>,
    process: FirstProcess,
    /// How far the pull of its image is, while it waits for that.
    pull: Mutex<Option<PullProgress>>,
    /// How far the fetch of its files is, while it waits for that.
    fetch: Mutex<Option<FetchProgress>>,
    /// Whether the end does not wait for cleanups that fail.
    forced: watch::Sender<bool>,
    /// The first stop request; later ones have no effect.
    stop_request: watch::Sender<Option<Cause>>,
    /// Whether there was another one.
    stop_repeated: watch::Sender<bool>,
    termination: watch::Sender<Option<Termination>>,
    /// The connection that was made for the client that attaches first.
    attachment: Mutex<Option<OwnedFd>>,
    /// Held during an operation that calls plugins, so that such operations on one container do not overlap.
    op_lock: Arc<tokio::sync::Mutex<()>>,
}

impl<P: Clone + Serialize> ContainerHandle<P> {
    pub(super) fn new(record: Record<P>, events: Events) -> Self {
        let termination = if record.phase.is_live() { None } else { record.termination.clone() };
        if record.phase.is_live() {
            events.record(phase_changed(None, &record));
        }
        Self {
            id: record.id.clone(),
            events,
            record: Mutex::new(Arc::new(record)),
            updating: Mutex::default(),
            cleanup_errors: Mutex::default(),
            process: FirstProcess::default(),
            pull: Mutex::default(),
            fetch: Mutex::default(),
            forced: watch::Sender::new(false),
            stop_request: watch::Sender::new(None),
            stop_repeated: watch::Sender::new(false),
            termination: watch::Sender::new(termination),
            attachment: Mutex::default(),
            op_lock: Arc::default(),
        }
    }

    pub(super) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// A snapshot of the record.
    pub(super) fn record(&self) -> Arc<Record<P>> {
        Arc::clone(&self.record.lock())
    }

    pub(super) fn phase(&self) -> Phase {
        self.record.lock().phase
    }

    /// Waits for other operations on the container.
    pub(super) async fn op_lock(&self) -> MutexGuard<'_, ()> {
        self.op_lock.lock().await
    }

    /// As [`Self::op_lock`], for a lock that outlives a borrow.
    pub(super) async fn op_lock_owned(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.op_lock).lock_owned().await
    }

    /// As [`Self::op_lock_owned`], unless there is another operation.
    pub(super) fn try_op_lock(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.op_lock).try_lock_owned().ok()
    }

    /// Changes the record in memory only: for what a restarted agent would find out by itself, which resources are not.
    pub(super) fn update_in_memory(&self, change: impl FnOnce(&mut Record<P>)) {
        let _updating = self.updating.lock();
        let event = {
            let mut record = self.record.lock();
            let previous = record.phase;
            change(Arc::make_mut(&mut record));
            (record.phase != previous).then(|| phase_changed(Some(previous), &record))
        };
        if let Some(event) = event {
            self.events.record(event);
        }
    }

    /// Changes the record on disk and then in memory. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; nothing is changed then.
    pub(super) fn update_persisted(
        &self,
        ledger: &Ledger,
        change: impl FnOnce(&mut Record<P>),
    ) -> Result<(), LedgerError> {
        // Readers do not wait for the disk: only `updating` is held while writing.
        let _updating = self.updating.lock();
        let mut changed = Record::clone(&self.record());
        change(&mut changed);
        ledger.write(&changed)?;
        self.replace(changed);
        Ok(())
    }

    /// As [`Self::update_persisted`], for the end of the container, which is recorded even if the disk is full.
    ///
    /// # Errors
    /// When it can be recorded nowhere; nothing is changed then.
    pub(super) fn persist_end(
        &self,
        ledger: &Ledger,
        change: impl FnOnce(&mut Record<P>),
    ) -> Result<Recorded, LedgerError> {
        let _updating = self.updating.lock();
        let mut changed = Record::clone(&self.record());
        change(&mut changed);
        let recorded = ledger.write_end(&changed)?;
        self.replace(changed);
        Ok(recorded)
    }

    /// Changes the record in memory, and on disk if that is possible: for what frees something. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; it is changed in memory all the same.
    pub(super) fn update_freeing(
        &self,
        ledger: &Ledger,
        change: impl FnOnce(&mut Record<P>),
    ) -> Result<(), LedgerError> {
        let _updating = self.updating.lock();
        let mut changed = Record::clone(&self.record());
        change(&mut changed);
        let written = ledger.write(&changed);
        self.replace(changed);
        written
    }

    /// Replaces the record, while `updating` is held, so that events are in the order of the changes.
    fn replace(&self, changed: Record<P>) {
        let changed = Arc::new(changed);
        let previous = mem::replace(&mut *self.record.lock(), Arc::clone(&changed));
        if previous.phase != changed.phase {
            self.events.record(phase_changed(Some(previous.phase), &changed));
        }
        if previous.resources != changed.resources {
            self.events.record(EventKind::ResourcesUpdated { container: self.id.clone() });
        }
    }

    /// Requests that the container be destroyed. The first request determines the cause.
    pub(super) fn request_stop(&self, cause: Cause) {
        let is_first = self.stop_request.send_if_modified(|request| {
            let first = request.is_none();
            if first {
                *request = Some(cause);
            }
            first
        });
        if !is_first {
            self.stop_repeated.send_replace(true);
        }
    }

    /// Whether a stop was requested again.
    pub(super) fn is_stop_repeated(&self) -> bool {
        *self.stop_repeated.borrow()
    }

    /// Waits until a stop is requested again.
    pub(super) async fn stop_repeated(&self) {
        let mut repeated = self.stop_repeated.subscribe();
        if repeated.wait_for(|repeated| *repeated).await.is_err() {
            // Unreachable while `self` is borrowed, as it owns the sender.
            std::future::pending::<()>().await;
        }
    }

    /// Forces the end of a container that is being destroyed.
    pub(super) fn force(&self) {
        self.forced.send_replace(true);
    }

    pub(super) fn is_forced(&self) -> bool {
        *self.forced.borrow()
    }

    /// Waits until the end is forced.
    pub(super) async fn forced(&self) {
        let mut forced = self.forced.subscribe();
        if forced.wait_for(|forced| *forced).await.is_err() {
            // Unreachable while `self` is borrowed, as it owns the sender.
            std::future::pending::<()>().await;
        }
    }

    /// The stop request, if there is one.
    pub(super) fn stop_request(&self) -> Option<Cause> {
        self.stop_request.borrow().clone()
    }

    /// Waits for a stop request.
    pub(super) async fn stop_requested(&self) -> Cause {
        let mut request = self.stop_request.subscribe();
        loop {
            if let Some(cause) = request.borrow_and_update().clone() {
                return cause;
            }
            if request.changed().await.is_err() {
                // Unreachable while `self` is borrowed, as it owns the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the container has ended and is cleaned up.
    pub(super) async fn ended(&self) -> Option<Termination> {
        let mut termination = self.termination.subscribe();
        termination.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Wakes everyone who waits for the end.
    pub(super) fn announce_end(&self, termination: Termination) {
        self.termination.send_replace(Some(termination));
    }

    /// The first process, while its pidfd is in the process's table, as it is during a launch.
    pub(super) fn process(&self) -> Option<Arc<Process>> {
        self.process.in_table()
    }

    /// The first process, if there is one.
    ///
    /// # Errors
    /// If the table has no space for its pidfd.
    pub(super) fn open_process(&self) -> io::Result<Option<Arc<Process>>> {
        self.process.open()
    }

    /// The first process, while its pidfd is stored.
    pub(super) fn stored_process(&self) -> Option<Arc<StoredProcess>> {
        self.process.stored()
    }

    pub(super) fn set_process(&self, process: Option<Arc<Process>>) {
        self.process.set(process);
    }

    /// Sets the first process, and stores its pidfd.
    pub(super) fn store_process(&self, process: &Process, descriptors: &DescriptorStore) -> io::Result<()> {
        self.process.store(process, descriptors)
    }

    /// Keeps a connection for the client that attaches first.
    pub(super) fn keep_attachment(&self, connection: OwnedFd) {
        *self.attachment.lock() = Some(connection);
    }

    /// The connection that was kept, once.
    pub(super) fn take_attachment(&self) -> Option<OwnedFd> {
        self.attachment.lock().take()
    }

    /// Records how far the pull of its image is; `None` when it does not wait for that any more. Clients are informed of each
    /// tenth.
    pub(super) fn set_pull(&self, pull: Option<PullProgress>) {
        let previous = mem::replace(&mut *self.pull.lock(), pull);
        if let Some(progress) = pull
            && previous.is_none_or(|previous| previous.tenths() != progress.tenths())
        {
            self.events.record(EventKind::ImagePull { container: self.id.clone(), progress });
        }
    }

    /// Records how far the fetch of its files is; `None` when it does not wait for that any more. Clients are informed of
    /// each step.
    pub(super) fn set_fetch(&self, fetch: Option<FetchProgress>) {
        let previous = mem::replace(&mut *self.fetch.lock(), fetch);
        if let Some(progress) = fetch
            && previous.is_none_or(|previous| previous.step() != progress.step())
        {
            self.events.record(EventKind::Fetch { container: self.id.clone(), progress });
        }
    }

    /// Records what prevents the cleanup.
    pub(super) fn set_cleanup_errors(&self, errors: Vec<String>) {
        let previous = mem::replace(&mut *self.cleanup_errors.lock(), errors.clone());
        // Each attempt reports them again.
        if previous != errors && !errors.is_empty() {
            self.events.record(EventKind::CleanupFailed { container: self.id.clone(), errors });
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let record = self.record();
        Summary {
            id: record.id.clone(),
            class: record.request.class,
            phase: record.phase,
            pid: record.process.filter(|_| record.phase.is_live()).map(|process| process.pid),
            command: record.request.command.to_line(),
            created_unix_ms: record.created_unix_ms,
            termination: record.termination.clone(),
            resources: record.resources.clone(),
            cleanup_errors: self.cleanup_errors.lock().clone(),
            pull: *self.pull.lock(),
            fetch: *self.fetch.lock(),
        }
    }
}

/// The event of a container that has entered the phase of its record.
fn phase_changed<P>(previous: Option<Phase>, record: &Record<P>) -> EventKind {
    EventKind::PhaseChanged {
        container: record.id.clone(),
        previous,
        phase: record.phase,
        pid: record.process.filter(|_| record.phase.is_live()).map(|process| process.pid),
        termination: record.termination.clone().filter(|_| !record.phase.is_live()),
    }
}
