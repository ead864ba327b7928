//! What exists on the host for the agent rather than for a container: its threads, cgroups, keeper and scratch directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::cgroup::Cgroups;
use tokio::runtime::Handle;

use super::error::StartError;
use super::identity::instance_of;
use crate::blocking::{BlockingPool, Job, WorkPool};
use crate::config::{AgentConfig, ContainerizerConfig, DockerConfig, LauncherKind};
use crate::containerizer::docker::agent_container::{AgentContainerError, check_directories, check_keeper};
use crate::keeper::{KeeperCgroups, KeeperError, Keepers};
use crate::launcher::{CgroupLimits, Launcher, Linux, Posix, SetUpError, Timeouts, effective_cgroup_root};
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
        host.check_agent_container(config, &[ledger.runtime_dir(), work_dir])
            .and_then(|()| host.prepare_scratch(config))
            .inspect_err(|_| host.launcher.shutdown())?;
        Ok(host)
    }

    /// Checks that containers can outlive an agent that is in a container itself. Of the agent's `directories`, the engine mounts
    /// parts into containers.
    fn check_agent_container(&self, config: &AgentConfig, directories: &[&Path]) -> Result<(), StartError> {
        let Some(docker) = agent_container(config) else { return Ok(()) };
        check_directories(docker.engine.socket(), directories)?;
        // Without a keeper, for lack of space, nothing is launched before one is started: in the same cgroups.
        Ok(self.launcher.keepers().view().pid.map_or(Ok(()), check_keeper)?)
    }

    fn prepare_scratch(&self, config: &AgentConfig) -> Result<(), StartError> {
        let scratch_error = |source| StartError::Scratch { path: self.scratch.clone(), source };
        scratch::prepare(&self.scratch, config.scratch_memory).map_err(scratch_error)
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

/// Those of the machine.
pub(super) fn mounted_cgroups() -> Result<Cgroups, StartError> {
    Cgroups::detect().map_err(|source| StartError::Kernel { what: "the mounted cgroup hierarchies", source })
}

/// The engine in a container of which the agent is, if it is in one.
fn agent_container(config: &AgentConfig) -> Option<&DockerConfig> {
    config.containerizers.iter().find_map(|containerizer| match containerizer {
        ContainerizerConfig::Docker(docker) => docker.mesos_image.as_ref().map(|_| docker),
        ContainerizerConfig::Mesos => None,
    })
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
    let outside = match agent_container(config) {
        Some(_) => Some(mounted_cgroups()?),
        None => None,
    };
    let keepers = |mut cgroups: KeeperCgroups| {
        if let Some(machine) = &outside {
            cgroups = cgroups.and_roots(machine).map_err(KeeperError::Cgroups)?;
        }
        let kill = config.kill_containers_with_agent;
        Keepers::open(ledger.runtime_dir(), cgroups, kill, config.keeper_timeout, runtime, work)
    };
    Ok(match config.launcher {
        LauncherKind::Posix => Arc::new(Posix::new(keepers(KeeperCgroups::default())?, timeouts)),
        LauncherKind::Linux => {
            let instance = instance_of(ledger.runtime_dir());
            let limits =
                CgroupLimits { descendants: config.cgroup_max_descendants, depth: config.cgroup_max_depth };
            let launcher = Linux::new(cgroups, cgroup_root, &instance, keepers, timeouts, limits);
            Arc::new(launcher.map_err(|error| match error {
                SetUpError::Keeper(error) => StartError::Keeper(error),
                error if outside.is_some() => AgentContainerError::Launcher(error).into(),
                error => StartError::Launcher(error),
            })?)
        }
    })
}
