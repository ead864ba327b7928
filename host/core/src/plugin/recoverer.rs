//! What plugins need of the containers: recovery after a start, and their states.

use cofferdam_plugin_model::{RecoverReply, RecoverRequest};
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
    /// There is no such container, or the plugin takes no part in it.
    #[error("plugin `{plugin}` takes no part in container `{container}`, so no state is kept for it")]
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
