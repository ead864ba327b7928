//! The native containerizer: containers made of processes, by the chain and a launcher.
//!
//! ```text
//!            launch.rs  the way up, a straight line             recover.rs  what an earlier agent left
//!                │                                                  │
//!                ▼                                                  ▼
//!   mod.rs ── task.rs  the one owner of a container from its first moment to its last
//!                │
//!                ▼
//!            destroy.rs  the way down, the same for failure, kill, limit and restart
//! ```
//!
//! Everyone else holds a `Cell`: a container's record to look at, and a place to leave the wish that it
//! end. Only its task acts on it, except for calls that change nothing of its life (usage, status, update,
//! signals), which take their turn one after the other.

mod begin;
mod birth;
mod cell;
mod destroy;
mod error;
mod launch;
mod recover;
mod streams;
mod table;
mod task;
mod translate;
mod user;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::chain::Chain;
use crate::container::{ContainerId, Phase, Reason, Request, Resources, Termination, check_resources};
use crate::errand::Errands;
use crate::fetcher::Fetcher;
use crate::launcher::Launcher;
use crate::ledger::{Cause, Ledger, Lock, Record, folder_below, now_unix_ms};
use crate::view::{Inspection, Served, StatusView, Summary, UsageView};

pub use error::{KillError, LaunchError, RemoveError, UpdateError};
pub use recover::RecoverError;
pub use table::Table;

use cell::Cell;

/// Work of the agent itself that takes this long is reported; it is never given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The native containerizer. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Native(Arc<House>);

/// What every container's task works with.
pub(crate) struct House {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) chain: Chain,
    pub(crate) launcher: Box<dyn Launcher>,
    pub(crate) fetcher: Fetcher,
    pub(crate) errands: Errands,
    pub(crate) table: Arc<Table>,
    pub(crate) work_dir: PathBuf,
    /// Keeps other agents out of the work directory, unless the ledger does.
    pub(crate) _work_lock: Option<Lock>,
    pub(crate) cgroups: cofferdam_linux::cgroup::Cgroups,
    pub(crate) boot_id: String,
    /// How many descriptors a command may open if no plugin says otherwise: what this process was allowed
    /// before it allowed itself more.
    pub(crate) descriptors: Option<(u64, u64)>,
}

/// A container that was launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// Its first process, as the host sees it.
    pub pid: i32,
}

impl Native {
    pub(crate) fn new(house: House) -> Self {
        Self(Arc::new(house))
    }

    /// Takes over what an earlier agent left: see `recover.rs`. Comes once, before any launch.
    ///
    /// # Errors
    /// When the ledger or the launcher's traces cannot be read.
    pub(crate) async fn recover(&self) -> Result<recover::Recovered, recover::RecoverError> {
        recover::recover(&self.0).await
    }

    /// Launches a container, or leaves no trace of it.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left of the container then, and its waiters are answered.
    pub async fn launch(&self, request: Request) -> Result<Launched, LaunchError> {
        request.check()?;
        let house = Arc::clone(&self.0);
        let cell = house.admit(request)?;
        let (tell, told) = oneshot::channel();
        tokio::spawn(task::live(house, cell, tell));
        // The task answers, whatever happens; only the end of the runtime can silence it.
        told.await.unwrap_or(Err(LaunchError::ShuttingDown))
    }

