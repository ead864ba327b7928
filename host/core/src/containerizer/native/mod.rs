//! The native containerizer: containers made of processes, by the plugin chain and a launcher.
//!
//! ```text
//!            launch.rs   launch, a sequence of stages           recover.rs  containers of an earlier agent
//!                │                                                  │
//!                ▼                                                  ▼
//!   mod.rs ── supervise.rs  the one task that owns a container from its launch to its end
//!                │
//!                ▼
//!            destroy.rs  teardown, the same for a failed launch, a kill, a limitation, an exit and a restart
//! ```
//!
//! Everyone else has a `ContainerHandle`: the container's record, and a place for a stop request. Only its task
//! changes its phase, except for calls that do not concern its lifetime (usage, status, update, signals), which
//! take its operation lock.

mod attach;
mod begin;
mod create;
mod destroy;
mod init_plan;
mod launch;
mod missed;
mod phase;
mod progress;
mod provide;
mod record;
mod recover;
mod reports;
mod supervise;
mod update;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::process::ProcessError;
use tokio::sync::{Semaphore, oneshot};

use super::foreign::Foreign;
use super::sandboxes::is_directory;
use super::uncancelled::uncancelled;
use super::{
    Containerizer, KillError, LaunchError, LaunchOutcome, RecoverError, Recovery, RemoveError, UpdateError,
};
use crate::blocking::BlockingPool;
use crate::chain::Chain;
use crate::descriptor_store::DescriptorStore;
use crate::fatal::FatalErrors;
use crate::fetcher::Fetcher;
use crate::hooks::Hooks;
use crate::launcher::Launcher;
use crate::ledger::{Entry, Ledger, LedgerError, Lock, nested_directory};
use crate::model::view::{Inspection, ParticipantView, Report, Summary, WantedReports};
use crate::model::{Cause, ContainerId, Phase, Reason, Record, Request, Resources, Termination, now_unix_ms};
use crate::plugin::CallError;
use crate::provisioner::Provisioner;
use crate::switchboard::{AttachError, AttachedInput, Attachment};

pub(crate) use init_plan::cgroups as plugin_cgroups;
pub use record::NativeRecord;
pub(crate) use record::NativeTable;

use record::Handle;

/// Name in the configuration and in records: that of the Mesos containerizer.
pub(super) const NAME: &str = "mesos";

/// Blocking work of the agent itself that takes this long is reported; it is never abandoned.
const STALL_WARNING: Duration = Duration::from_secs(60);

/// Pause before a cleanup is retried: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// How long descriptors of a container stay in the process's table: many containers end before that.
const STORE_AFTER: Duration = Duration::from_secs(1);

/// Teardowns that run at a time, unless some take long.
pub(crate) const TEARDOWNS: usize = 8;

/// The native containerizer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Native(Arc<Shared>);

/// What the tasks of all containers share.
pub(crate) struct Shared {
    pub(crate) fatal: FatalErrors,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) chain: Chain,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) fetcher: Fetcher,
    pub(crate) hooks: Hooks,
    pub(crate) provisioner: Provisioner,
    pub(crate) pool: BlockingPool,
    pub(crate) descriptors: DescriptorStore,
    /// Containers whose descriptors are still in the process's table.
    pub(crate) recent: Semaphore,
    /// Teardowns that may run at a time.
    pub(crate) teardowns: Semaphore,
    pub(crate) table: Arc<NativeTable>,
    pub(crate) foreign: Arc<Foreign>,
    pub(crate) work_dir: PathBuf,
    /// Keeps other agents out of the work directory, unless the ledger's lock does.
    pub(crate) _work_lock: Option<Arc<Lock>>,
    pub(crate) cgroups: Cgroups,
    pub(crate) boot_id: String,
    /// `RLIMIT_NOFILE` (soft, hard) of commands for which no plugin sets one; the agent's own if `None`.
    pub(crate) nofile: Option<(u64, u64)>,
    /// Whether containers may be launched from images.
    pub(crate) images: bool,
}

