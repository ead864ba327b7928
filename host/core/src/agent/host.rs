//! What exists on the host for the agent rather than for a container: its threads, cgroups, keeper and scratch directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::cgroup::Cgroups;
use tokio::runtime::Handle;

use super::error::StartError;
use super::identity::instance_of;
use crate::blocking::{BlockingPool, Job, WorkPool};
use crate::config::{AgentConfig, LauncherKind};
use crate::keeper::{KeeperCgroups, Keepers};
use crate::launcher::{CgroupLimits, Launcher, Linux, Posix, Timeouts, effective_cgroup_root};
use crate::ledger::Ledger;
use crate::scratch;

/// A release that takes this long is reported.
const RELEASE_WARNING: Duration = Duration::from_secs(60);

/// What exists on the host for the agent.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) pool: BlockingPool,
    pub(super) launcher: Arc<dyn Launcher>,
    scratch: PathBuf,
}

impl Host {
    /// Sets it up. Blocks. What an earlier agent had is used again.
    pub(super) fn set_up(
        config: &AgentConfig,
        ledger: &Ledger,
        work_dir: &Path,
        cgroups: &Cgroups,
        cgroup_root: &Path,
        pool: BlockingPool,
        runtime: Handle,
    ) -> Result<Self, StartError> {
        let work = pool.work().clone();
        let launcher = launcher(config, cgroup_root, ledger, cgroups.clone(), runtime, work)?;
        let host = Self { pool, launcher, scratch: work_dir.join("scratch") };
        match scratch::prepare(&host.scratch, config.scratch_memory) {
            Ok(()) => Ok(host),
            Err(source) => {
                host.launcher.shutdown();
                Err(StartError::Scratch { path: host.scratch, source })
            }
        }
    }

    /// Releases it. Containers keep running.
    pub(super) async fn release(&self) {
        let host = self.clone();
        drop(self.pool.run(RELEASE_WARNING, move |_: &Job| host.release_blocking()).await);
    }

    /// As [`Self::release`], on this thread. What cannot be removed is used again by the next agent.
    pub(super) fn release_blocking(&self) {
        self.launcher.shutdown();
        if let Err(error) = scratch::release(&self.scratch) {
            tracing::warn!("cannot unmount `{}`: {error}", self.scratch.display());
        }
    }
}

/// The path below which the agent has its cgroups.
pub(super) fn cgroup_root(
    config: &AgentConfig,
    ledger: &Ledger,
    cgroups: &Cgroups,
) -> Result<PathBuf, StartError> {
    let runtime_dir = ledger.runtime_dir();
    match config.launcher {
        LauncherKind::Posix => Ok(config.cgroup_root.clone()),
        LauncherKind::Linux => {
            effective_cgroup_root(runtime_dir, cgroups, &config.cgroup_root, &instance_of(runtime_dir))
                .map_err(|source| StartError::CgroupRoot { runtime_dir: runtime_dir.to_owned(), source })
        }
    }
}

fn launcher(
    config: &AgentConfig,
    cgroup_root: &Path,
    ledger: &Ledger,
    cgroups: Cgroups,
    runtime: Handle,
    work: WorkPool,
) -> Result<Arc<dyn Launcher>, StartError> {
    let timeouts = Timeouts { launch: config.launch_timeout, destroy: config.destroy_timeout };
    let keepers = |cgroups| {
        let kill = config.kill_containers_with_agent;
        Keepers::open(ledger.runtime_dir(), cgroups, kill, config.keeper_timeout, runtime, work)
    };
    Ok(match config.launcher {
        LauncherKind::Posix => Arc::new(Posix::new(keepers(KeeperCgroups::default())?, timeouts)),
        LauncherKind::Linux => {
            let instance = instance_of(ledger.runtime_dir());
            let limits =
                CgroupLimits { descendants: config.cgroup_max_descendants, depth: config.cgroup_max_depth };
            Arc::new(Linux::new(cgroups, cgroup_root, &instance, keepers, timeouts, limits)?)
        }
    })
}
