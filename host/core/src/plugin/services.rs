//! The services that the agent provides to plugins, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use cofferdam_plugin_model::service::{
    CountLost, LEASES_ACQUIRE, LEASES_LIST, LEASES_RELEASE, Leases, ListLeases, OUTPUT_LOST, PutState,
    ReleaseLease, STATE_PUT,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::recoverer::{Durability, Recoverer};
use crate::error_chain;

/// The services. They are connected when the chain exists; no container exists before.
#[derive(Default)]
pub struct Services {
    /// Not owned: a plugin may keep the services for the life of the process, and must not keep the agent alive.
    containers: OnceLock<Weak<dyn Recoverer>>,
    lost_output: Mutex<BTreeMap<String, LostOutput>>,
}

/// Bytes of output that a logger has lost, since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LostOutput {
    pub(super) stdout: u64,
    pub(super) stderr: u64,
}

/// Why a service did not do what it was asked for.
pub(super) enum ServiceError {
    /// This agent has no such service.
    Unknown,
    /// The request cannot be decoded.
    Malformed(String),
    /// It failed.
    Failed {
        /// Why.
        reason: String,
        /// Whether the same request may succeed later.
        retryable: bool,
    },
}

impl Services {
    /// Connects the services with the containers.
    pub fn connect(&self, containers: Weak<dyn Recoverer>) {
        // The first connection stays: there is one table of containers.
        drop(self.containers.set(containers));
    }

    /// Calls a service for a plugin, on any of its threads. Blocks while a state is written; it takes no lock that is
    /// held while a plugin is called. Returns the encoded reply.
    pub(super) fn call(&self, plugin: &str, service: &str, request: &[u8]) -> Result<Vec<u8>, ServiceError> {
        match service {
            STATE_PUT => {
                let PutState { container, state } = decode(request)?;
                let kept =
                    self.containers()?.keep_state(plugin, container.as_str(), state, Durability::Immediate);
                kept.map(|()| Vec::new()).map_err(|error| failed(&error, false))
            }
            LEASES_ACQUIRE => {
                let lease = self.containers()?.acquire_lease(plugin, decode(request)?);
                encode(&lease.map_err(|error| failed(&error, error.is_retryable()))?)
            }
            LEASES_RELEASE => {
                let ReleaseLease { pool, number } = decode(request)?;
                let released = self.containers()?.release_lease(plugin, &pool, number);
                released.map(|()| Vec::new()).map_err(|error| failed(&error, error.is_retryable()))
            }
            LEASES_LIST => {
                let ListLeases { pool } = decode(request)?;
                encode(&Leases { leases: self.containers()?.leases(&pool) })
            }
            OUTPUT_LOST => self.count_lost(plugin, decode(request)?).map(|()| Vec::new()),
            _ => Err(ServiceError::Unknown),
        }
    }

    /// What a logger has counted as lost.
    pub(super) fn lost_output(&self, plugin: &str) -> LostOutput {
        self.lost_output.lock().get(plugin).copied().unwrap_or_default()
    }

    /// Counts what a logger has not received.
    pub(super) fn count_unreceived(&self, plugin: &str, stream: &str, bytes: u64) {
        // Fails for other streams only.
        drop(self.count_lost(plugin, CountLost { stream: stream.to_owned(), bytes }));
    }

    fn count_lost(&self, plugin: &str, CountLost { stream, bytes }: CountLost) -> Result<(), ServiceError> {
        let mut lost = self.lost_output.lock();
        let lost = lost.entry(plugin.to_owned()).or_default();
        let counter = match stream.as_str() {
            "stdout" => &mut lost.stdout,
            "stderr" => &mut lost.stderr,
            _ => {
                let message = format!("`stream` is `{stream}`; expected `stdout` or `stderr`");
                return Err(ServiceError::Malformed(message));
            }
        };
        *counter = counter.saturating_add(bytes);
        Ok(())
    }

    fn containers(&self) -> Result<Arc<dyn Recoverer>, ServiceError> {
        let containers = self.containers.get().and_then(Weak::upgrade);
        containers.ok_or_else(|| ServiceError::Failed {
            reason: "the agent has not started, or has stopped".into(),
            retryable: true,
        })
    }
}

fn decode<T: DeserializeOwned>(request: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(request)
        .map_err(|error| ServiceError::Malformed(format!("cannot decode the request: {error}")))
}

fn encode(reply: &impl Serialize) -> Result<Vec<u8>, ServiceError> {
    serde_json::to_vec(reply).map_err(|error| failed(&error, false))
}

fn failed(error: &dyn std::error::Error, retryable: bool) -> ServiceError {
    ServiceError::Failed { reason: error_chain::describe(error), retryable }
}