impl Native {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    async fn remove_here(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        let shared = &self.0;
        let Some(handle) = shared.table.get(id) else { return Ok(false) };
        let _op_lock = handle.op_lock().await;
        // It may have been removed meanwhile, and the id may be that of a new container.
        if !shared.table.get(id).is_some_and(|known| Arc::ptr_eq(&known, &handle)) {
            return Ok(false);
        }
        let removed = shared.table.within(id);
        if let Some(live) = removed.iter().find(|handle| handle.phase().is_live()) {
            return Err(RemoveError::StillLive { id: live.id().clone(), phase: live.phase() });
        }
        if let Some(handle) = removed.iter().find(|handle| !handle.record().part.missed.is_empty()) {
            let missed = handle.record().part.missed.iter().map(|missed| missed.plugin.clone()).collect();
            return Err(RemoveError::CleanupMissed { id: handle.id().clone(), plugins: missed });
        }
        let mut contexts: Vec<_> = removed.iter().rev().map(|handle| handle.context()).collect();
        contexts.retain(|context| shared.chain.observes_removal(context));
        let remove_sandboxes = move || {
            removed.iter().rev().try_for_each(|handle| {
                let path = handle.record().sandbox.clone();
                let failed =
                    |source| RemoveError::Sandbox { id: handle.id().clone(), path: path.clone(), source };
                destroy::remove_directory(&path).map_err(failed)
            })
        };
        let (ledger, id2) = (Arc::clone(&shared.ledger), id.clone());
        let remove_record = move || ledger.remove(&id2).map_err(RemoveError::from);
        if contexts.is_empty() {
            self.remove_in_job(move || remove_sandboxes().and_then(|()| remove_record())).await?;
        } else {
            self.remove_in_job(remove_sandboxes).await?;
            // Before the record is removed: an agent that dies here finds it, and the removal can be repeated.
            for context in &contexts {
                shared.chain.removed(context).await;
            }
            self.remove_in_job(remove_record).await?;
        }
        shared.table.remove(id);
        Ok(true)
    }

    async fn remove_in_job(
        &self,
        work: impl FnOnce() -> Result<(), RemoveError> + Send + 'static,
    ) -> Result<(), RemoveError> {
        self.0.pool.run(STALL_WARNING, move |_| work()).await.unwrap_or(Err(RemoveError::Interrupted))
    }
}

