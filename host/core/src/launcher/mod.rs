//! Launchers own processes: they make the first one of a container, and guarantee that none survives `destroy`.
//!
//! They know nothing of images, resources or plugins. All calls block, for as long as the kernel needs; the caller
//! makes them where waiting hurts nobody. Calls for one container do not overlap, but for `destroy`, which may come
//! while [`PendingInit::start`] waits, and ends it.
//!
//! ```text
//! ready ──▶ hold ──▶ PendingInit::start ──▶ (it runs, it ends) ──▶ destroy ──▶ cleanup
//!             │           └─ failed, and reaped ─────────────────▲
//!             └─ failed: nothing was made ───────────────────────┘
//! ```

mod linux;
mod pending_init;
mod posix;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cofferdam_linux::cgroup::{CgroupError, KillError};
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, ProcessError};
use cofferdam_linux::spawn::{Enter, SpawnError};
use cofferdam_plugin_model::ContainerId;

pub use linux::{Linux, SetUpError};
pub use pending_init::{PendingInit, StartError};
pub use posix::Posix;

/// Makes and ends the processes of containers. Ids are dotted: `pod.web` is nested in `pod`.
pub trait Launcher: Send + Sync {
    /// `linux` or `posix`, as in the configuration.
    fn name(&self) -> &'static str;

    /// The kinds of namespaces it can make or enter.
    fn namespaces(&self) -> Namespaces;

    /// Where the container's cgroup is, relative to the mount of any hierarchy. Isolators put their limits there, so
    /// that a v2 container has one cgroup for limits and for tracking. `None` if this launcher uses no cgroups.
    fn cgroup(&self, id: &ContainerId) -> Option<PathBuf>;

    /// Makes what the container is tracked by, so that a trace of it exists before anything else does.
    ///
    /// Those of `controllers` that are of v2 on this machine will be available in its cgroup; for a nested container
    /// this moves the processes of its parent into a cgroup of their own first. May be called again.
    fn create_cgroup(&self, id: &ContainerId, controllers: &[&str]) -> Result<(), CgroupSetupError>;

    /// Makes the first process of a container, which waits for its plan, in its namespaces and cgroups.
    ///
    /// Comes after [`Launcher::create_cgroup`].
    fn create(&self, request: SpawnRequest<'_>) -> Result<PendingInit, CreateError>;

    /// The pids of the container's processes, as seen by the agent, without those of nested containers.
    fn pids(&self, id: &ContainerId, first: Option<&Process>) -> Result<Vec<i32>, DestroyError>;

    /// Kills all processes of the container and of those nested in it. When it returns none is left but for zombies.
    ///
    /// `first` is the container's first process, if known. May be called again, and for a container nobody has seen.
    fn destroy(&self, id: &ContainerId, first: Option<&Process>) -> Result<(), DestroyError>;

    /// Removes what the container was tracked by. **May be called again, and for a container nobody has seen.**
    fn cleanup(&self, id: &ContainerId) -> Result<(), DestroyError>;

    /// The ids of all containers that left a trace, parents before those nested in them.
    fn recover(&self) -> Result<Vec<ContainerId>, RecoverError>;

    /// Removes what is there for the agent rather than for a container, unless a container still needs it.
    fn shutdown(&self);
}

/// What the first process of a container is born with.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// The container's id.
    pub id: &'a ContainerId,
    /// Its standard streams.
    pub stdio: Stdio<'a>,
    /// Its status file, opened for writing and empty. [`cofferdam_init::report::Status`] reads it.
    pub status: BorrowedFd<'a>,
    /// Namespaces made new for it.
    pub clone: Namespaces,
    /// Namespaces of another container to join first.
    pub enter: Option<Enter<'a>>,
    /// Further cgroups it is born in: v1 directories. A v2 one can only be the container's own, and need not be said.
    pub cgroups: Vec<PathBuf>,
}

/// The standard streams of a container.
#[derive(Debug)]
pub struct Stdio<'a> {
    /// Descriptor 0.
    pub stdin: BorrowedFd<'a>,
    /// Descriptor 1.
    pub stdout: BorrowedFd<'a>,
    /// Descriptor 2.
    pub stderr: BorrowedFd<'a>,
}

