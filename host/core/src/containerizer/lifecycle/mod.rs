//! The life of a container from its admission to its removal: the same for all containerizers.
//!
//! ```text
//!   admit ─▶ launch ─▶ supervise ─▶ teardown ─▶ remove
//!               └ failed ──────────────▲
//!   recover ─▶ supervise, or ──────────┘             update, attach: while it is running
//! ```
//!
//! What is particular to the containers of one containerizer is its [`Backend`], and the steps that each part of this
//! module leaves to it: [`Launch`], [`Teardown`], [`Update`], [`Recover`]. [`Containers`] makes a containerizer of these.
//!
//! Each container has one task, which alone changes its phase. Everyone else has a `ContainerHandle`: its record, and a place
//! for a stop request. Calls that do not concern its lifetime (usage, status, update, signals) take its operation lock.

mod admit;
mod attach;
mod containers;
mod directories;
mod launch;
mod lost_output;
mod missed;
mod recover;
mod remove;
mod teardown;
mod update;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::handle::ContainerHandle;
use super::record_part::RecordPart;
use super::table::Table;
use super::{Foreign, KillError, RemoveError};
use crate::blocking::BlockingPool;
use crate::chain::Chain;
use crate::fatal::FatalErrors;
use crate::fetcher::Fetcher;
use crate::hooks::Hooks;
use crate::ledger::{Ledger, LedgerError};
use crate::model::view::{PlanEntry, Report, WantedReports};
use crate::model::{ContainerId, Record, Request};

pub(crate) use containers::Containers;
pub(super) use directories::{Extent, remove_directory};
pub(super) use launch::{Launch, Launched, supervise};
pub(super) use lost_output::{end_switchboard, report_lost_output};
pub(super) use recover::{Recover, RecoveryAction};
pub(super) use remove::remove_known;
pub(super) use teardown::{
    Attempt, PROMPT, Retention, Teardown, TeardownError, cleaned_up, in_job, record_end, remove_large,
};
pub(super) use update::{FailedUpdate, Failure, Rollback, States, Update, roll_back_interrupted};

/// Blocking work of the agent itself that takes this long is reported; it is never abandoned.
pub(super) const STALL_WARNING: Duration = Duration::from_secs(60);

/// What supervises a container, as part of an error.
pub(super) fn task_name(id: &ContainerId) -> String {
    format!("the task that supervises container `{id}`")
}

/// What makes containers of one kind, such as a launcher or an engine.
pub(crate) trait Backend: Sized + Send + Sync + 'static {
    /// Its part of a record.
    type Part: RecordPart;

    /// Name of the containerizer in the configuration and in records.
    const NAME: &'static str;

    /// Directory of the sandboxes in the work directory. Each containerizer has its own: after a reboot, those without a
    /// record tell of which one they were.
    const SANDBOXES: &'static str;

    /// Pause before what failed at the end of a container, or in a roll back, is retried: the first, and the longest.
    const BACKOFF: (Duration, Duration);

    /// Its part of the record of a container that is admitted.
    fn part(shared: &Shared<Self>, request: &Request) -> Self::Part;

    /// Sends a signal, which is not SIGKILL, to a container that has been launched and has not ended. Returns false if it has
    /// ended meanwhile.
    fn signal(
        shared: &Shared<Self>,
        handle: &Handle<Self>,
        signal: i32,
    ) -> impl Future<Output = Result<bool, KillError>> + Send;

    /// What is reported about containers, in the order of `ids`. Nothing about those that are not running.
    fn reports(
        shared: &Arc<Shared<Self>>,
        ids: &[ContainerId],
        wanted: WantedReports,
    ) -> impl Future<Output = Vec<Report>> + Send;

    /// What a container was launched with, for those who inspect it.
    fn plan(record: &Record<Self::Part>) -> Vec<PlanEntry>;

    /// Removes what the end of a container has left, before its id may be that of another one.
    fn before_removal(
        _shared: &Shared<Self>,
        _handle: &Handle<Self>,
    ) -> impl Future<Output = Result<(), RemoveError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// A container of a backend.
pub(crate) type Handle<B> = ContainerHandle<<B as Backend>::Part>;

/// What the tasks of all containers of a containerizer share.
pub(crate) struct Shared<B: Backend> {
    pub(crate) fatal: FatalErrors,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) chain: Chain,
    pub(crate) fetcher: Fetcher,
    pub(crate) hooks: Hooks,
    pub(crate) pool: BlockingPool,
    pub(crate) table: Arc<Table<B::Part>>,
    pub(crate) foreign: Arc<Foreign>,
    pub(crate) work_dir: PathBuf,
    pub(crate) boot_id: String,
    pub(crate) backend: B,
}

impl<B: Backend> Shared<B> {
    /// Directory of a container's files and logs.
    ///
    /// Sandboxes of nested containers are beside those of their parents, not in them: a container writes to its
    /// own, and a link that it places there must not lead the agent anywhere.
    pub(super) fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    fn sandboxes(&self) -> PathBuf {
        self.work_dir.join(B::SANDBOXES)
    }

    /// Whether a container is still in the table. It may have been removed, and its id be that of a new container.
    pub(super) fn is_known(&self, handle: &Arc<Handle<B>>) -> bool {
        self.table.get(handle.id()).is_some_and(|known| Arc::ptr_eq(&known, handle))
    }

    /// Changes a container's record on disk and then in memory.
    pub(super) async fn update_persisted(
        &self,
        handle: &Arc<Handle<B>>,
        change: impl FnOnce(&mut Record<B::Part>) + Send + 'static,
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
