//! Launchers create the first process of a container, and guarantee that no process of it survives `destroy`.
//!
//! They do not know images, resources or plugins. All calls block, so they run in the blocking pool. Calls for one
//! container do not overlap, except that `destroy` may be called while [`PendingInit::start`] waits, and ends it.
//!
//! ```text
//! create_cgroup ──▶ create ──▶ PendingInit::start ──▶ (it runs, it ends) ──▶ destroy ──▶ cleanup
//!                     │             └─ failed, and reaped ─────────────────────▲
//!                     └─ failed: no process was created ───────────────────────┘
//! ```

mod cgroup_root;
mod escape;
mod linux;
mod pending_init;
mod posix;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_init::client::MAX_DESCRIPTORS;
use cofferdam_linux::cgroup::{CgroupError, KillError};
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, ProcessError};
use cofferdam_plugin_model::ContainerId;

use crate::keeper::{KeeperError, KeeperSlot, Keepers};

pub use cgroup_root::effective_cgroup_root;
pub use linux::{Linux, SetUpError};
pub use pending_init::{PendingInit, StartError};
pub use posix::Posix;

/// Suffix of the directory of a container's cgroup.
const CONTAINER: &str = ".container";

/// Cgroup of what outlives the agent beside containers: its keepers, setup processes, and companions of plugins.
const KEEPER: &str = "keeper";

/// How long a launcher waits for processes.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the setup of a container.
    pub launch: Duration,
    /// For killed processes to end.
    pub destroy: Duration,
}

/// How many cgroups there may be below that of a container, on v2: those of nested containers, and those that
/// its processes create. Each takes memory of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct CgroupLimits {
    /// Their number.
    pub descendants: u64,
    /// How many in one another.
    pub depth: u64,
}

/// A container whose processes are to be killed.
#[derive(Debug, Clone, Copy)]
pub struct Destroyed<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// Its first process, if known.
    pub first: Option<&'a Process>,
    /// Whether that is its setup process, which may create others until it has ended.
    pub is_setup: bool,
    /// Whether it shares the pid namespace of the agent.
    pub shares_host_pids: bool,
}

/// Creates and ends the processes of containers. Ids are dotted: `pod.web` is nested in `pod`.
pub trait Launcher: Send + Sync {
    /// `linux` or `posix`, as in the configuration.
    fn name(&self) -> &'static str;

    /// The kinds of namespaces it can create or enter.
    fn namespaces(&self) -> Namespaces;

    /// Path of the container's cgroup, relative to the mount point of any hierarchy. Isolators set their limits there,
    /// so that a v2 container has one cgroup for limits and for tracking. `None` if this launcher uses no cgroups.
    fn cgroup(&self, id: &ContainerId) -> Option<PathBuf>;

    /// Creates the cgroup that tracks the container, before anything else of it exists, so that `recover` finds it.
    ///
    /// Those of `controllers` that are in v2 on this machine will be available in its cgroup; for a nested container
    /// this first moves the processes of its parent into a leaf cgroup. Idempotent.
    fn create_cgroup(&self, id: &ContainerId, controllers: &[&str]) -> Result<(), CgroupSetupError>;

    /// Creates the setup process of a container in its namespaces. It waits for its plan, and creates what follows in the
    /// container's cgroups.
    ///
    /// Requires [`Launcher::create_cgroup`].
    fn create(&self, request: SpawnRequest<'_>) -> Result<PendingInit, CreateError>;

    /// Pids of the container's processes in the agent's pid namespace, without those of nested containers.
    fn pids(&self, id: &ContainerId, first: Option<&Process>) -> Result<Vec<i32>, DestroyError>;

    /// Sends a signal to the command of the container whose first process is `first`.
    fn signal(&self, first: &Process, signal: i32) -> Result<(), ProcessError>;

    /// Kills all processes of the container and of those nested in it, whatever they have done to evade it. On success
    /// only zombies may be left. Idempotent, also for a container that never existed.
    fn destroy(&self, container: Destroyed<'_>) -> Result<(), DestroyError>;

    /// Waits until process 1 of a container's pid namespace has ended, after [`Launcher::destroy`]: it ends after all
    /// others in the namespace, also after those that have left the container's cgroup.
    fn end_pid_namespace(&self, id: &ContainerId, slot: &KeeperSlot) -> Result<(), DestroyError> {
        let _ = (id, slot);
        Ok(())
    }

    /// Removes the cgroup that tracks the container. Idempotent, also for a container that never existed.
    fn cleanup(&self, id: &ContainerId) -> Result<(), DestroyError>;

    /// The ids of all containers that have a cgroup, parents before those nested in them.
    fn recover(&self) -> Result<Vec<ContainerId>, RecoverError>;

    /// Directory of the cgroup for processes that plugins start and that outlive the agent; `None` if this launcher uses
    /// no cgroups.
    fn companion_cgroup(&self) -> Option<PathBuf> {
        None
    }

    /// The keepers that create its processes.
    fn keepers(&self) -> &Arc<Keepers>;

    /// Disconnects from the keepers, and removes the agent's own cgroup unless a container still exists.
    fn shutdown(&self);
}

/// Parameters of the first process of a container.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// The container's id.
    pub id: &'a ContainerId,
    /// Its standard streams.
    pub stdio: Stdio<'a>,
    /// Namespaces to create for it.
    pub clone: Namespaces,
    /// Namespaces of another container to join first.
    pub enter: Option<Enter<'a>>,
    /// Further cgroups of the container: v1 directories. The only possible v2 one is its own, which is implied.
    pub cgroups: Vec<PathBuf>,
    /// Descriptors that the plan refers to, numbered from [`cofferdam_init::plan::DESCRIPTORS`].
    pub descriptors: Vec<BorrowedFd<'a>>,
}

/// The standard streams of a container.
#[derive(Debug, Clone, Copy)]
pub struct Stdio<'a> {
    /// Descriptor 0.
    pub stdin: BorrowedFd<'a>,
    /// Descriptor 1.
    pub stdout: BorrowedFd<'a>,
    /// Descriptor 2.
    pub stderr: BorrowedFd<'a>,
}

