//! The services that the agent provides to plugins, by name.

use std::sync::{OnceLock, Weak};

use cofferdam_plugin_model::service::{PutState, STATE_PUT};

use super::recoverer::{Durability, Recoverer};
use crate::error_chain;

/// The services. They are connected when the chain exists; no container exists before.
#[derive(Default)]
pub struct Services {
    /// Not owned: a plugin may keep the services for the life of the process, and must not keep the agent alive.
    containers: OnceLock<Weak<dyn Recoverer>>,
}

/// Why a service did not do what it was asked for.
pub(super) enum ServiceError {
    /// This agent has no such service.
    Unknown,
    /// The request cannot be decoded.
    Malformed(String),
    /// It failed.
    Failed(String),
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
            STATE_PUT => self.put_state(plugin, request).map(|()| Vec::new()),
            _ => Err(ServiceError::Unknown),
        }
    }

    fn put_state(&self, plugin: &str, request: &[u8]) -> Result<(), ServiceError> {
        let PutState { container, state } = serde_json::from_slice(request)
            .map_err(|error| ServiceError::Malformed(format!("cannot decode the request: {error}")))?;
        let containers = self.containers.get().and_then(Weak::upgrade);
        let containers = containers
            .ok_or_else(|| ServiceError::Failed("the agent has not started, or has stopped".into()))?;
        containers
            .keep_state(plugin, container.as_str(), state, Durability::Immediate)
            .map_err(|error| ServiceError::Failed(error_chain::describe(&error)))
    }
}
