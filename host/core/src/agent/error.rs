//! Why an agent does not start.

use std::path::PathBuf;

use crate::blocking::Abandoned;
use crate::containerizer::RecoverError;
use crate::containerizer::docker::agent_container::AgentContainerError;
use crate::executor::ProgramError;
use crate::fetcher::CacheError;
use crate::keeper::KeeperError;
use crate::launcher::SetUpError;
use crate::ledger::LedgerError;
use crate::plugin::{AdmitError, LookupError};

/// Why the agent did not start. No container was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime or work directory cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The threads of the agent cannot be started.
    #[error(
        "cannot start the threads of the agent; end some, or raise the limit that is reached: `pids.max` of a cgroup that it is in (`TasksMax` of its service), `kernel.pid_max`, `kernel.threads-max` or RLIMIT_NPROC"
    )]
    Threads {
        /// Why.
        source: std::io::Error,
    },
    /// A directory cannot be created.
    #[error("cannot create directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory for what ends with containers cannot be created, or not be in memory.
    #[error("cannot prepare `{}` for the scratch directories of containers", path.display())]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What identifies the agent cannot be read or written.
    #[error(
        "cannot read or write `{}`, which identifies the agent to container engines and executors; put the file back, or remove what is there if none of their containers is left",
        path.display()
    )]
    AgentId {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Where the cgroups of earlier agents are cannot be read or written.
    #[error("cannot read or write `{}`, which has the `cgroup_root` of earlier agents", runtime_dir.join("cgroup_root").display())]
    CgroupRoot {
        /// The runtime directory.
        runtime_dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no file for a plugin.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The cache of fetched files cannot be used.
    #[error(transparent)]
    FetchCache(#[from] CacheError),
    /// A plugin cannot be used.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The launcher does not work on this machine.
    #[error("the `linux` launcher does not work here; as an unprivileged user, use the `posix` launcher")]
    Launcher(#[from] SetUpError),
    /// The process that creates those of containers cannot be started.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The agent is in a container, and its containers could not outlive it.
    #[error("`docker.mesos_image` says that the agent is in a container of the engine")]
    AgentContainer(#[from] AgentContainerError),
    /// The kernel does not provide what the agent needs.
    #[error("cannot determine {what}")]
    Kernel {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The executor program cannot be used.
    #[error(transparent)]
    ExecutorProgram(#[from] ProgramError),
    /// Executors of an earlier agent cannot be recovered.
    #[error("cannot recover the executors of an earlier agent")]
    Executors {
        /// Why.
        source: std::io::Error,
    },
    /// Containers of an earlier agent cannot be recovered.
    #[error("cannot recover the containers of an earlier agent")]
    Recover(#[from] RecoverError),
    /// A thread panicked.
    #[error("the start was interrupted: {0}")]
    Interrupted(#[from] Abandoned),
}
