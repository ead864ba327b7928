//! The resources of an executor's container follow its tasks.

use std::sync::Arc;

use super::Shared;
use super::handle::Handle;
use super::state::ExecutorPhase;
use crate::containerizer::UpdateError;

impl Shared {
    /// Gives the container of an executor the resources of its tasks. Called within an operation.
    pub(super) async fn allocate(&self, handle: &Arc<Handle>) -> Result<(), UpdateError> {
        let (phase, wanted) = {
            let state = handle.state();
            (state.phase, state.allocated())
        };
        if phase == ExecutorPhase::Terminated || handle.applied().as_ref() == Some(&wanted) {
            return Ok(());
        }
        // What no task needs any more keeps its last amount: a container cannot have none of a resource that it had.
        let mut update = wanted.clone();
        if let Some(applied) = handle.applied() {
            update.retain(|name| !wanted.has_same(&applied, name));
        }
        if !update.requests.is_empty() || !update.limits.is_empty() {
            self.containerizer.update(handle.container(), update).await?;
        }
        handle.set_applied(wanted);
        Ok(())
    }
}
