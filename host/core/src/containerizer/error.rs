//! Errors of containerizers.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use cofferdam_linux::tree;

use super::credentials::CredentialsError;
use super::exhausted;
use super::invalid::InvalidContainerInfo;
use super::user::UserError;
use cofferdam_linux::process::ProcessError;

use crate::blocking::Abandoned;
use crate::chain::ChainError;
use crate::engine::EngineError;
use crate::fetcher::FetchError;
use crate::hooks::HookError;
use crate::keeper::KeeperError;
use crate::launcher::{self, CgroupSetupError, CreateError, StartError};
use crate::ledger::LedgerError;
use crate::model::view::Summary;
use crate::model::{ContainerId, InvalidRequest, Phase};
use crate::plugin::CallError;
use crate::provisioner::ProvisionError;

/// Why a container was not launched. Nothing is left of it, unless a plugin delays its cleanup: then the container
/// is shown as being destroyed until nothing is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The request is invalid.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The id is taken.
    #[error("container id `{id}` is taken; choose another, or remove that container first")]
    Duplicate {
        /// The id.
        id: ContainerId,
    },
    /// The id is that of a container that has ended and was not removed.
    #[error("container id `{id}` is taken by a container that has ended; remove it first, or choose another")]
    Ended {
        /// The id.
        id: ContainerId,
    },
    /// The id is taken by a container of which something is left.
    #[error("container id `{id}` is taken by a container that is being cleaned up: {}", .errors.join("; "))]
    CleaningUp {
        /// The id.
        id: ContainerId,
        /// What prevents its cleanup.
        errors: Vec<String>,
    },
    /// The id is that of a container that this agent leaves alone, or nested in one.
    #[error(
        "container id `{id}` is taken: the record of `{foreign}` cannot be read, so nothing of it is touched ({reason}); \
         see `Entries that the agent leaves alone` in the operator's guide"
    )]
    Foreign {
        /// The id.
        id: ContainerId,
        /// The container that is left alone.
        foreign: ContainerId,
        /// Why its record cannot be read.
        reason: String,
    },
    /// The parent does not exist.
    #[error("container `{id}` cannot be nested: there is no container `{parent}`")]
    NoParent {
        /// The container.
        id: ContainerId,
        /// Its parent.
        parent: ContainerId,
    },
    /// The parent is not running.
    #[error("container `{id}` cannot be nested: `{parent}` is {phase}, not RUNNING")]
    ParentNotRunning {
        /// The container.
        id: ContainerId,
        /// Its parent.
        parent: ContainerId,
        /// Phase of the parent.
        phase: Phase,
    },
    /// The request has a part that no plugin handles.
    #[error(
        "container `{id}` requests `{part}`, which none of its plugins handles; add an isolator that does to the chain, or leave it out"
    )]
    Unhandled {
        /// The container.
        id: ContainerId,
        /// The part, see [`REQUEST_PARTS`](cofferdam_plugin_model::REQUEST_PARTS).
        part: &'static str,
    },
    /// No containerizer supports the request.
    #[error("no configured containerizer can launch container `{id}`")]
    NotSupported {
        /// The container.
        id: ContainerId,
    },
    /// The user is unknown or not allowed.
    #[error("cannot launch container `{id}` as that user")]
    User {
        /// The container.
        id: ContainerId,
        /// Why.
        source: UserError,
    },
    /// The record could not be written.
    #[error("cannot record container `{id}`")]
    Ledger {
        /// The container.
        id: ContainerId,
        /// Why.
        source: LedgerError,
    },
    /// A directory or file could not be created.
    #[error("cannot create `{path}` for container `{id}`")]
    Directory {
        /// The container.
        id: ContainerId,
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root filesystem cannot be read.
    #[error("the root filesystem `{path}` of container `{id}` is not a readable directory")]
    Rootfs {
        /// The container.
        id: ContainerId,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent launches no containers from images.
    #[error("container `{id}` requests an image, but `image_providers` of the agent does not have `docker`")]
    NoImages {
        /// The container.
        id: ContainerId,
    },
    /// Its image cannot be used.
    #[error("container `{id}` cannot be launched from image `{}`", .image.escape_debug())]
    Image {
        /// The container.
        id: ContainerId,
        /// The image.
        image: String,
        /// Why.
        source: ProvisionError,
    },
    /// The image of a volume cannot be used.
    #[error("container `{id}` cannot have image `{}` as its volume `{}`", .image.escape_debug(), path.display())]
    VolumeImage {
        /// The container.
        id: ContainerId,
        /// The path of the volume.
        path: PathBuf,
        /// The image.
        image: String,
        /// Why.
        source: ProvisionError,
    },
    /// No plugin provides the root filesystem.
    #[error(
        "container `{id}` has a root filesystem and no plugin in the chain provides one; add \
         `filesystem/linux` to the chain"
    )]
    NoFilesystem {
        /// The container.
        id: ContainerId,
    },
    /// The cgroup could not be created.
    #[error("cannot create the cgroup of container `{id}`")]
    Cgroup {
        /// The container.
        id: ContainerId,
        /// Why.
        source: CgroupSetupError,
    },
    /// A plugin failed, or two conflict.
    #[error("the plugin chain failed for container `{id}` while {phase}")]
    Chain {
        /// The container.
        id: ContainerId,
        /// Its phase at the time.
        phase: Phase,
        /// The failure.
        source: ChainError,
    },
    /// A hook failed, or two conflict.
    #[error("a hook failed the launch of container `{id}` while {phase}")]
    Hook {
        /// The container.
        id: ContainerId,
        /// Its phase at the time.
        phase: Phase,
        /// The failure.
        source: HookError,
    },
    /// The launch plan cannot be carried out.
    #[error("the launch plan of container `{id}` cannot be carried out: {reason}")]
    Plan {
        /// The container.
        id: ContainerId,
        /// Which entry, of which plugin, and why.
        reason: String,
    },
    /// The first process could not be created.
    #[error("cannot create the first process of container `{id}`")]
    Create {
        /// The container.
        id: ContainerId,
        /// Why.
        source: CreateError,
    },
    /// Its standard streams could not be created.
    #[error("cannot create the standard streams of container `{id}`")]
    Streams {
        /// The container.
        id: ContainerId,
        /// Why.
        source: io::Error,
    },
    /// The process that passes its standard streams on could not be created.
    #[error("cannot create the I/O switchboard of container `{id}`")]
    Switchboard {
        /// The container.
        id: ContainerId,
        /// Why.
        source: KeeperError,
    },
    /// A file could not be fetched.
    #[error("cannot fetch files of container `{id}`")]
    Fetch {
        /// The container.
        id: ContainerId,
        /// Why.
        source: FetchError,
    },
    /// The command could not be started.
    #[error(
        "cannot start the command of container `{id}`{}",
        .plugin.as_ref().map(|plugin| format!(" as plugin `{plugin}` requests")).unwrap_or_default()
    )]
    Start {
        /// The container.
        id: ContainerId,
        /// The plugin that requested what failed, if that is certain.
        plugin: Option<String>,
        /// The step that failed.
        source: StartError,
    },
    /// The request is invalid for a container of an engine.
    #[error(transparent)]
    InvalidContainerInfo(#[from] InvalidContainerInfo),
    /// The engine failed.
    #[error("container `{id}` failed while {phase}")]
    Engine {
        /// The container.
        id: ContainerId,
        /// Its phase at the time.
        phase: Phase,
        /// Why.
        source: EngineError,
    },
    /// The credentials for its registry cannot be used.
    #[error("cannot pull the image of container `{id}`")]
    Credentials {
        /// The container.
        id: ContainerId,
        /// Why.
        source: CredentialsError,
    },
    /// The container was stopped during its launch.
    #[error("container `{id}` was stopped while {phase}: {message}")]
    Cancelled {
        /// The container.
        id: ContainerId,
        /// Its phase at the time.
        phase: Phase,
        /// The reason.
        message: String,
    },
    /// An internal error of the agent.
    #[error("the launch of container `{id}` failed: {reason}")]
    Internal {
        /// The container.
        id: ContainerId,
        /// What happened.
        reason: String,
    },
    /// The agent is shutting down.
    #[error("the agent is shutting down; no containers are launched")]
    ShuttingDown,
}

