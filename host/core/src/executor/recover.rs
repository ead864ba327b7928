//! The executors of an earlier agent.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::handle::Handle;
use super::journal::{self, Journal, JournalError};
use super::state::{ExecutorPhase, ExecutorState};
use super::update::{TaskState, Verdict};
use super::{Executors, Shared, supervise};
use crate::error_chain;
use crate::model::Phase;

impl Executors {
    /// Reads the journals of an earlier agent, and goes on. Called once, when the containers are recovered.
    pub(crate) async fn recover(&self) -> io::Result<()> {
        let shared = &self.0;
        let paths = shared.paths.clone();
        let read = move || {
            create_socket_directory(&paths.socket_directory)?;
            read(&paths.journals)
        };
        let journals = shared.work.run(read).await.map_err(io::Error::other)??;
        let mut recovered = 0;
        for (journal, state) in journals {
            let (phase, checkpoint) = (state.phase, state.framework.checkpoint);
            let handle = shared.handle_of(state, journal);
            // One whose launch was interrupted is about to be destroyed, and must not get its tasks before.
            let found = shared.containerizer.inspect(handle.container());
            if found.is_some_and(|found| found.summary.phase == Phase::Running) {
                handle.set_launched();
            }
            shared.insert(&handle);
            if phase == ExecutorPhase::Terminated {
                if handle.state().is_completed() {
                    // By the agent that has recorded it.
                    handle.report_removal();
                }
                continue;
            }
            recovered += 1;
            if !checkpoint {
                shared.end_without_checkpoint(&handle).await;
            }
            supervise::recovered(shared, &handle);
        }
        shared.destroy_unsupervised();
        shared.remove_in_background();
        tracing::info!(running = recovered, "executors recovered");
        Ok(())
    }
}

impl Shared {
    /// Destroys containers of executors whose journals are missing or were left alone: nobody would hear of their tasks, or
    /// could end them.
    fn destroy_unsupervised(self: &Arc<Self>) {
        for found in self.containerizer.containers() {
            let container = found.id;
            if found.termination.is_some() || container.is_nested() || self.handle(&container).is_some() {
                continue;
            }
            if self.containerizer.inspect(&container).is_some_and(|found| found.request.is_executor()) {
                tracing::error!(%container, "executor destroyed: it has no journal that can be read");
                let shared = Arc::clone(self);
                tokio::spawn(async move { shared.containerizer.destroy(&container).await });
            }
        }
    }

    /// An executor without checkpoints shuts down when it loses the agent.
    async fn end_without_checkpoint(&self, handle: &Arc<Handle>) {
        let partition_aware = handle.state().framework.partition_aware;
        let state = if partition_aware { TaskState::TaskGone } else { TaskState::TaskLost };
        let message = "the agent was restarted, and the framework has no `checkpoint`";
        let _operation = handle.operation().await;
        if let Err(error) = self.stop(handle, Verdict::new(state, "REASON_AGENT_RESTARTED", message)).await {
            // It does not subscribe again, and is ended then.
            tracing::warn!(container = %handle.container(), "{}", error_chain::describe(&error));
        }
    }
}

/// Containers of any user see it.
fn create_socket_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn read(directory: &Path) -> io::Result<Vec<(Journal, ExecutorState)>> {
    let mut journals = Vec::new();
    for path in journal::list(directory)? {
        match Journal::open(&path) {
            Ok((journal, state)) => {
                if path.file_name().is_some_and(|name| *name == *state.container.as_str()) {
                    journals.push((journal, state));
                } else {
                    tracing::error!(
                        "left alone: `{}` is the journal of container `{}`",
                        path.display(),
                        state.container
                    );
                }
            }
            // Its launch was never confirmed.
            Err(JournalError::Empty { .. }) => fs::remove_file(&path)?,
            Err(error) => tracing::error!("left alone: {}", error_chain::describe(&error)),
        }
    }
    Ok(journals)
}
