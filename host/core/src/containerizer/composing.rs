//! Several containerizers as one.
//!
//! ```text
//! launch   ─▶ first ─ not supported ─▶ second ─ not supported ─▶ … ─▶ not supported
//!               └ success, failure: final
//! nested   ─▶ the containerizer of the root
//! all else ─▶ the containerizer that has the container
//! ```
//!
//! The order of the list is the order of attempts. A containerizer returns [`LaunchOutcome::NotSupported`] only if it has
//! started nothing. A container belongs to the one that knows it: there is no second table that could differ from theirs.
//! Only the ids of launches that are in progress are kept here, so that two launches of one id are not tried at a time by
//! two containerizers, and so that a destroy between two attempts is not lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::uncancelled::uncancelled;
use super::{
    Containerizer, Foreign, KillError, LaunchError, LaunchOutcome, RecoverError, Recovered, Recovery,
    RemoveError, UpdateError,
};
use crate::error_chain;
use crate::ledger::{Entry, RecordError};
use crate::model::view::{Inspection, Report, Summary, WantedReports};
use crate::model::{ContainerId, Phase, Request, Resources, Termination};
use crate::switchboard::{AttachError, AttachedInput, Attachment};

/// Several containerizers as one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Composing(Arc<Inner>);

struct Inner {
    /// In the order of attempts.
    containerizers: Vec<Arc<dyn Containerizer>>,
    foreign: Arc<Foreign>,
    launching: Mutex<BTreeMap<ContainerId, Arc<Launching>>>,
}

/// A launch in progress.
#[derive(Default)]
struct Launching {
    /// The message of the first request that it stops.
    stopped: Mutex<Option<&'static str>>,
    has_ended: watch::Sender<bool>,
}

impl Launching {
    /// Fails if a request has stopped it.
    fn check(&self, id: &ContainerId) -> Result<(), LaunchError> {
        match *self.stopped.lock() {
            Some(message) => {
                let message = message.to_owned();
                Err(LaunchError::Cancelled { id: id.clone(), phase: Phase::Starting, message })
            }
            None => Ok(()),
        }
    }

    async fn ended(&self) {
        // The sender is dropped with the last reference only.
        drop(self.has_ended.subscribe().wait_for(|ended| *ended).await);
    }
}

/// The entry of a launch in progress, which is removed when the launch has ended in any way.
struct LaunchGuard<'c> {
    composing: &'c Composing,
    id: ContainerId,
    launching: Arc<Launching>,
}

impl Drop for LaunchGuard<'_> {
    fn drop(&mut self) {
        self.composing.0.launching.lock().remove(&self.id);
        self.launching.has_ended.send_replace(true);
    }
}

impl Composing {
    /// These containerizers, tried in this order.
    pub(crate) fn new(containerizers: Vec<Arc<dyn Containerizer>>, foreign: Arc<Foreign>) -> Self {
        Self(Arc::new(Inner { containerizers, foreign, launching: Mutex::default() }))
    }

    /// The containerizer that has a container.
    fn owner(&self, id: &ContainerId) -> Option<&Arc<dyn Containerizer>> {
        self.0.containerizers.iter().find(|containerizer| containerizer.contains(id))
    }

    fn launching(&self, id: &ContainerId) -> Option<Arc<Launching>> {
        self.0.launching.lock().get(id).cloned()
    }

    /// The owner of a container. One whose launch is in progress and that no containerizer has yet, is awaited.
    async fn awaited_owner(&self, id: &ContainerId) -> Option<&Arc<dyn Containerizer>> {
        // Looked up first: it may end, and the container be there, in between.
        let launching = self.launching(id);
        if let (None, Some(launching)) = (self.owner(id), launching) {
            launching.ended().await;
        }
        self.owner(id)
    }

    /// Stops the launch of a container, if it is in progress and no containerizer has the container yet: such a request is
    /// for the containerizer.
    fn stop_launch(&self, id: &ContainerId, message: &'static str) -> bool {
        let Some(launching) = self.launching(id) else { return false };
        // Held while the owner is looked up: the launch checks for requests after it has one.
        let mut stopped = launching.stopped.lock();
        let is_launching = self.owner(id).is_none();
        if is_launching {
            stopped.get_or_insert(message);
        }
        is_launching
    }