impl LaunchError {
    /// The error of a launch whose id is that of this container.
    pub(super) fn taken(container: &Summary) -> Self {
        let id = container.id.clone();
        if !container.phase.is_live() {
            Self::Ended { id }
        } else if container.cleanup_errors.is_empty() {
            Self::Duplicate { id }
        } else {
            Self::CleaningUp { id, errors: container.cleanup_errors.clone() }
        }
    }

    /// Whether the id is taken.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate { .. } | Self::Ended { .. })
    }

    /// Whether the error is in the request.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Invalid(_)
                | Self::InvalidContainerInfo(_)
                | Self::NoParent { .. }
                | Self::ParentNotRunning { .. }
                | Self::Unhandled { .. }
                | Self::NotSupported { .. }
                | Self::User { .. }
                | Self::Rootfs { .. }
                | Self::NoFilesystem { .. }
                | Self::NoImages { .. }
        ) || matches!(self, Self::Chain { source, .. } if source.is_invalid())
            || matches!(self, Self::Fetch { source, .. } if source.is_invalid())
            || matches!(self, Self::Engine { source, .. } if source.is_invalid())
            || matches!(self, Self::Image { source, .. } | Self::VolumeImage { source, .. } if source.is_invalid())
    }

    /// Whether the same launch may succeed later, according to the plugin or the engine that failed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Chain { source, .. } if source.is_retryable())
            || matches!(self, Self::Hook { source, .. } if source.is_retryable())
            || matches!(self, Self::Engine { source, .. } if source.is_outage())
    }

    /// What was exhausted, and what to do, if that is why it failed.
    #[must_use]
    pub fn exhausted(&self) -> Option<&'static str> {
        exhausted::explain(self)
    }

    /// Why the command could not be executed, if that is what failed.
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
    /// The kernel refused it.
    #[error("cannot send signal {signal} to container `{id}`")]
    Refused {
        /// The container.
        id: ContainerId,
        /// The signal.
        signal: i32,
        /// Why.
        source: cofferdam_linux::process::ProcessError,
    },
    /// The engine failed.
    #[error("cannot send signal {signal} to container `{id}`")]
    Engine {
        /// The container.
        id: ContainerId,
        /// The signal.
        signal: i32,
        /// Why.
        source: EngineError,
    },
    /// It is being destroyed.
    #[error("container `{id}` is being destroyed and has no process to send a signal to")]
    NoProcess {
        /// The container.
        id: ContainerId,
    },
}