    /// Waits for a container to have ended and been cleaned up. `None` for one that nobody knows.
    pub async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.table.get(id)?.ended().await
    }

    /// Sends a signal to a container's command; SIGKILL ends the container as a whole.
    ///
    /// Answers false for a container that nobody knows, or that has ended.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        let Some(cell) = self.0.table.get(id).filter(|cell| cell.phase().is_live()) else {
            return Ok(false);
        };
        if signal == libc::SIGKILL || cell.phase() < Phase::Running {
            cell.end(Cause::because(Reason::Killed, "the container was killed"));
            return Ok(true);
        }
        cell.signal(signal)?;
        Ok(true)
    }

    /// Ends a container and waits until nothing is left of it. `None` for one that nobody knows.
    pub async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        let cell = self.0.table.get(id)?;
        cell.end(Cause::because(Reason::Killed, "the container was destroyed"));
        cell.ended().await
    }

    /// Forgets a container that has ended: its record and its sandbox, and those nested in it.
    ///
    /// Answers false for a container that nobody knows: it is forgotten already.
    ///
    /// # Errors
    /// [`RemoveError::StillLive`] when it has not ended.
    pub async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        let (native, id) = (self.clone(), id.clone());
        to_the_end(async move { native.remove_here(&id).await }).await
    }

    async fn remove_here(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        let house = &self.0;
        let Some(cell) = house.table.get(id) else { return Ok(false) };
        let _turn = cell.turn().await;
        // Somebody else may have removed it meanwhile, and the id may be that of a new container.
        if !house.table.get(id).is_some_and(|known| Arc::ptr_eq(&known, &cell)) {
            return Ok(false);
        }
        let going = house.table.within(id);
        if let Some(live) = going.iter().find(|cell| cell.phase().is_live()) {
            return Err(RemoveError::StillLive { id: live.id().clone(), phase: live.phase() });
        }
        let (ledger, gone) = (Arc::clone(&house.ledger), id.clone());
        let id = id.clone();
        house
            .errands
            .run(PATIENCE, move |_| {
                for cell in going.iter().rev() {
                    let path = cell.record().sandbox.clone();
                    destroy::remove_tree(&path).map_err(|source| RemoveError::Sandbox {
                        id: cell.id().clone(),
                        path,
                        source,
                    })?;
                }
                ledger.remove(&id).map_err(RemoveError::from)
            })
            .await
            .unwrap_or(Err(RemoveError::Interrupted))?;
        house.table.forget(&gone);
        Ok(true)
    }

    /// Changes what a container may use, all of it or nothing.
    ///
    /// # Errors
    /// [`UpdateError`] says which plugin refused; the others were told to go back.
    pub async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        let (native, id) = (self.clone(), id.clone());
        to_the_end(async move { native.update_here(&id, resources).await }).await
    }

    async fn update_here(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        check_resources(id, &resources)?;
        let house = &self.0;
        let unknown = || UpdateError::Unknown { id: id.clone() };
        let cell = house.table.get(id).ok_or_else(unknown)?;
        let _turn = cell.turn().await;
        let phase = cell.phase();
        if phase != Phase::Running {
            return Err(if phase.is_live() {
                UpdateError::NotRunning { id: id.clone(), phase }
            } else {
                unknown()
            });
        }
        let intended = resources.clone();
        let intent = house.amend(&cell, |record| record.updating = Some(intended)).await;
        intent.map_err(|source| UpdateError::Intent { id: id.clone(), source })?;
        let from = cell.record().resources.clone();
        match house.chain.update(&cell.case(), from, resources.clone()).await {
            Ok(states) => house.amend(&cell, |record| record.updated(resources, states)).await?,
            Err(refusal) => {
                // Left on record, it would be undone once more by the next agent, which does no harm.
                if let Err(error) = house.amend(&cell, |record| record.updating = None).await {
                    tracing::warn!(container = %id, "{}", crate::report::chain(&error));
                }
                return Err(refusal.into());
            }
        }
        Ok(())
    }

    /// What a container uses. `None` for one that nobody knows or that does not run.
    pub async fn usage(&self, id: &ContainerId) -> Option<UsageView> {
        let (native, id) = (self.clone(), id.clone());
        to_the_end(async move { native.usage_here(&id).await }).await
    }

    async fn usage_here(&self, id: &ContainerId) -> Option<UsageView> {
        let cell = self.0.table.get(id).filter(|cell| cell.phase() == Phase::Running)?;
        let said = {
            let _turn = cell.turn().await;
            self.0.chain.usage(&cell.case()).await
        };
        let mut view = UsageView {
            #[expect(clippy::cast_precision_loss, reason = "good for 285,000 years")]
            timestamp: now_unix_ms() as f64 / 1000.0,
            ..UsageView::default()
        };
        for (plugin, usage) in said.answers {
            for (name, value) in usage.0 {
                view.owners.insert(name.clone(), plugin.clone());
                view.statistics.insert(name, value);
            }
        }
        view.failed = said.failed.iter().map(|e| (e.plugin().to_owned(), e.to_string())).collect();
        Some(view)
    }

    /// How a container is. `None` for one that nobody knows or that does not run.
    pub async fn status(&self, id: &ContainerId) -> Option<StatusView> {
        let (native, id) = (self.clone(), id.clone());
        to_the_end(async move { native.status_here(&id).await }).await
    }

    async fn status_here(&self, id: &ContainerId) -> Option<StatusView> {
        let cell = self.0.table.get(id).filter(|cell| cell.phase() == Phase::Running)?;
        let said = {
            let _turn = cell.turn().await;
            self.0.chain.status(&cell.case()).await
        };
        let mut view = StatusView::default();
        if let Some(born) = cell.record().process {
            view.status.insert("executor_pid".into(), born.pid.into());
            view.owners.insert("executor_pid".into(), "agent".into());
        }
        for (plugin, status) in said.answers {
            for (name, value) in status.0 {
                view.owners.insert(name.clone(), plugin.clone());
                view.status.insert(name, value);
            }
        }
        view.failed = said.failed.iter().map(|e| (e.plugin().to_owned(), e.to_string())).collect();
        Some(view)
    }

    /// All containers, parents before children.
    #[must_use]
    pub fn containers(&self) -> Vec<Summary> {
        self.0.table.all().iter().map(|cell| cell.summary()).collect()
    }

    /// Everything that is known of a container.
    #[must_use]
    pub fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        let cell = self.0.table.get(id)?;
        let record = cell.record();
        Some(Inspection {
            summary: cell.summary(),
            sandbox: record.sandbox.clone(),
            logs: record.logs.clone(),
            plan: translate::entries(&record),
            plugins: record
                .parties
                .iter()
                .map(|party| Served {
                    plugin: party.plugin.clone(),
                    version: Some(party.version.to_string()),
                    state: party.state.clone(),
                    refused: party.absent.clone(),
                })
                .collect(),
            request: record.request.clone(),
        })
    }

    /// Removes what is there for the agent rather than for a container.
    pub(crate) async fn leave(&self) {
        let house = Arc::clone(&self.0);
        // What is left is found and used again by the next agent.
        drop(self.0.errands.run(PATIENCE, move |_| house.launcher.leave()).await);
    }

    /// Ends every container. Answers those that are not gone after `patience`.
    pub async fn end_all(&self, patience: Duration) -> Vec<ContainerId> {
        let live: Vec<Arc<Cell>> =
            self.0.table.all().into_iter().filter(|cell| cell.phase().is_live()).collect();
        for cell in &live {
            cell.end(Cause::because(Reason::Killed, "all containers were ended"));
        }
        let deadline = tokio::time::Instant::now() + patience;
        let mut left = Vec::new();
        for cell in live {
            if tokio::time::timeout_at(deadline, cell.ended()).await.is_err() {
                left.push(cell.id().clone());
            }
        }
        left
    }
}