#[async_trait]
impl Containerizer for Native {
    fn name(&self) -> &'static str {
        NAME
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
        if request.docker.is_some() {
            return Ok(LaunchOutcome::NotSupported);
        }
        request.check()?;
        if request.image.is_some() && !self.0.images {
            return Err(LaunchError::NoImages { id: request.id });
        }
        let shared = Arc::clone(&self.0);
        let handle = shared.admit(&request)?;
        let (answer, launched) = oneshot::channel();
        let (fatal, task) = (shared.fatal.clone(), task_name(handle.id()));
        fatal.spawn(task, supervise::run(shared, handle, request, answer));
        // The task always answers, unless the runtime shuts down.
        launched.await.unwrap_or(Err(LaunchError::ShuttingDown))
    }

    async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.table.get(id)?.ended().await
    }

    fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        attach::attach(&self.0, id)
    }

    fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        attach::attach_first(&self.0, id)
    }

    fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        attach::attach_input(&self.0, id)
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        let Some(handle) = self.0.table.get(id).filter(|handle| handle.phase().is_live()) else {
            return Ok(false);
        };
        if signal == libc::SIGKILL || handle.phase() < Phase::Running {
            handle.request_stop(Cause::because(Reason::Killed, "the container was killed"));
            return Ok(true);
        }
        let refused = |source| KillError::Refused { id: id.clone(), signal, source };
        let pid = handle.record().process.map_or(0, |process| process.pid);
        let process = handle.open_process().map_err(|source| refused(ProcessError::Open { pid, source }))?;
        let Some(process) = process else {
            return Err(KillError::NoProcess { id: id.clone() });
        };
        self.0.launcher.signal(&process, signal).map_err(refused)?;
        Ok(true)
    }

    async fn force(&self, id: &ContainerId) -> bool {
        let live: Vec<_> =
            self.0.table.within(id).into_iter().filter(|handle| handle.phase().is_live()).collect();
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
        let (native, id) = (self.clone(), id.clone());
        uncancelled(async move { native.remove_here(&id).await }).await
    }

    async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        let (native, id) = (self.clone(), id.clone());
        uncancelled(async move { update::update(&native.0, &id, resources).await }).await
    }

    async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        reports::collect(&self.0, ids, wanted).await
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
        let participants = record.part.participants.iter();
        Some(Inspection {
            summary: handle.summary(),
            uid: record.uid,
            sandbox: record.sandbox.clone(),
            logs: record.logs.clone(),
            plan: init_plan::entries(&record),
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

/// What supervises a container, as part of an error.
fn task_name(id: &ContainerId) -> String {
    format!("the task that supervises container `{id}`")
}

fn failures(failed: &[CallError]) -> std::collections::BTreeMap<String, String> {
    failed.iter().map(|error| (error.plugin().to_owned(), error.to_string())).collect()
}

impl Shared {
    /// Adds a container to the table.
    fn admit(&self, request: &Request) -> Result<Arc<Handle>, LaunchError> {
        let id = request.id.clone();
        if let Some((foreign, reason)) = self.foreign.containing(&id) {
            return Err(LaunchError::Foreign { id, foreign, reason });
        }
        self.check_parent(&id)?;
        let part = NativeRecord {
            scratch: self.scratch(&id),
            cgroups: self.cgroups_of(&id),
            ..NativeRecord::default()
        };
        let mut record = Record::new(NAME, request.without_secrets(), self.boot_id.clone(), part);
        record.sandbox = self.sandbox(&id);
        let handle = self.table.insert(record).ok_or_else(|| self.duplicate(&id))?;
        // A parent that began to end before the insertion did not find the child in the table; one that begins
        // later will. One in between may already be waiting for the child.
        self.check_parent(&id).inspect_err(|_| {
            self.table.remove(&id);
            handle.update_in_memory(|record| record.phase = Phase::Ended);
            handle.announce_end(Termination {
                reason: Some(Reason::ParentEnded),
                at_unix_ms: now_unix_ms(),
                ..Termination::default()
            });
        })?;
        Ok(handle)
    }

    /// Resolves when a descriptor that was created now is to be stored: after a while, or at once if there are many.
    async fn stored_from_now(&self) {
        if let Ok(_recent) = self.recent.try_acquire() {
            tokio::time::sleep(STORE_AFTER).await;
        }
    }

    fn duplicate(&self, id: &ContainerId) -> LaunchError {
        match self.table.get(id) {
            Some(handle) => LaunchError::taken(&handle.summary()),
            // It was removed just now.
            None => LaunchError::Duplicate { id: id.clone() },
        }
    }

    /// Checks that the parent of a nested container is running.
    fn check_parent(&self, id: &ContainerId) -> Result<(), LaunchError> {
        let Some(parent) = id.parent() else { return Ok(()) };
        let id = id.clone();
        match self.table.get(&parent).map(|handle| handle.phase()) {
            Some(Phase::Running) => Ok(()),
            Some(phase) => Err(LaunchError::ParentNotRunning { id, parent, phase }),
            None => Err(LaunchError::NoParent { id, parent }),
        }
    }

    /// Directory for what is removed when a container ends.
    fn scratch(&self, id: &ContainerId) -> PathBuf {
        nested_directory(&self.work_dir.join("scratch"), id)
    }

    /// Directory of a container's files and logs.
    ///
    /// Sandboxes of nested containers are beside those of their parents, not in them: a container writes to its
    /// own, and a link that it places there must not lead the agent anywhere.
    fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    fn sandboxes(&self) -> PathBuf {
        self.work_dir.join("containers")
    }

    /// A container's cgroups, as plugins see them.
    fn cgroups_of(&self, id: &ContainerId) -> cofferdam_plugin_model::Cgroups {
        let path = self.launcher.cgroup(id);
        path.map(|path| init_plan::cgroups(&self.cgroups, path)).unwrap_or_default()
    }

    /// Changes a container's record on disk and then in memory.
    async fn update_persisted(
        &self,
        handle: &Arc<Handle>,
        change: impl FnOnce(&mut Record<NativeRecord>) + Send + 'static,
    ) -> Result<(), LedgerError> {
        let (ledger, handle2) = (Arc::clone(&self.ledger), Arc::clone(handle));
        match self.pool.run(STALL_WARNING, move |_| handle2.update_persisted(&ledger, change)).await {
            Ok(outcome) => outcome,
            Err(abandoned) => {
                Err(LedgerError::Interrupted { id: handle.id().clone(), reason: abandoned.to_string() })
            }
        }
    }
}
