//! A containerizer of a backend.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::attach::{attach, attach_first};
use super::launch::launch;
use super::recover::{self, Recover};
use super::remove::remove;
use super::update::update;
use super::{Backend, Handle, Shared};
use crate::containerizer::record_part::RecordPart;
use crate::containerizer::sandboxes::is_directory;
use crate::containerizer::uncancelled::uncancelled;
use crate::containerizer::{
    Containerizer, KillError, LaunchError, LaunchOutcome, RecoverError, Recovery, RemoveError, UpdateError,
};
use crate::ledger::Entry;
use crate::model::view::{Inspection, ParticipantView, Report, Summary, WantedReports};
use crate::model::{Cause, ContainerId, Phase, Reason, Request, Resources, Termination};
use crate::switchboard::{AttachError, AttachedInput, Attachment};

/// The containers of a backend.
pub(crate) struct Containers<B: Backend>(Arc<Shared<B>>);

impl<B: Backend> Containers<B> {
    pub(crate) fn new(shared: Shared<B>) -> Self {
        Self(Arc::new(shared))
    }

    /// A container that has not ended.
    fn live(&self, id: &ContainerId) -> Option<Arc<Handle<B>>> {
        self.0.table.get(id).filter(|handle| handle.phase().is_live())
    }
}

#[async_trait]
impl<B: Recover> Containerizer for Containers<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    async fn recover(
        &self,
        entries: Vec<Entry>,
        recorded: Arc<BTreeSet<ContainerId>>,
    ) -> Result<Box<dyn Recovery>, RecoverError> {
        Ok(Box::new(recover::find(&self.0, entries, recorded).await?))
    }

    fn has_sandbox(&self, id: &ContainerId) -> bool {
        is_directory(&self.0.sandbox(id))
    }

    async fn launch(&self, request: Request) -> Result<LaunchOutcome, LaunchError> {
        launch(&self.0, request).await
    }

    async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.table.get(id)?.ended().await
    }

    fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        attach(&*self.0, id, Attachment::connect)
    }

    fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        attach_first(&*self.0, id)
    }

    fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        attach(&*self.0, id, AttachedInput::connect)
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        let Some(handle) = self.live(id) else { return Ok(false) };
        if signal == libc::SIGKILL || handle.phase() < Phase::Running {
            handle.request_stop(Cause::because(Reason::Killed, "the container was killed"));
            return Ok(true);
        }
        B::signal(&self.0, &handle, signal).await
    }

    async fn force(&self, id: &ContainerId) -> bool {
        let mut live = self.0.table.within(id);
        live.retain(|handle| handle.phase().is_live());
        // Those nested in it first: it waits for them.
        for handle in live.iter().rev() {
            handle.request_stop(Cause::because(Reason::Killed, "the end of the container was forced"));
            handle.force();
        }
        !live.is_empty()
    }

    async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        let handle = self.0.table.get(id)?;
        handle.request_stop(Cause::because(Reason::Killed, "the container was destroyed"));
        handle.ended().await
    }

    async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        let (shared, id) = (Arc::clone(&self.0), id.clone());
        uncancelled(async move { remove(&shared, &id).await }).await
    }

    async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        let (shared, id) = (Arc::clone(&self.0), id.clone());
        uncancelled(async move { update(&shared, &id, resources).await }).await
    }

    async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        B::reports(&self.0, ids, wanted).await
    }

    fn containers(&self) -> Vec<Summary> {
        self.0.table.all().iter().map(|handle| handle.summary()).collect()
    }

    fn contains(&self, id: &ContainerId) -> bool {
        self.0.table.get(id).is_some()
    }

    fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        let handle = self.0.table.get(id)?;
        let record = handle.record();
        let participants = record.part.participants().iter();
        Some(Inspection {
            summary: handle.summary(),
            uid: record.uid,
            sandbox: record.sandbox.clone(),
            logs: record.logs.clone(),
            plan: B::plan(&record),
            plugins: participants
                .map(|participant| ParticipantView {
                    plugin: participant.plugin.clone(),
                    version: Some(participant.version.to_string()),
                    state: participant.state.clone(),
                    unavailable: participant.unavailable.clone(),
                })
                .collect(),
            request: record.request.clone(),
        })
    }
}