/// Does work that must not be left half done, whether or not anybody still waits for it: a client may go
/// away at any time, and what its call holds (a container's turn) or owes (a record) would be lost.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

impl House {
    /// Puts a container into the table, if there is a place for it.
    fn admit(&self, request: Request) -> Result<Arc<Cell>, LaunchError> {
        let id = request.id.clone();
        self.check_parent(&id)?;
        let mut record = Record::new(request, self.boot_id.clone());
        record.created_unix_ms = now_unix_ms();
        record.sandbox = self.sandbox(&id);
        record.scratch = self.scratch(&id);
        record.cgroups = self.cgroups_of(&id);
        let cell = self.table.admit(record).ok_or_else(|| LaunchError::Duplicate { id: id.clone() })?;
        // A parent that began to end before this looks was not told of the child by the table; one that
        // begins later is. One in between may be waiting for the child already.
        self.check_parent(&id).inspect_err(|_| {
            self.table.forget(&id);
            cell.note(|record| record.phase = Phase::Ended);
            cell.announce(Termination {
                reason: Some(Reason::ParentEnded),
                at_unix_ms: now_unix_ms(),
                ..Termination::default()
            });
        })?;
        Ok(cell)
    }

    /// A nested container needs a parent that runs.
    fn check_parent(&self, id: &ContainerId) -> Result<(), LaunchError> {
        let Some(parent) = id.parent() else { return Ok(()) };
        let id = id.clone();
        match self.table.get(&parent).map(|cell| cell.phase()) {
            Some(Phase::Running) => Ok(()),
            Some(phase) => Err(LaunchError::ParentNotRunning { id, parent, phase }),
            None => Err(LaunchError::NoParent { id, parent }),
        }
    }

    /// Where what ends with a container is.
    fn scratch(&self, id: &ContainerId) -> PathBuf {
        folder_below(&self.work_dir.join("scratch"), id)
    }

    /// Where a container's files and logs are.
    ///
    /// Those of nested ones lie beside their parents', not in them: a container writes to its own, and a link that it
    /// puts there must not lead us anywhere.
    fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    fn sandboxes(&self) -> PathBuf {
        self.work_dir.join("containers")
    }

    /// Where a container's control groups are, for plugins.
    fn cgroups_of(&self, id: &ContainerId) -> cofferdam_plugin_model::Cgroups {
        match self.launcher.cgroup(id.as_str()) {
            Ok(Some(path)) => translate::cgroups(&self.cgroups, path),
            _ => cofferdam_plugin_model::Cgroups::default(),
        }
    }

    /// Changes a container's record, on disk and then in memory.
    async fn amend(
        &self,
        cell: &Arc<Cell>,
        change: impl FnOnce(&mut Record) + Send + 'static,
    ) -> Result<(), crate::ledger::LedgerError> {
        let (ledger, cell) = (Arc::clone(&self.ledger), Arc::clone(cell));
        match self.errands.run(PATIENCE, move |_| cell.amend(&ledger, change)).await {
            Ok(outcome) => outcome,
            // Nothing but a bug ends an errand without a plugin; the record on disk is then the older one.
            Err(abandoned) => {
                tracing::error!("{abandoned}");
                Ok(())
            }
        }
    }
}
