//! Acknowledgement of status updates by clients, and the end of what is only kept for these.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::handle::{Handle, WriteError};
use super::ids::{FrameworkId, TaskId};
use super::state::Entry;
use super::update::UpdateId;
use super::{Executors, Shared, uncancelled};
use crate::error_chain;

/// Pause before a removal that failed is tried again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Why an update is not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum AcknowledgeError {
    /// There is no such task.
    #[error("framework `{framework}` has no task `{task}`")]
    UnknownTask {
        /// The framework.
        framework: FrameworkId,
        /// The task.
        task: TaskId,
    },
    /// An earlier update comes first.
    #[error(
        "update `{id}` of task `{task}` is not the first one that is not acknowledged; acknowledge `{first}` before it"
    )]
    OutOfOrder {
        /// The task.
        task: TaskId,
        /// The update.
        id: UpdateId,
        /// The first one.
        first: UpdateId,
    },
    /// The acknowledgement cannot be recorded.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Executors {
    /// Acknowledges an update: it is not sent again. One that is acknowledged already is ignored.
    ///
    /// # Errors
    /// [`AcknowledgeError`].
    pub async fn acknowledge(
        &self,
        framework: FrameworkId,
        task: TaskId,
        id: UpdateId,
    ) -> Result<(), AcknowledgeError> {
        let shared = Arc::clone(&self.0);
        uncancelled(async move { shared.acknowledge(framework, task, id).await }).await
    }
}

impl Shared {
    async fn acknowledge(
        self: &Arc<Self>,
        framework: FrameworkId,
        task: TaskId,
        id: UpdateId,
    ) -> Result<(), AcknowledgeError> {
        let found = self.with_task(Some(&framework), &task);
        if found.is_empty() {
            return Err(AcknowledgeError::UnknownTask { framework, task });
        }
        let mut waiting = None;
        for handle in found {
            let _operation = handle.operation().await;
            let (first, is_waiting) = {
                let state = handle.state();
                let Some(task) = state.tasks.get(&task) else { continue };
                let first = task.unacknowledged.front().map(|update| update.id);
                (first, task.unacknowledged.iter().any(|update| update.id == id))
            };
            if first == Some(id) {
                handle.write(vec![Entry::Acknowledged { task, id }]).await?;
                let completed = handle.state().is_completed();
                if completed {
                    self.remove_after_hooks(&handle);
                }
                return Ok(());
            }
            waiting = waiting.or(first.filter(|_| is_waiting));
        }
        match waiting {
            Some(first) => Err(AcknowledgeError::OutOfOrder { task, id, first }),
            None => Ok(()),
        }
    }

    /// Removes what is left of executors that ended, except for the last ones. What cannot be removed, as from an engine that
    /// does not answer, is tried again.
    pub(super) fn remove_in_background(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = RETRY.0;
            // One task tries again, for all.
            while !shared.remove_superfluous().await && !shared.retries_removal.swap(true, Ordering::Relaxed)
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
                shared.retries_removal.store(false, Ordering::Relaxed);
            }
        });
    }

    /// Returns false if something is left.
    async fn remove_superfluous(&self) -> bool {
        let _removal = self.removal.lock().await;
        let mut all = true;
        for handle in self.superfluous() {
            all &= self.remove_executor(&handle).await;
        }
        all
    }

    fn superfluous(&self) -> Vec<Arc<Handle>> {
        let mut completed: Vec<(Option<u64>, Arc<Handle>)> = Vec::new();
        for handle in self.handles() {
            let state = handle.state();
            let ended = state.is_completed().then_some(state.ended_unix_ms);
            drop(state);
            completed.extend(ended.map(|ended| (ended, handle)));
        }
        completed.sort_by_key(|(ended, _)| *ended);
        let superfluous = completed.len().saturating_sub(self.config.max_completed_executors);
        completed.into_iter().take(superfluous).map(|(_, handle)| handle).collect()
    }

    /// Removes the container of an executor, with its sandbox, and then the journal. Returns false if it has to be tried again.
    async fn remove_executor(&self, handle: &Arc<Handle>) -> bool {
        let container = handle.container();
        if let Err(error) = self.containerizer.remove(container).await {
            tracing::warn!(%container, "container stays for now: {}", error_chain::describe(&error));
            return false;
        }
        let path = handle.journal_path();
        let removed = self.work.run(move || std::fs::remove_file(path)).await;
        if let Err(error) = removed.map_err(io::Error::other).flatten() {
            tracing::warn!(%container, "journal stays for now: {error}");
            return false;
        }
        self.remove(handle);
        true
    }
}
