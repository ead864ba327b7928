//! An executor in the table: its state, its journal, and its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cofferdam_plugin_model::{ContainerId, Resources};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, Notify, broadcast, watch};

use super::change::Change;
use super::event::{Connection, Event};
use super::journal::{Journal, JournalError};
use super::state::{Entry, ExecutorPhase, ExecutorState};
use super::stats::Counters;
use super::token::TokenHash;
use crate::blocking::{WorkLost, WorkPool};
use crate::error_chain;

/// An executor.
pub(super) struct Handle {
    container: ContainerId,
    token: TokenHash,
    state: RwLock<ExecutorState>,
    journal: Mutex<Journal>,
    /// One operation at a time decides, writes, and sends.
    operation: AsyncMutex<()>,
    /// Held while hooks decorate updates, until these are written. Taken before `operation`.
    decorating: AsyncMutex<()>,
    connection: Mutex<Option<Connection>>,
    /// Whether it was ever connected to this agent.
    was_connected: AtomicBool,
    /// Whether the launch of its container is complete, in whatever way.
    launched: watch::Sender<bool>,
    /// Resources that its container was launched with or updated to; `None` if unknown.
    applied: Mutex<Option<Resources>>,
    /// Whether hooks were informed of its removal.
    removal_reported: AtomicBool,
    /// For its journal.
    work: WorkPool,
    /// Wakes who waits for its end to be requested.
    ending: Notify,
    /// Wakes its supervisor.
    changed: Notify,
    changes: broadcast::Sender<Change>,
    counters: Arc<Counters>,
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The journal cannot be written.
    #[error("cannot write the journal of the executor in container `{container}`")]
    Journal {
        /// The container.
        container: ContainerId,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread panicked.
    #[error(transparent)]
    Lost(#[from] WorkLost),
}

impl Handle {
    pub(super) fn new(
        state: ExecutorState,
        journal: Journal,
        changes: broadcast::Sender<Change>,
        counters: Arc<Counters>,
        work: WorkPool,
    ) -> Self {
        Self {
            container: state.container.clone(),
            token: state.token.clone(),
            state: RwLock::new(state),
            journal: Mutex::new(journal),
            operation: AsyncMutex::new(()),
            decorating: AsyncMutex::new(()),
            connection: Mutex::default(),
            was_connected: AtomicBool::new(false),
            launched: watch::Sender::new(false),
            applied: Mutex::default(),
            work,
            removal_reported: AtomicBool::new(false),
            ending: Notify::new(),
            changed: Notify::new(),
            changes,
            counters,
        }
    }

    pub(super) fn container(&self) -> &ContainerId {
        &self.container
    }

    pub(super) fn token(&self) -> &TokenHash {
        &self.token
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, ExecutorState> {
        self.state.read()
    }

    /// Waits until no other operation is in progress.
    pub(super) async fn operation(&self) -> MutexGuard<'_, ()> {
        self.operation.lock().await
    }

    /// Writes what has happened, all of it or nothing, and then makes it the state. Called within an operation.
    pub(super) async fn write(self: &Arc<Self>, entries: Vec<Entry>) -> Result<(), WriteError> {
        if entries.is_empty() {
            return Ok(());
        }
        let handle = Arc::clone(self);
        // Not as a job, where all threads may wait for plugins.
        if let Err(error) = self.work.run(move || handle.write_here(entries)).await? {
            return Err(WriteError::Journal { container: self.container.clone(), source: error.into() });
        }
        self.changed.notify_one();
        self.ending.notify_waiters();
        // Nobody may be interested.
        drop(self.changes.send(Change::Updates(self.container.clone())));
        Ok(())
    }

    fn write_here(&self, entries: Vec<Entry>) -> Result<(), JournalError> {
        let mut journal = self.journal.lock();
        journal.append(&entries)?;
        let mut state = self.state.write();
        for entry in entries {
            self.counters.count(&entry);
            state.apply(entry);
        }
        drop(state);
        if let Err(error) = journal.shorten(&self.state.read()) {
            tracing::warn!("a journal stays long: {}", error_chain::describe(&error));
        }
        Ok(())
    }

    /// Waits until nobody else decorates updates.
    pub(super) async fn decorating(&self) -> MutexGuard<'_, ()> {
        self.decorating.lock().await
    }

    /// Waits until it has to end.
    pub(super) async fn has_to_end(&self) {
        loop {
            let written = self.ending.notified();
            tokio::pin!(written);
            // Before the check, so that nothing is missed.
            written.as_mut().enable();
            let phase = self.state().phase;
            if matches!(phase, ExecutorPhase::Terminating | ExecutorPhase::Terminated) {
                return;
            }
            written.await;
        }
    }

    /// Waits until something was written.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes a connection that of the executor. The one before ends, and says why.
    pub(super) fn connect(&self, connection: Connection) {
        let before = self.connection.lock().replace(connection);
        if let Some(before) = before {
            // Whoever has it may not read it any more.
            before
                .send(Event::Error("another subscription of the executor has replaced this one".to_owned()));
        }
        self.was_connected.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub(super) fn was_connected(&self) -> bool {
        self.was_connected.load(Ordering::Relaxed)
    }

    /// The launch of its container is complete, or has failed.
    pub(super) fn set_launched(&self) {
        self.launched.send_replace(true);
    }

    pub(super) fn is_launched(&self) -> bool {
        *self.launched.borrow()
    }

    /// Waits until the launch of its container is complete, or has failed. Cancel safe.
    pub(super) async fn launched(&self) {
        // The sender is part of `self`.
        drop(self.launched.subscribe().wait_for(|launched| *launched).await);
    }

    /// Ends its connection.
    pub(super) fn disconnect(&self) {
        *self.connection.lock() = None;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.lock().as_ref().is_some_and(Connection::is_open)
    }

    /// Sends an event if it is connected.
    pub(super) fn send(&self, event: Event) {
        let mut connection = self.connection.lock();
        if connection.as_ref().is_some_and(|open| !open.send(event)) {
            // Whatever it has missed is sent when it subscribes again.
            *connection = None;
        }
    }

    pub(super) fn applied(&self) -> Option<Resources> {
        self.applied.lock().clone()
    }

    pub(super) fn set_applied(&self, resources: Resources) {
        *self.applied.lock() = Some(resources);
    }

    /// Whether it is up to the caller to inform hooks of its removal: true once.
    pub(super) fn report_removal(&self) -> bool {
        !self.removal_reported.swap(true, Ordering::Relaxed)
    }

    pub(super) fn journal_path(&self) -> std::path::PathBuf {
        self.journal.lock().path().to_owned()
    }
}