    /// Enters a launch, unless there is one of this id.
    fn begin(&self, id: &ContainerId) -> Result<LaunchGuard<'_>, LaunchError> {
        let mut launches = self.0.launching.lock();
        if launches.contains_key(id) {
            return Err(LaunchError::Duplicate { id: id.clone() });
        }
        let launching = Arc::new(Launching::default());
        launches.insert(id.clone(), Arc::clone(&launching));
        Ok(LaunchGuard { composing: self, id: id.clone(), launching })
    }

    async fn launch_here(&self, request: Request) -> Result<LaunchOutcome, LaunchError> {
        let id = request.id.clone();
        if let Some((foreign, reason)) = self.0.foreign.containing(&id) {
            return Err(LaunchError::Foreign { id, foreign, reason });
        }
        if let Some(parent) = id.parent() {
            return match self.owner(&id.root()) {
                Some(owner) => owner.launch(request).await,
                None => Err(LaunchError::NoParent { id, parent }),
            };
        }
        let launch = self.begin(&id)?;
        if let Some(taken) = self.owner(&id).and_then(|owner| owner.inspect(&id)) {
            return Err(LaunchError::taken(&taken.summary));
        }
        for containerizer in &self.0.containerizers {
            launch.launching.check(&id)?;
            match containerizer.launch(request.clone()).await {
                Ok(LaunchOutcome::NotSupported) => {}
                Ok(launched) => {
                    let stopped = launch.launching.check(&id);
                    if stopped.is_err() {
                        // The request came when the containerizer did not have it yet.
                        undo(&**containerizer, &id).await;
                    }
                    return stopped.map(|()| launched);
                }
                failed => return failed,
            }
        }
        Ok(LaunchOutcome::NotSupported)
    }

    /// Which containerizer gets an entry of the ledger: the one that its record names; for a damaged record the one
    /// that has its sandbox, or else the one whose containers leave traces that only it finds, which is the one for
    /// processes. `None` for a record of a containerizer that is not in use.
    fn recoverer(&self, entry: &Entry) -> Option<usize> {
        let position =
            |name: &str| self.0.containerizers.iter().position(|containerizer| containerizer.name() == name);
        match &entry.record {
            Ok(record) => position(&record.containerizer),
            Err(_) => {
                let containerizers = &self.0.containerizers;
                let has_sandbox = |index: &usize| {
                    containerizers
                        .get(*index)
                        .is_some_and(|containerizer| containerizer.has_sandbox(&entry.id))
                };
                let native = position(super::native::NAME);
                let with_sandbox =
                    native.filter(has_sandbox).or_else(|| (0..containerizers.len()).find(has_sandbox));
                with_sandbox.or(native).or(Some(0))
            }
        }
    }
}

