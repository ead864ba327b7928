//! What a logger does in `recover` and `cleanup`, whose state is the job of a container's companion.

use super::{Job, LogCompanions};
use crate::{ContainerRef, RecoverRequest, Recovery, Result, ResultExt};

impl<J: Job> LogCompanions<J> {
    /// For the logger's `recover`: takes over the companions of the containers that exist, starts others in place of those that
    /// were killed meanwhile, and removes what is left of containers that do not exist. A container whose companion cannot be
    /// taken over is refused. `own` is the version of the plugin, `env!("CARGO_PKG_VERSION")`.
    ///
    /// # Errors
    /// If `own` is not a version, or something of a container that does not exist cannot be removed.
    pub fn recover(&self, request: &RecoverRequest, own: &str) -> Result<Recovery> {
        let mut recovery = Recovery::upgrade(&request.containers, own, |old: J, _| Ok(old))?;
        let existing = request.containers.iter().map(|container| container.id.as_str());
        let existing: Vec<&str> = existing.chain(request.orphans.iter().map(|id| id.as_str())).collect();
        self.remove_others(&existing)?;
        for container in &request.containers {
            if container.details.state.is_null() {
                continue;
            }
            let recovered = J::deserialize(&container.details.state)
                .context("cannot read its state")
                .and_then(|job| self.take_over(container.id.as_str(), job));
            if let Err(error) = recovered {
                recovery.refuse(&container.id, error.causes().join(": "));
            }
        }
        Ok(recovery)
    }

    /// For the logger's `cleanup`: waits until the companion of a container has passed everything on, or reports what is lost,
    /// and removes what there is of it. A companion that does not respond is killed after five seconds, or half of the
    /// time that is left for the call. Succeeds for a container that is unknown.
    ///
    /// # Errors
    /// If something of it is still there; to be called again.
    pub fn clean_up(&self, container: &ContainerRef) -> Result<()> {
        let state = &container.details()?.state;
        let job = if state.is_null() { None } else { J::deserialize(state).ok() };
        self.finish(container.id(), job, container.deadline().remaining())
    }
}