/// Why a container was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It, or one nested in it, has not ended.
    #[error("container `{id}` is {phase}; only one that has ended can be removed (kill it first)")]
    StillLive {
        /// The container.
        id: ContainerId,
        /// Its phase.
        phase: Phase,
    },
    /// Its end, or that of one nested in it, was forced, and cleanups are missing.
    #[error(
        "container `{id}` cannot be removed before its cleanup by {}, whose end was forced; add what is missing to the chain \
         and restart the agent",
        .plugins.iter().map(|plugin| format!("plugin `{plugin}`")).collect::<Vec<_>>().join(", ")
    )]
    CleanupMissed {
        /// The container.
        id: ContainerId,
        /// The plugins.
        plugins: Vec<String>,
    },
    /// The engine cannot remove it.
    #[error("cannot remove container `{id}` from the engine; try again when the engine answers")]
    Engine {
        /// The container.
        id: ContainerId,
        /// Why.
        source: EngineError,
    },
    /// Its sandbox cannot be removed.
    #[error("cannot remove sandbox `{path}` of container `{id}`")]
    Sandbox {
        /// The container.
        id: ContainerId,
        /// The sandbox.
        path: PathBuf,
        /// Why.
        source: tree::RemoveError,
    },
    /// Its record cannot be removed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A thread of the agent panicked.
    #[error("the removal was interrupted by an internal error; try again")]
    Interrupted,
}

/// Why a container's resources were not updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The container is unknown.
    #[error("there is no container `{id}`")]
    Unknown {
        /// The id.
        id: ContainerId,
    },
    /// The container is not running.
    #[error("container `{id}` is {phase}; only a running one can be updated")]
    NotRunning {
        /// The container.
        id: ContainerId,
        /// Its phase.
        phase: Phase,
    },
    /// The resources are invalid.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// A plugin refused, and the others have rolled it back.
    #[error("the plugin chain refused the update")]
    Refused(#[source] CallError),
    /// It failed, and part of it may be in force.
    #[error(
        "the update failed, and rolling it back is not complete and will be repeated ({incomplete}); until then, limits may \
         differ from the resources that are shown"
    )]
    RollbackIncomplete {
        /// Why the update failed.
        #[source]
        cause: Box<UpdateError>,
        /// Why the roll back is not complete.
        incomplete: String,
    },
    /// An earlier update has to be rolled back first.
    #[error(
        "container `{id}` is not updated: an earlier update failed and could not be rolled back yet ({reason}); repeat this one \
         when it is, or name all that the earlier one concerned: {}", .uncertain.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    )]
    RollingBack {
        /// The container.
        id: ContainerId,
        /// The resources of which either value may be in force.
        uncertain: BTreeSet<String>,
        /// What prevents it.
        reason: String,
    },
    /// The engine refused.
    #[error("the engine cannot update container `{id}`")]
    Engine {
        /// The container.
        id: ContainerId,
        /// Why.
        source: EngineError,
    },
    /// The intent could not be recorded; nothing was changed.
    #[error("cannot record the update of container `{id}`")]
    Intent {
        /// The container.
        id: ContainerId,
        /// Why.
        source: LedgerError,
    },
    /// The update is in effect but not recorded.
    #[error("the update is in effect but could not be recorded; a restart of the agent will undo it")]
    Ledger(#[from] LedgerError),
}

impl UpdateError {
    /// Whether the container is unknown.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// Why containers of an earlier agent cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The ledger cannot be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A directory cannot be listed.
    #[error("cannot list `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be determined whether a container is running.
    #[error("cannot tell whether container `{id}` is running")]
    Process {
        /// The container.
        id: ContainerId,
        /// Why.
        source: ProcessError,
    },
    /// The launcher cannot search for containers.
    #[error(transparent)]
    Launcher(#[from] launcher::RecoverError),
    /// A thread of the agent panicked.
    #[error("the recovery was interrupted: {0}")]
    Interrupted(#[from] Abandoned),
}
