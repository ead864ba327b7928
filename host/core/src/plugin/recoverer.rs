//! What plugins need of the containers: recovery after a start, their states and leases.

use cofferdam_plugin_model::service::{AcquireLease, Lease};
use cofferdam_plugin_model::{ContainerId, RecoverReply, RecoverRequest};
use serde_json::Value as Json;

use super::limits::MAX_STATE;

/// Knows the containers of each plugin: for `recover` after a start or restart of the plugin, and for its states.
pub trait Recoverer: Send + Sync {
    /// The request for `recover`.
    fn request(&self, plugin: &str) -> RecoverRequest;
    /// Stores the verdicts of `recover`.
    fn apply_recovery(&self, plugin: &str, reply: RecoverReply);
    /// The newest state of a plugin for a container; null if there is none.
    fn state(&self, plugin: &str, container: &str) -> Json;
    /// Keeps a state of a plugin for a container. Blocks when it is to be on disk.
    ///
    /// # Errors
    /// [`StateError`].
    fn keep_state(
        &self,
        plugin: &str,
        container: &str,
        state: Json,
        durability: Durability,
    ) -> Result<(), StateError>;
    /// Leases a number for a container. Blocks.
    ///
    /// # Errors
    /// [`LeaseError`].
    fn acquire_lease(&self, plugin: &str, request: AcquireLease) -> Result<Lease, LeaseError>;
    /// Ends a lease; success if there is none. Blocks.
    ///
    /// # Errors
    /// [`LeaseError`].
    fn release_lease(&self, plugin: &str, pool: &str, number: u32) -> Result<(), LeaseError>;
    /// The leases of a pool, by number.
    fn leases(&self, pool: &str) -> Vec<Lease>;
}

/// When a state is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When it has been kept.
    Immediate,
    /// With the next write of the record, which the caller knows to follow.
    NextWrite,
}

/// Why a state was not kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such container, or the plugin does not participate in it.
    #[error("plugin `{plugin}` does not participate in container `{container}`, so no state is kept for it")]
    NotParticipant {
        /// The plugin.
        plugin: String,
        /// The container.
        container: String,
    },
    /// It is too large.
    #[error(
        "the state of plugin `{plugin}` for container `{container}` has {size} bytes; the limit is {MAX_STATE}"
    )]
    TooLarge {
        /// The plugin.
        plugin: String,
        /// The container.
        container: String,
        /// Its encoded size.
        size: usize,
    },
    /// It cannot be written.
    #[error("the state of plugin `{plugin}` for container `{container}` cannot be written")]
    Write {
        /// The plugin.
        plugin: String,
        /// The container.
        container: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a number was not leased or released.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no such container, or the plugin does not participate in it.
    #[error(
        "plugin `{plugin}` does not participate in container `{container}`, so it cannot lease numbers for it"
    )]
    NotParticipant {
        /// The plugin.
        plugin: String,
        /// The container.
        container: ContainerId,
    },
    /// The range is empty.
    #[error("the range {first} to {last} of pool `{pool}` is empty")]
    EmptyRange {
        /// The pool.
        pool: String,
        /// Its first number.
        first: u32,
        /// Its last number.
        last: u32,
    },
    /// Every number of the range is leased.
    #[error("no number of {first} to {last} is free in pool `{pool}`")]
    Exhausted {
        /// The pool.
        pool: String,
        /// First number of the range.
        first: u32,
        /// Last number of the range.
        last: u32,
    },
    /// The container has too many leases.
    #[error("container `{container}` has {limit} leases, which is the limit")]
    TooMany {
        /// The container.
        container: ContainerId,
        /// The limit.
        limit: usize,
    },
    /// The lease is another plugin's.
    #[error("number {number} of pool `{pool}` is leased by plugin `{owner}`")]
    OtherPlugin {
        /// The pool.
        pool: String,
        /// The number.
        number: u32,
        /// The plugin that leased it.
        owner: String,
    },
    /// It cannot be written.
    #[error("the leases of container `{container}` cannot be written")]
    Write {
        /// The container.
        container: ContainerId,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LeaseError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::Write { .. })
    }
}

/// For plugins without containers, as in benchmarks.
impl Recoverer for () {
    fn request(&self, _: &str) -> RecoverRequest {
        RecoverRequest::default()
    }

    fn apply_recovery(&self, _: &str, _: RecoverReply) {}

    fn state(&self, _: &str, _: &str) -> Json {
        Json::Null
    }

    fn keep_state(&self, plugin: &str, container: &str, _: Json, _: Durability) -> Result<(), StateError> {
        Err(StateError::NotParticipant { plugin: plugin.to_owned(), container: container.to_owned() })
    }

    fn acquire_lease(&self, plugin: &str, request: AcquireLease) -> Result<Lease, LeaseError> {
        Err(LeaseError::NotParticipant { plugin: plugin.to_owned(), container: request.container })
    }

    fn release_lease(&self, _: &str, _: &str, _: u32) -> Result<(), LeaseError> {
        Ok(())
    }

    fn leases(&self, _: &str) -> Vec<Lease> {
        Vec::new()
    }
}
