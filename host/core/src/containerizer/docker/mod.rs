//! The docker containerizer: containers of a container engine.
//!
//! ```text
//!            launch.rs   fetch, pull, create, attach, start     recover.rs  containers of an earlier agent
//!                │         spec.rs, parameters.rs: what the       │
//!                ▼         engine is asked for                    ▼
//!   mod.rs ── supervise.rs  the task that owns a container from its launch to its end
//!                │
//!                ▼
//!            destroy.rs  teardown          removal.rs  removes what has ended from the engine, later
//! ```
//!
//! The engine is a process that may be slow, stopped, or gone at any time. So whatever is asked of it has a deadline and can
//! be cancelled; the end of a container is seen on its pidfd; and a container whose engine does not answer is killed by the
//! agent. What is left in the engine is found by its labels, and removed when the engine answers again.

mod begin;
mod destroy;
mod hooks;
mod launch;
mod older_names;
mod parameters;
mod phase;
mod record;
mod recover;
mod removal;
mod spec;
mod supervise;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cofferdam_linux::cgroup::Cgroups;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::foreign::Foreign;
use super::sandboxes::is_directory;
use super::uncancelled::uncancelled;
use super::within::within;
use super::{
    Containerizer, KillError, LaunchError, LaunchOutcome, RecoverError, Recovery, RemoveError, UpdateError,
};
use crate::blocking::BlockingPool;
use crate::chain::Chain;
use crate::config::DockerConfig;
use crate::engine::{Client, Container};
use crate::error_chain;
use crate::fatal::FatalErrors;
use crate::fetcher::Fetcher;
use crate::hooks::Hooks;
use crate::keeper::Keepers;
use crate::ledger::{Entry, Ledger, LedgerError, Lock};
use crate::model::view::{Inspection, ParticipantView, PlanEntry, Report, Summary, WantedReports};
use crate::model::{
    Cause, ContainerId, Phase, Reason, Record, Request, Resources, Termination, check_resources,
};
use crate::switchboard::{AttachError, AttachedInput, Attachment};

pub use record::DockerRecord;
pub(crate) use record::DockerTable;

use record::Handle;
use spec::Spec;

/// Name in the configuration and in records: that of the Mesos containerizer.
pub(super) const NAME: &str = "docker";

/// Blocking work of the agent itself that takes this long is reported; it is never abandoned.
const STALL_WARNING: Duration = Duration::from_secs(60);

/// Pause before a teardown is retried: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// The docker containerizer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Docker(Arc<Shared>);

/// What the tasks of all containers share.
pub(crate) struct Shared {
    pub(crate) fatal: FatalErrors,
    pub(crate) ledger: Arc<Ledger>,
    /// The logger alone.
    pub(crate) chain: Chain,
    pub(crate) fetcher: Fetcher,
    pub(crate) hooks: Hooks,
    pub(crate) pool: BlockingPool,
    pub(crate) keepers: Arc<Keepers>,
    pub(crate) table: Arc<DockerTable>,
    pub(crate) foreign: Arc<Foreign>,
    pub(crate) work_dir: PathBuf,
    /// Keeps other agents out of the work directory, unless the ledger's lock does.
    pub(crate) _work_lock: Option<Arc<Lock>>,
    pub(crate) cgroups: Cgroups,
    pub(crate) boot_id: String,
    pub(crate) destroy_timeout: Duration,
    pub(crate) engine: Client,
    pub(crate) config: DockerConfig,
    /// Identifies the agent to the engine.
    pub(crate) agent: String,
    /// A container has ended, or has to be searched for.
    pub(crate) sweep: tokio::sync::Notify,
}

