//! Ending tasks and executors on request.

use std::sync::Arc;

use super::event::Event;
use super::handle::{Handle, WriteError};
use super::ids::{ExecutorId, FrameworkId, TaskId};
use super::state::{Entry, ExecutorPhase, Kill, KillAction};
use super::update::{TaskState, Verdict};
use super::{Executors, Shared, timestamp, uncancelled};

/// Why a task or an executor is not ended.
#[derive(Debug, thiserror::Error)]
pub enum KillTaskError {
    /// There is no such task.
    #[error("there is no task `{task}`")]
    UnknownTask {
        /// The task.
        task: TaskId,
    },
    /// Several frameworks have such a task.
    #[error("several frameworks have a task `{task}`; name the framework")]
    Ambiguous {
        /// The task.
        task: TaskId,
    },
    /// There is no such executor, or it has ended.
    #[error("framework `{framework}` has no executor `{executor}`")]
    UnknownExecutor {
        /// The framework.
        framework: FrameworkId,
        /// The executor.
        executor: ExecutorId,
    },
    /// The request cannot be recorded.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Executors {
    /// Asks for the end of a task; its updates say how it ends. Nothing happens to one that has ended.
    ///
    /// # Errors
    /// [`KillTaskError`].
    pub async fn kill(
        &self,
        framework: Option<FrameworkId>,
        task: TaskId,
        kill: Kill,
    ) -> Result<(), KillTaskError> {
        let shared = Arc::clone(&self.0);
        uncancelled(async move { shared.kill(framework, task, kill).await }).await
    }

    /// Asks an executor to end its tasks and itself. It is killed when its grace period is over.
    ///
    /// # Errors
    /// [`KillTaskError`].
    pub async fn shutdown(&self, framework: FrameworkId, executor: ExecutorId) -> Result<(), KillTaskError> {
        let shared = Arc::clone(&self.0);
        uncancelled(async move {
            let Some(handle) = shared.executor(&framework, &executor) else {
                return Err(KillTaskError::UnknownExecutor { framework, executor });
            };
            let _operation = handle.operation().await;
            let verdict = Verdict::new(
                TaskState::TaskKilled,
                "REASON_EXECUTOR_TERMINATED",
                "a client has asked for the end of the executor",
            );
            shared.stop(&handle, verdict).await?;
            Ok(())
        })
        .await
    }

    /// Sends a message to an executor. Returns false if it is unknown or not connected.
    #[must_use]
    pub fn message(&self, framework: &FrameworkId, executor: &ExecutorId, data: Vec<u8>) -> bool {
        match self.0.executor(framework, executor) {
            Some(handle) if handle.is_connected() => {
                handle.send(Event::Message(data));
                true
            }
            _ => false,
        }
    }
}

impl Shared {
    async fn kill(
        &self,
        framework: Option<FrameworkId>,
        task: TaskId,
        kill: Kill,
    ) -> Result<(), KillTaskError> {
        let found = self.with_task(framework.as_ref(), &task);
        let Some(handle) = found.first() else { return Err(KillTaskError::UnknownTask { task }) };
        let first = handle.state().framework.id.clone();
        if found.iter().any(|other| other.state().framework.id != first) {
            return Err(KillTaskError::Ambiguous { task });
        }
        let action = || {
            let state = handle.state();
            // It may have been forgotten meanwhile.
            let action = state.tasks.get(&task).map(|found| state.kill(found, kill.clone(), timestamp()));
            action.unwrap_or(KillAction::Ended)
        };
        // Before the operation, which does not wait for hooks.
        let decorations = match action() {
            KillAction::Undelivered { entries, .. } => {
                let _decorating = self.decorating(handle).await;
                Some(self.decorations(handle, &entries).await)
            }
            _ => None,
        };
        let _operation = handle.operation().await;
        match action() {
            KillAction::Ended => {}
            KillAction::Undelivered { entries, .. } => {
                let entries = match &decorations {
                    Some(decorations) => decorations.apply(entries),
                    None => entries,
                };
                handle.write(entries).await?;
            }
            KillAction::Deliver(entry) => {
                handle.write(vec![entry]).await?;
                handle.send(Event::Kill { task, policy: kill.policy });
            }
        }
        Ok(())
    }

    /// Lets an executor end. Called within an operation.
    pub(super) async fn stop(&self, handle: &Arc<Handle>, cause: Verdict) -> Result<(), WriteError> {
        let phase = handle.state().phase;
        if matches!(phase, ExecutorPhase::Registering | ExecutorPhase::Running) {
            handle.write(vec![Entry::Stop(cause)]).await?;
            handle.send(Event::Shutdown);
        }
        Ok(())
    }
}
