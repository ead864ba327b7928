//! The native containerizer: containers made of processes, by the plugin chain and a launcher.
//!
//! ```text
//!            launch.rs   launch, a sequence of stages           recover.rs  containers of an earlier agent
//!                │                                                  │
//!                ▼                                                  ▼
//!   mod.rs ── supervise.rs  what tells that a running container has to end
//!                │
//!                ▼
//!            destroy.rs  teardown, the same for a failed launch, a kill, a limitation, an exit and a restart
//! ```
//!
//! These are the steps of a backend; `../lifecycle` calls them.

mod begin;
mod create;
mod destroy;
mod init_plan;
mod launch;
mod phase;
mod progress;
mod provide;
mod record;
mod recover;
mod reports;
mod supervise;
mod update;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::process::ProcessError;
use tokio::sync::Semaphore;

use super::lifecycle::{self, Backend};
use super::{KillError, LaunchError};
use crate::descriptor_store::DescriptorStore;
use crate::launcher::Launcher;
use crate::ledger::nested_directory;
use crate::model::view::{PlanEntry, Report, WantedReports};
use crate::model::{ContainerId, Record, Request};
use crate::plugin::CallError;
use crate::provisioner::Provisioner;

pub(crate) use init_plan::cgroups as plugin_cgroups;
pub use record::NativeRecord;
pub(crate) use record::NativeTable;

use record::Handle;

/// Name in the configuration and in records.
pub(super) const NAME: &str = "mesos";

/// How long descriptors of a container stay in the process's table: many containers end before that.
const STORE_AFTER: Duration = Duration::from_secs(1);

/// Teardowns that run at a time, unless some take long.
pub(crate) const TEARDOWNS: usize = 8;

/// Makes containers of processes.
pub(crate) struct Native {
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) provisioner: Provisioner,
    pub(crate) descriptors: DescriptorStore,
    /// Containers whose descriptors are still in the process's table.
    pub(crate) recent: Semaphore,
    /// Teardowns that may run at a time.
    pub(crate) teardowns: Semaphore,
    pub(crate) cgroups: Cgroups,
    /// `RLIMIT_NOFILE` (soft, hard) of commands for which no plugin sets one; the agent's own if `None`.
    pub(crate) nofile: Option<(u64, u64)>,
    /// Whether containers may be launched from images.
    pub(crate) images: bool,
}

type Shared = lifecycle::Shared<Native>;

impl Backend for Native {
    type Part = NativeRecord;

    const NAME: &'static str = NAME;
    const SANDBOXES: &'static str = "containers";
    const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

    fn part(shared: &Shared, request: &Request) -> NativeRecord {
        NativeRecord {
            scratch: shared.scratch(&request.id),
            cgroups: shared.cgroups_of(&request.id),
            ..NativeRecord::default()
        }
    }

    async fn signal(shared: &Shared, handle: &Handle, signal: i32) -> Result<bool, KillError> {
        let id = handle.id();
        let refused = |source| KillError::Refused { id: id.clone(), signal, source };
        let pid = handle.record().process.map_or(0, |process| process.pid);
        let process = handle.open_process().map_err(|source| refused(ProcessError::Open { pid, source }))?;
        let process = process.ok_or_else(|| KillError::NoProcess { id: id.clone() })?;
        shared.backend.launcher.signal(&process, signal).map_err(refused)?;
        Ok(true)
    }

    async fn reports(shared: &Arc<Shared>, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        reports::collect(shared, ids, wanted).await
    }

    fn plan(record: &Record<NativeRecord>) -> Vec<PlanEntry> {
        init_plan::entries(record)
    }
}

fn failures(failed: &[CallError]) -> std::collections::BTreeMap<String, String> {
    failed.iter().map(|error| (error.plugin().to_owned(), error.to_string())).collect()
}

impl Shared {
    /// Resolves when a descriptor that was created now is to be stored: after a while, or at once if there are many.
    async fn stored_from_now(&self) {
        if let Ok(_recent) = self.backend.recent.try_acquire() {
            tokio::time::sleep(STORE_AFTER).await;
        }
    }

    /// Directory for what is removed when a container ends.
    fn scratch(&self, id: &ContainerId) -> PathBuf {
        nested_directory(&self.work_dir.join("scratch"), id)
    }

    /// A container's cgroups, as plugins see them.
    fn cgroups_of(&self, id: &ContainerId) -> cofferdam_plugin_model::Cgroups {
        let path = self.backend.launcher.cgroup(id);
        path.map(|path| init_plan::cgroups(&self.backend.cgroups, path)).unwrap_or_default()
    }
}
