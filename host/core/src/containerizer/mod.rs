//! Containerizers: the common interface, and what its implementations share.
//!
//! ```text
//! agent ─▶ dyn Containerizer ─┬▶ composing   several containerizers as one
//!                             └▶ lifecycle   the life of a container, with one of these as its backend:
//!                                  ├▶ native   containers of processes, by the plugin chain and a launcher
//!                                  └▶ docker   containers of a container engine
//! ```
//!
//! The agent, the API and the command line know the trait alone.

mod composing;
mod credentials;
pub(crate) mod docker;
mod error;
mod exhausted;
mod fetched;
mod first_process;
mod foreign;
mod handle;
mod invalid;
mod leases;
mod lifecycle;
pub(crate) mod native;
mod record_part;
mod recoverer;
mod sandboxes;
mod stdio;
mod table;
mod uncancelled;
mod user;
mod within;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use crate::ledger::Entry;
use crate::model::view::{Inspection, Report, Summary, WantedReports};
use crate::model::{ContainerId, Request, Resources, Termination};
use crate::switchboard::{AttachError, AttachedInput, Attachment};

pub(crate) use composing::Composing;
pub use credentials::CredentialsError;
pub use docker::DockerRecord;
pub use error::{KillError, LaunchError, RecoverError, RemoveError, UpdateError};
pub(crate) use foreign::Foreign;
pub use invalid::InvalidContainerInfo;
pub(crate) use lifecycle::{Backend, Containers, Shared};
pub use native::NativeRecord;
pub use record_part::MissedCleanup;
pub(crate) use recoverer::{Recoverers, TableRecoverer};
pub(crate) use table::Table;
pub use user::{Database, Kind, UserError};

/// Launches, watches and destroys containers of one kind.
#[async_trait]
pub trait Containerizer: Send + Sync {
    /// Name in the configuration and in records.
    fn name(&self) -> &'static str;

    /// Finds the containers of an earlier agent, and changes nothing. Called once, before any other method. Plugins
    /// recover between this and [`Recovery::resume`].
    ///
    /// `entries` are the containers recorded for this containerizer, and those whose records are damaged. The
    /// containerizer also searches for traces of containers that have no record. Those of which the record cannot be
    /// read, or is of another containerizer, are left alone. `recorded` are the ids of all records, so also those of other
    /// containerizers: what is found of these has a record.
    ///
    /// # Errors
    /// When traces cannot be read.
    async fn recover(
        &self,
        entries: Vec<Entry>,
        recorded: Arc<BTreeSet<ContainerId>>,
    ) -> Result<Box<dyn Recovery>, RecoverError>;

    /// Whether there is a sandbox of a container, with a record or without one. Blocks.
    fn has_sandbox(&self, id: &ContainerId) -> bool;

    /// Launches a container, or leaves nothing of it behind. Disconnecting (dropping the future) does not cancel
    /// the launch.
    ///
    /// # Errors
    /// [`LaunchError`].
    async fn launch(&self, request: Request) -> Result<LaunchOutcome, LaunchError>;

    /// Waits until a container has ended and is cleaned up. `None` for an unknown container.
    async fn wait(&self, id: &ContainerId) -> Option<Termination>;

    /// Attaches a client to the standard streams, or the terminal, of a container. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`AttachError`].
    fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError>;

    /// The attachment of the client for which a container was launched, once: see [`Request::attached`].
    ///
    /// # Errors
    /// [`AttachError`].
    fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError>;

    /// As [`Containerizer::attach`], for input only.
    ///
    /// # Errors
    /// [`AttachError`].
    fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError>;

    /// Sends a signal to a container's command; SIGKILL destroys the container. Returns false for a container that
    /// is unknown or has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError>;

    /// Destroys a container, and those nested in it, without waiting for plugins that do not clean up. What they missed is
    /// recorded and shown, and performed when they can be called. Returns false for a container that is unknown or has
    /// ended.
    async fn force(&self, id: &ContainerId) -> bool;

    /// Destroys a container and waits until nothing is left of it. `None` for an unknown container.
    async fn destroy(&self, id: &ContainerId) -> Option<Termination>;

    /// Removes the record and sandbox of a container that has ended, and of those nested in it. Returns false for
    /// an unknown container.
    ///
    /// # Errors
    /// [`RemoveError::StillLive`] when it has not ended.
    async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError>;

    /// Changes a container's resources, all of them or none.
    ///
    /// # Errors
    /// [`UpdateError`].
    async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError>;

    /// What is reported about containers, in the order of `ids`. Nothing about those that are unknown or not running.
    async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report>;

    /// All containers, parents before children.
    fn containers(&self) -> Vec<Summary>;

    /// Whether a container is known.
    fn contains(&self, id: &ContainerId) -> bool;

    /// Details of a container.
    fn inspect(&self, id: &ContainerId) -> Option<Inspection>;
}

/// The containers that a containerizer has found after a restart.
#[async_trait]
pub trait Recovery: Send {
    /// Lets containers that are still running continue, and destroys everything else in the background.
    async fn resume(self: Box<Self>) -> Recovered;
}

/// The outcome of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchOutcome {
    /// The container is running.
    Launched {
        /// Its first process, in the agent's pid namespace; 0 if a container of an engine has ended already.
        pid: i32,
    },
    /// The request is for another kind of containerizer; nothing was started.
    NotSupported,
}

/// What [`Recovery::resume`] did with the containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Containers that continue.
    pub running: usize,
    /// Containers that had ended before.
    pub ended: usize,
    /// Containers that are being destroyed.
    pub destroyed: usize,
}