impl Docker {
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
        if handle.phase().is_live() {
            return Err(RemoveError::StillLive { id: id.clone(), phase: handle.phase() });
        }
        let record = handle.record();
        if !record.part.missed.is_empty() {
            let plugins = record.part.missed.iter().map(|missed| missed.plugin.clone()).collect();
            return Err(RemoveError::CleanupMissed { id: id.clone(), plugins });
        }
        // First: its name in the engine is that of the next container of this id.
        let removed = removal::remove(shared, &handle).await;
        removed.map_err(|source| RemoveError::Engine { id: id.clone(), source })?;
        shared.chain.removed(&handle.context()).await;
        let (shared2, id2) = (Arc::clone(shared), id.clone());
        let work = move |_: &_| {
            let path = record.sandbox.clone();
            destroy::remove_directory(&path).map_err(|source| RemoveError::Sandbox {
                id: id2.clone(),
                path,
                source,
            })?;
            shared2.ledger.remove(&id2).map_err(RemoveError::from)
        };
        shared.pool.run(STALL_WARNING, work).await.unwrap_or(Err(RemoveError::Interrupted))?;
        shared.table.remove(id);
        Ok(true)
    }

    async fn update_here(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        check_resources(id, &resources)?;
        let shared = &self.0;
        let unknown = || UpdateError::Unknown { id: id.clone() };
        let handle = shared.table.get(id).ok_or_else(unknown)?;
        let _op_lock = handle.op_lock().await;
        let phase = handle.phase();
        if phase != Phase::Running {
            return Err(if phase.is_live() {
                UpdateError::NotRunning { id: id.clone(), phase }
            } else {
                unknown()
            });
        }
        let resources = handle.record().resources.clone().updated(&resources);
        let target = resources.clone();
        let intent = shared.update_persisted(&handle, |record| record.updating = Some(target)).await;
        intent.map_err(|source| UpdateError::Intent { id: id.clone(), source })?;
        let record = handle.record();
        let updated = tokio::select! {
            biased;
            // Its end does not wait for an engine that does not answer, and its limits are of no use then.
            _ = handle.stop_requested() => {
                return Err(UpdateError::NotRunning { id: id.clone(), phase: Phase::Destroying });
            }
            updated = shared.apply_limits(&record, &resources) => updated,
        };
        let change = updated.is_ok().then_some(resources);
        // An engine that does not answer may have applied them: then a restarted agent applies the old ones.
        let is_known = !updated.as_ref().is_err_and(crate::engine::EngineError::is_outage);
        let written = shared
            .update_persisted(&handle, move |record| {
                record.updating = record.updating.take().filter(|_| !is_known);
                record.resources = change.unwrap_or_else(|| record.resources.clone());
            })
            .await;
        match updated {
            Ok(()) => Ok(written?),
            Err(source) => {
                // If the intent stays on record, a restarted agent applies the old resources once more.
                if let Err(error) = written {
                    tracing::warn!(container = %id, "{}", error_chain::describe(&error));
                }
                Err(UpdateError::Engine { id: id.clone(), source })
            }
        }
    }

    fn attachable(&self, id: &ContainerId) -> Result<Arc<Handle>, AttachError> {
        let handle = self.0.table.get(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })?;
        if handle.phase() != Phase::Running {
            return Err(AttachError::NotRunning { id: id.clone() });
        }
        if handle.record().part.switchboard.is_none() {
            return Err(AttachError::NotAttachable { id: id.clone() });
        }
        Ok(handle)
    }

    fn connect<T>(
        &self,
        handle: &Handle,
        connect: impl FnOnce(&std::path::Path) -> std::io::Result<T>,
    ) -> Result<T, AttachError> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        let id = handle.id().clone();
        connect(&self.0.ledger.directory(&id)).map_err(|source| match source.kind() {
            ConnectionRefused | NotFound => AttachError::NotRunning { id },
            _ => AttachError::Connection { id, source },
        })
    }
}