/// A container that cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupSetupError {
    /// The cgroup cannot be made.
    #[error("cannot make the cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// What was the matter.
        source: CgroupError,
    },
    /// The machine lacks a controller.
    #[error("container `{id}` needs the cgroup controller `{controller}`, which no mounted hierarchy has")]
    NoController {
        /// The container.
        id: ContainerId,
        /// The controller's name.
        controller: String,
    },
    /// A controller cannot be made available.
    #[error("cannot make controllers `{controllers}` available to container `{id}`")]
    Controllers {
        /// The container.
        id: ContainerId,
        /// Their names.
        controllers: String,
        /// What was the matter.
        source: CgroupError,
    },
    /// The processes of the parent fork faster than they can be moved.
    #[error("cannot make room for container `{id}`: its parent's processes cannot all be moved")]
    Crowded {
        /// The container.
        id: ContainerId,
    },
}

/// A first process that cannot be made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// This launcher makes plain processes only.
    #[error("the `{launcher}` launcher cannot give container `{id}` {what}; use the `linux` launcher")]
    Unsupported {
        /// The launcher.
        launcher: &'static str,
        /// The container.
        id: ContainerId,
        /// What was asked for.
        what: String,
    },
    /// A cgroup it is to be born in cannot be opened.
    #[error("cannot open a cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// What was the matter.
        source: CgroupError,
    },
    /// A cgroup of v2 that is not the container's own.
    #[error("container `{id}` cannot be in {} as well: a process has one v2 cgroup only", path.display())]
    SecondCgroup {
        /// The container.
        id: ContainerId,
        /// The cgroup asked for.
        path: PathBuf,
    },
    /// The socket over which it is to get its plan cannot be made.
    #[error("cannot make the control socket of container `{id}`")]
    Control {
        /// The container.
        id: ContainerId,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It could not join one of its cgroups.
    #[error("the first process of container `{id}` could not join cgroup {}", path.display())]
    Join {
        /// The container.
        id: ContainerId,
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It could not be born.
    #[error("cannot make the first process of container `{id}`")]
    Spawn {
        /// The container.
        id: ContainerId,
        /// What was the matter.
        source: SpawnError,
    },
}

/// Processes that could not be ended, or a trace that could not be removed. Asking again is right.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// Processes in its cgroup could not be killed.
    #[error("cannot kill all processes of container `{id}`")]
    Kill {
        /// The container.
        id: ContainerId,
        /// What was the matter.
        source: KillError,
    },
    /// One process could not be.
    #[error("cannot end a process of container `{id}`")]
    Process {
        /// The container.
        id: ContainerId,
        /// What was the matter.
        source: ProcessError,
    },
    /// Descendants were sent SIGKILL, and are still there.
    #[error("processes {pids:?} of container `{id}` outlive SIGKILL")]
    Stuck {
        /// The container.
        id: ContainerId,
        /// They.
        pids: Vec<i32>,
    },
    /// What the kernel tells of processes cannot be read.
    #[error("cannot find the processes of container `{id}`")]
    Find {
        /// The container.
        id: ContainerId,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Its cgroup cannot be read or removed.
    #[error("cannot clean up the cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// What was the matter.
        source: CgroupError,
    },
}

/// Traces that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot look for containers of an earlier run")]
pub struct RecoverError(#[from] pub CgroupError);

/// The id as an argument of the first process, which shows it in `ps`.
fn argument(id: &ContainerId) -> CString {
    // An id holds no control characters.
    CString::new(id.as_str()).unwrap_or_default()
}

/// Born processes get these, in this order: [`cofferdam_init::plan::CONTROL`] is 3, the status file is 4.
fn descriptors<'a>(
    stdio: &'a Stdio<'_>,
    control: &'a OwnedFd,
    status: BorrowedFd<'a>,
) -> [BorrowedFd<'a>; cofferdam_init::plan::DESCRIPTORS] {
    [stdio.stdin, stdio.stdout, stdio.stderr, control.as_fd(), status]
}

#[cfg(test)]
mod tests;