#[async_trait]
impl Containerizer for Composing {
    fn name(&self) -> &'static str {
        "composing"
    }

    async fn recover(
        &self,
        entries: Vec<Entry>,
        recorded: Arc<BTreeSet<ContainerId>>,
    ) -> Result<Box<dyn Recovery>, RecoverError> {
        let mut shares: Vec<Vec<Entry>> = self.0.containerizers.iter().map(|_| Vec::new()).collect();
        for entry in entries {
            let share = self.recoverer(&entry).and_then(|index| shares.get_mut(index));
            match (share, &entry.record) {
                (Some(share), _) => share.push(entry),
                (None, Ok(record)) => {
                    let id = entry.id.clone();
                    let containerizer = record.containerizer.clone();
                    let reason = RecordError::Containerizer { id: id.clone(), containerizer }.to_string();
                    tracing::error!(container = %id, "left alone: {reason}");
                    self.0.foreign.add(id, reason);
                }
                (None, Err(_)) => {}
            }
        }
        let mut recovering = JoinSet::new();
        for (containerizer, entries) in self.0.containerizers.iter().zip(shares) {
            let containerizer = Arc::clone(containerizer);
            let recorded = Arc::clone(&recorded);
            recovering.spawn(async move { containerizer.recover(entries, recorded).await });
        }
        // All are awaited, also if one fails: none goes on in the background.
        let recoveries: Result<Vec<_>, _> = recovering.join_all().await.into_iter().collect();
        Ok(Box::new(Recoveries(recoveries?)))
    }

    fn has_sandbox(&self, id: &ContainerId) -> bool {
        self.0.containerizers.iter().any(|containerizer| containerizer.has_sandbox(id))
    }

    async fn launch(&self, request: Request) -> Result<LaunchOutcome, LaunchError> {
        let composing = self.clone();
        uncancelled(async move { composing.launch_here(request).await }).await
    }

    async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.awaited_owner(id).await?.wait(id).await
    }

    fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.owner(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })?.attach(id)
    }

    fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.owner(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })?.attach_first(id)
    }

    fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        self.owner(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })?.attach_input(id)
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        // As with one containerizer, any signal to a container that is being launched stops the launch.
        if self.stop_launch(id, "the container was killed") {
            return Ok(true);
        }
        match self.owner(id) {
            Some(owner) => owner.kill(id, signal).await,
            None => Ok(false),
        }
    }

    async fn force(&self, id: &ContainerId) -> bool {
        if self.stop_launch(id, "the end of the container was forced") {
            return true;
        }
        match self.owner(id) {
            Some(owner) => owner.force(id).await,
            None => false,
        }
    }

    async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        self.stop_launch(id, "the container was destroyed");
        self.awaited_owner(id).await?.destroy(id).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        match self.owner(id) {
            Some(owner) => owner.remove(id).await,
            None => Ok(false),
        }
    }

    async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        let owner = self.owner(id).ok_or_else(|| UpdateError::Unknown { id: id.clone() })?;
        owner.update(id, resources).await
    }

    async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        let mut asking = JoinSet::new();
        for containerizer in &self.0.containerizers {
            let own = ids.iter().enumerate().filter(|(_, id)| containerizer.contains(id));
            let (indices, own): (Vec<usize>, Vec<ContainerId>) =
                own.map(|(index, id)| (index, id.clone())).unzip();
            let containerizer = Arc::clone(containerizer);
            asking.spawn(async move { (indices, containerizer.reports(&own, wanted).await) });
        }
        let mut reports = vec![Report::default(); ids.len()];
        for (indices, own) in asking.join_all().await {
            for (index, report) in indices.into_iter().zip(own) {
                if let Some(slot) = reports.get_mut(index) {
                    *slot = report;
                }
            }
        }
        reports
    }

    fn containers(&self) -> Vec<Summary> {
        let all = self.0.containerizers.iter().flat_map(|containerizer| containerizer.containers());
        let mut all: Vec<Summary> = all.collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn contains(&self, id: &ContainerId) -> bool {
        self.owner(id).is_some()
    }

    fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        self.owner(id)?.inspect(id)
    }
}

/// Leaves nothing of a container that was launched, as far as its plugins have cleaned up.
async fn undo(containerizer: &dyn Containerizer, id: &ContainerId) {
    containerizer.destroy(id).await;
    if let Err(error) = containerizer.remove(id).await {
        let error = error_chain::describe(&error);
        tracing::warn!(container = %id, "what is left of a launch that was stopped stays: {error}");
    }
}

struct Recoveries(Vec<Box<dyn Recovery>>);

#[async_trait]
impl Recovery for Recoveries {
    async fn resume(self: Box<Self>) -> Recovered {
        let resuming: JoinSet<Recovered> = self.0.into_iter().map(|recovery| recovery.resume()).collect();
        resuming.join_all().await.into_iter().fold(Recovered::default(), |all, one| Recovered {
            running: all.running + one.running,
            ended: all.ended + one.ended,
            destroyed: all.destroyed + one.destroyed,
        })
    }
}

#[cfg(test)]
mod tests;