#[async_trait]
impl Containerizer for Docker {
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
        if request.docker.is_none() {
            return Ok(LaunchOutcome::NotSupported);
        }
        request.check()?;
        let shared = Arc::clone(&self.0);
        let spec = Spec::of(&request, &shared.sandbox(&request.id), &shared.config.sandbox_directory)?;
        let handle = shared.admit(&request)?;
        let (answer, launched) = oneshot::channel();
        let (fatal, task) = (shared.fatal.clone(), task_name(handle.id()));
        fatal.spawn(task, supervise::run(shared, handle, request, spec, answer));
        // The task always answers, unless the runtime shuts down.
        launched.await.unwrap_or(Err(LaunchError::ShuttingDown))
    }

    async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.table.get(id)?.ended().await
    }

    fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.connect(&*self.attachable(id)?, Attachment::connect)
    }

    fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        let handle = self.0.table.get(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })?;
        match handle.take_attachment() {
            Some(connection) => {
                let failed = |source| AttachError::Connection { id: id.clone(), source };
                Attachment::new(connection).map_err(failed)
            }
            None => self.connect(&*self.attachable(id)?, Attachment::connect),
        }
    }

    fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        self.connect(&*self.attachable(id)?, AttachedInput::connect)
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        let Some(handle) = self.0.table.get(id).filter(|handle| handle.phase().is_live()) else {
            return Ok(false);
        };
        if signal == libc::SIGKILL || handle.phase() < Phase::Running {
            handle.request_stop(Cause::because(Reason::Killed, "the container was killed"));
            return Ok(true);
        }
        if handle.phase() != Phase::Running {
            return Err(KillError::NoProcess { id: id.clone() });
        }
        let sent = self.0.engine.kill(&engine_name(&handle.record()), signal).await;
        sent.map_err(|source| KillError::Engine { id: id.clone(), signal, source })
    }

    async fn force(&self, id: &ContainerId) -> bool {
        let Some(handle) = self.0.table.get(id).filter(|handle| handle.phase().is_live()) else {
            return false;
        };
        handle.request_stop(Cause::because(Reason::Killed, "the end of the container was forced"));
        handle.force();
        true
    }

    async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        let handle = self.0.table.get(id)?;
        handle.request_stop(Cause::because(Reason::Killed, "the container was destroyed"));
        handle.ended().await
    }

    async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        let (docker, id) = (self.clone(), id.clone());
        uncancelled(async move { docker.remove_here(&id).await }).await
    }

    async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        let (docker, id) = (self.clone(), id.clone());
        uncancelled(async move { docker.update_here(&id, resources).await }).await
    }

    async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        let mut asking = JoinSet::new();
        for (index, id) in ids.iter().enumerate() {
            let Some(handle) = self.0.table.get(id) else { continue };
            if handle.phase() == Phase::Running {
                let shared = Arc::clone(&self.0);
                asking.spawn(async move { (index, usage::report(&shared, &handle, wanted).await) });
            }
        }
        let mut reports = vec![Report::default(); ids.len()];
        let collect = async {
            while let Some(asked) = asking.join_next().await {
                let Ok((index, report)) = asked else { continue };
                if let Some(slot) = reports.get_mut(index) {
                    *slot = report;
                }
            }
        };
        within(wanted.within, collect).await;
        reports
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
        let entry = |field: &str, value: String, owner: &str| PlanEntry {
            field: field.to_owned(),
            value,
            owner: owner.to_owned(),
        };
        let image =
            record.request.docker.as_ref().map(|docker| entry("image", docker.image.clone(), "request"));
        let engine_id = record.part.engine_id.clone().map(|id| entry("engine_id", id, "engine"));
        let name = entry("name", record.part.name.clone(), "agent");
        let participants = record.part.participants.iter();
        Some(Inspection {
            summary: handle.summary(),
            sandbox: record.sandbox.clone(),
            logs: record.logs.clone(),
            plan: image.into_iter().chain([name]).chain(engine_id).collect(),
            plugins: participants
                .map(|participant| ParticipantView {
                    plugin: participant.plugin.clone(),
                    version: Some(participant.version.to_string()),
                    state: participant.state.clone(),
                    unavailable: participant.unavailable.clone(),
                })
                .collect(),
            request: record.request.clone(),
            uid: record.uid,
        })
    }
}

/// What supervises a container, as part of an error.
fn task_name(id: &ContainerId) -> String {
    format!("the task that supervises container `{id}`")
}

/// An error of the agent itself.
fn internal(handle: &Handle, reason: &str) -> LaunchError {
    LaunchError::Internal { id: handle.id().clone(), reason: reason.to_owned() }
}

