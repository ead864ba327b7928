//! What can go wrong with a container.

use std::io;
use std::path::PathBuf;

use crate::chain::ChainError;
use crate::container::{ContainerId, InvalidRequest, Phase};
use crate::fetcher::FetchError;
use crate::launcher::{HoldError, ReadyError, StartError};
use crate::ledger::LedgerError;

use super::user::UserError;

/// Why a container was not launched. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The request makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The id is taken.
    #[error("container id `{id}` is taken; choose another, or remove that container first")]
    Duplicate {
        /// The id.
        id: ContainerId,
    },
    /// There is nothing to nest it in.
    #[error("container `{id}` cannot be nested: there is no container `{parent}`")]
    NoParent {
        /// The container.
        id: ContainerId,
        /// The missing one.
        parent: ContainerId,
    },
    /// What it is to be nested in is not ready, or not there any more.
    #[error("container `{id}` cannot be nested: `{parent}` is {phase}, not RUNNING")]
    ParentNotRunning {
        /// The container.
        id: ContainerId,
        /// The other one.
        parent: ContainerId,
        /// How far that is.
        phase: Phase,
    },
    /// Its user is not known.
    #[error("cannot launch container `{id}` as that user")]
    User {
        /// The container.
        id: ContainerId,
        /// Why.
        source: UserError,
    },
    /// Its intent could not be put on record.
    #[error("cannot put container `{id}` on record")]
    Ledger {
        /// The container.
        id: ContainerId,
        /// Why.
        source: LedgerError,
    },
    /// One of its directories or files could not be made.
    #[error("cannot make `{path}` for container `{id}`")]
    Directory {
        /// The container.
        id: ContainerId,
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its root file system is not there.
    #[error("the root file system `{path}` of container `{id}` is not a folder that can be read")]
    Rootfs {
        /// The container.
        id: ContainerId,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It asks for a root file system that no plugin provides.
    #[error(
        "container `{id}` asks for a root file system and no plugin in the chain provides one; add \
         `filesystem/linux` to the chain"
    )]
    NoFilesystem {
        /// The container.
        id: ContainerId,
    },
    /// It could not be given a control group.
    #[error("cannot track container `{id}`")]
    Ready {
        /// The container.
        id: ContainerId,
        /// Why.
        source: ReadyError,
    },
    /// The chain said no.
    #[error("the chain refuses container `{id}` while {phase}")]
    Chain {
        /// The container.
        id: ContainerId,
        /// How far it was.
        phase: Phase,
        /// Who said no, and why.
        source: ChainError,
    },
    /// A wish of a plugin cannot be fulfilled.
    #[error("the launch plan of container `{id}` cannot be carried out: {reason}")]
    Plan {
        /// The container.
        id: ContainerId,
        /// Which wish, whose, and why.
        reason: String,
    },
    /// Its first process could not be made.
    #[error("cannot make the first process of container `{id}`")]
    Hold {
        /// The container.
        id: ContainerId,
        /// Why.
        source: HoldError,
    },
    /// Its files could not be brought in.
    #[error("cannot fetch what container `{id}` needs")]
    Fetch {
        /// The container.
        id: ContainerId,
        /// Why.
        source: FetchError,
    },
    /// Its command could not be started.
    #[error("cannot start the command of container `{id}`")]
    Start {
        /// The container.
        id: ContainerId,
        /// Which step failed.
        source: StartError,
    },
    /// Somebody ended it while it was being launched.
    #[error("container `{id}` was ended while {phase}: {message}")]
    Ended {
        /// The container.
        id: ContainerId,
        /// How far it was.
        phase: Phase,
        /// Why.
        message: String,
    },
    /// A thread of the agent died under it.
    #[error("the launch of container `{id}` was lost: {reason}")]
    Lost {
        /// The container.
        id: ContainerId,
        /// What happened.
        reason: String,
    },
    /// The agent stops.
    #[error("the agent is shutting down and launches nothing")]
    ShuttingDown,
}

impl LaunchError {
    /// Whether the id is taken.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate { .. })
    }

    /// Whether the caller asked for something that cannot be.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Invalid(_)
                | Self::NoParent { .. }
                | Self::ParentNotRunning { .. }
                | Self::User { .. }
                | Self::Rootfs { .. }
                | Self::NoFilesystem { .. }
        )
    }

    /// Why the command itself could not be executed, if that is what failed.
    #[must_use]
    pub fn exec_error(&self) -> Option<&io::Error> {
        match self {
            Self::Start { source: StartError::Failed { step, source, .. }, .. }
                if *step == cofferdam_init::report::Step::Exec =>
            {
                Some(source)
            }
            _ => None,
        }
    }
}

/// Why a signal was not sent.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The kernel refuses.
    #[error("cannot send signal {signal} to container `{id}`")]
    Refused {
        /// The container.
        id: ContainerId,
        /// The signal.
        signal: i32,
        /// Why.
        source: cofferdam_linux::process::ProcessError,
    },
    /// Its processes cannot be listed.
    #[error("cannot find the command of container `{id}`")]
    Find {
        /// The container.
        id: ContainerId,
        /// Why.
        source: io::Error,
    },
    /// It is being ended.
    #[error("container `{id}` has no process to send a signal to; it is being ended")]
    NoProcess {
        /// The container.
        id: ContainerId,
    },
}

/// Why a container was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It, or one nested in it, has not ended.
    #[error("container `{id}` is {phase}; only one that has ended can be removed (kill it first)")]
    StillLive {
        /// The container.
        id: ContainerId,
        /// How far it is.
        phase: Phase,
    },
    /// Its sandbox cannot be removed.
    #[error("cannot remove sandbox `{path}` of container `{id}`")]
    Sandbox {
        /// The container.
        id: ContainerId,
        /// The sandbox.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its record cannot be removed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A thread of the agent died under it.
    #[error("the removal was lost; ask again")]
    Interrupted,
}

/// Why a container's resources are what they were.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Nobody knows it.
    #[error("there is no container `{id}`")]
    Unknown {
        /// The id.
        id: ContainerId,
    },
    /// It does not run.
    #[error("container `{id}` is {phase}; only a running one can be updated")]
    NotRunning {
        /// The container.
        id: ContainerId,
        /// How far it is.
        phase: Phase,
    },
    /// The amounts make no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// A plugin said no.
    #[error("the chain refuses the update")]
    Chain(#[from] ChainError),
    /// That it is to be changed could not be put on record; nothing was.
    #[error("cannot put the update of container `{id}` on record")]
    Intent {
        /// The container.
        id: ContainerId,
        /// Why.
        source: LedgerError,
    },
    /// The change holds, and would not survive the agent.
    #[error("the update is in force and could not be put on record")]
    Ledger(#[from] LedgerError),
}

impl UpdateError {
    /// Whether nobody knows the container.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}
