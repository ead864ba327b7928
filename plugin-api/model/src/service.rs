//! Requests and replies of the services that the agent provides to plugins.
//!
//! A plugin may call a service from any of its threads. The agent refuses requests with unknown fields.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::ContainerId;

/// Stores the plugin's state for a container: [`PutState`] → nothing. Fails unless the plugin takes part in the
/// container. On return the state is on disk.
pub const STATE_PUT: &str = "state.put";

/// Leases a number: [`AcquireLease`] → [`Lease`].
pub const LEASES_ACQUIRE: &str = "leases.acquire";

/// Ends a lease: [`ReleaseLease`] → nothing.
pub const LEASES_RELEASE: &str = "leases.release";

/// Lists the leases of a pool: [`ListLeases`] → [`Leases`].
pub const LEASES_LIST: &str = "leases.list";

/// Counts output of containers that is lost: [`CountLost`] → nothing. For loggers.
pub const OUTPUT_LOST: &str = "output.lost";

/// Request of [`STATE_PUT`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutState {
    /// The container.
    pub container: ContainerId,
    /// The new state, which replaces the old one.
    pub state: Json,
}

/// Request of [`OUTPUT_LOST`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountLost {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// How many bytes of it are lost that were not counted before.
    pub bytes: u64,
}

/// Request of [`LEASES_ACQUIRE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireLease {
    /// Name of the pool, shared by all plugins of the agent: `net_cls`, `xfs_project`, ….
    pub pool: String,
    /// The smallest acceptable number.
    pub first: u32,
    /// The largest acceptable number.
    pub last: u32,
    /// The container that the number is for.
    pub container: ContainerId,
}

/// Request of [`LEASES_RELEASE`]. A lease that does not exist is ignored; one of another plugin is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseLease {
    /// Name of the pool.
    pub pool: String,
    /// The number.
    pub number: u32,
}

/// Request of [`LEASES_LIST`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListLeases {
    /// Name of the pool.
    pub pool: String,
}

/// Reply of [`LEASES_LIST`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Leases {
    /// The leases of all plugins in the pool, by number.
    pub leases: Vec<Lease>,
}

/// A number that belongs to one container until it is released. It survives restarts of the agent, and is released
/// at the latest when the agent has removed the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Name of the pool.
    pub pool: String,
    /// The number: the smallest free one of the requested range.
    pub number: u32,
    /// The container that it is for.
    pub container: ContainerId,
    /// Name of the plugin that acquired it.
    pub plugin: String,
}