/// How the engine knows a container: by its id, or by its name as long as that is not known.
fn engine_name(record: &Record<DockerRecord>) -> String {
    record.part.engine_id.clone().unwrap_or_else(|| record.part.name.clone())
}

/// Whether a container that the engine lists under a name has that which the agent gives to one of an id.
fn is_named_after(listed: &str, id: &ContainerId) -> bool {
    let name = listed.strip_prefix('/').unwrap_or_default();
    name == spec::name(id) || name == spec::executor_name(id)
}

/// The addresses of a container, by network.
fn addresses(container: &Container) -> BTreeMap<String, Vec<String>> {
    let networks = container.network_settings.networks.iter();
    networks
        .map(|(name, endpoint)| {
            let addresses = [&endpoint.ip_address, &endpoint.ipv6_address].into_iter();
            (name.clone(), addresses.filter(|address| !address.is_empty()).cloned().collect())
        })
        .collect()
}

impl Shared {
    /// Adds a container to the table.
    fn admit(&self, request: &Request) -> Result<Arc<Handle>, LaunchError> {
        let id = request.id.clone();
        if let Some((foreign, reason)) = self.foreign.containing(&id) {
            return Err(LaunchError::Foreign { id, foreign, reason });
        }
        let part = DockerRecord { name: spec::name_of(request), ..DockerRecord::default() };
        let mut record = Record::new(NAME, request.without_secrets(), self.boot_id.clone(), part);
        record.sandbox = self.sandbox(&id);
        self.table.insert(record).ok_or_else(|| match self.table.get(&id) {
            Some(handle) => LaunchError::taken(&handle.summary()),
            // It was removed just now.
            None => LaunchError::Duplicate { id },
        })
    }

    /// Directory of a container's files and logs.
    fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// Apart from those of native containers: after a reboot, those without a record tell what they were.
    fn sandboxes(&self) -> PathBuf {
        self.work_dir.join("docker")
    }

    /// Whether a container of the engine is the one of a record. Labels alone do not tell: those of an image are also those
    /// of its containers, and `docker commit` makes an image with the labels of a container.
    fn owns(&self, container: &Container, record: &Record<DockerRecord>) -> bool {
        let labels = &container.config.labels;
        let engine_id = record.part.engine_id.as_ref();
        if !is_named_after(&container.name, &record.id) || engine_id.is_some_and(|id| *id != container.id) {
            return false;
        }
        let is = |label: &str, value: &str| labels.get(label).is_some_and(|found| found == value);
        is(spec::AGENT_LABEL, &self.agent)
            && is(spec::CONTAINER_LABEL, record.id.as_str())
            // Of a record that was lost, any launch will do.
            && (record.created_unix_ms == 0 || is(spec::LAUNCH_LABEL, &record.created_unix_ms.to_string()))
    }

    /// Has the engine apply the limits of resources.
    async fn apply_limits(
        &self,
        record: &Record<DockerRecord>,
        resources: &Resources,
    ) -> Result<(), crate::engine::EngineError> {
        let mut limits = spec::limits(resources);
        // A limit of memory and swap that is lower than that of memory would be refused. Twice the memory is what the engine
        // sets by itself.
        let memory = limits.get("Memory").and_then(serde_json::Value::as_i64);
        let has_swap = |key: &str| key == "memory-swap";
        let options = record.request.docker.as_ref();
        let own_swap = options.is_some_and(|docker| docker.parameters.iter().any(|it| has_swap(&it.key)));
        if let (Some(memory), false) = (memory, own_swap) {
            let swap = memory.saturating_mul(2).min(spec::UNLIMITED_MEMORY);
            limits.insert("MemorySwap".into(), swap.into());
        }
        self.engine.update(&engine_name(record), &serde_json::Value::Object(limits)).await
    }

    /// Changes a container's record on disk and then in memory.
    async fn update_persisted(
        &self,
        handle: &Arc<Handle>,
        change: impl FnOnce(&mut Record<DockerRecord>) + Send + 'static,
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