/// Why the cgroup of a container could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CgroupSetupError {
    /// The cgroup cannot be created.
    #[error("cannot create the cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: CgroupError,
    },
    /// No mounted hierarchy has a controller.
    #[error("container `{id}` needs the cgroup controller `{controller}`, which no mounted hierarchy has")]
    NoController {
        /// The container.
        id: ContainerId,
        /// The controller's name.
        controller: String,
    },
    /// A controller cannot be enabled.
    #[error("cannot enable the cgroup controllers `{controllers}` for container `{id}`")]
    Controllers {
        /// The container.
        id: ContainerId,
        /// Their names.
        controllers: String,
        /// The reason.
        source: CgroupError,
    },
    /// The processes of the parent fork faster than they can be moved into the leaf cgroup.
    #[error(
        "cannot enable cgroup controllers for container `{id}`: the processes of its parent fork faster than they can be moved into a leaf cgroup"
    )]
    Evacuate {
        /// The container.
        id: ContainerId,
    },
}

/// Why a first process could not be created. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// This launcher does not support a part of the request.
    #[error("the `{launcher}` launcher cannot give container `{id}` {what}; use the `linux` launcher")]
    Unsupported {
        /// The launcher.
        launcher: &'static str,
        /// The container.
        id: ContainerId,
        /// What was requested.
        what: String,
    },
    /// A cgroup cannot be opened.
    #[error("cannot open a cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: CgroupError,
    },
    /// A v2 cgroup other than the container's own was requested.
    #[error("container `{id}` cannot also be in the cgroup {}: a process has only one v2 cgroup", path.display())]
    SecondCgroup {
        /// The container.
        id: ContainerId,
        /// The requested cgroup.
        path: PathBuf,
    },
    /// It needs too many descriptors.
    #[error(
        "container `{id}` needs {count} descriptors for its cgroups and plugins; at most {MAX_DESCRIPTORS} can be passed"
    )]
    TooManyDescriptors {
        /// The container.
        id: ContainerId,
        /// Their number.
        count: usize,
    },
    /// The process could not be created.
    #[error("cannot create the first process of container `{id}`")]
    Spawn {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: KeeperError,
    },
}

/// Why the processes of a container could not be ended, or its cgroup not be removed. The call can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// Processes in its cgroup could not be killed.
    #[error("cannot kill all processes of container `{id}`")]
    Kill {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: KillError,
    },
    /// A process could not be killed.
    #[error("cannot end a process of container `{id}`")]
    Process {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: ProcessError,
    },
    /// Processes are still running after SIGKILL.
    #[error("processes {pids:?} of container `{id}` are still running after SIGKILL")]
    Stuck {
        /// The container.
        id: ContainerId,
        /// Their pids.
        pids: Vec<i32>,
    },
    /// The processes cannot be listed or signalled.
    #[error("cannot find the processes of container `{id}`")]
    Find {
        /// The container.
        id: ContainerId,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// Its cgroup cannot be read or removed.
    #[error("cannot clean up the cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: CgroupError,
    },
}

/// The cgroups of containers cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the cgroups of containers of an earlier run")]
pub struct RecoverError(#[from] pub CgroupError);

/// Namespaces of another process to join.
#[derive(Debug, Clone, Copy)]
pub struct Enter<'a> {
    /// A process in the namespaces.
    pub process: &'a Process,
    /// The namespaces. The user namespace cannot be joined.
    pub namespaces: Namespaces,
}

/// Checks the number of descriptors of a first process; `others` are those that follow its standard streams and its
/// control socket.
fn check_count(id: &ContainerId, others: &[BorrowedFd<'_>]) -> Result<(), CreateError> {
    match others.len() + 4 {
        count if count > MAX_DESCRIPTORS => Err(CreateError::TooManyDescriptors { id: id.clone(), count }),
        _ => Ok(()),
    }
}

impl<'a> Stdio<'a> {
    const fn in_order(&self) -> [BorrowedFd<'a>; 3] {
        [self.stdin, self.stdout, self.stderr]
    }
}

#[cfg(test)]
mod tests;
