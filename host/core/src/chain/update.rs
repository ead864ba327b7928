//! Update of a container's resources, all of it or nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cofferdam_plugin_model::{ContainerDetails, ContainerId, Method, Resources, StateReply, UpdateRequest};
use serde_json::Value as Json;

use super::Chain;
use super::types::{ChainError, ContainerContext};
use crate::blocking::Job;
use crate::plugin::{CallError, Plugin, Recoverer};

impl Chain {
    /// Calls `update` of each plugin. When one fails, those before it are rolled back to `from`: what `to` has and `from` has
    /// not is taken back, which plugins see from the old resources in the details.
    ///
    /// Returns the states that changed, by plugin.
    ///
    /// # Errors
    /// The failure.
    pub async fn update(
        &self,
        container: &ContainerContext,
        from: Resources,
        to: Resources,
    ) -> Result<BTreeMap<String, Json>, ChainError> {
        let mut calls = self.calls(container, Method::Update);
        calls.iter_mut().for_each(|(_, details)| details.resources = from.clone());
        if calls.is_empty() {
            return Ok(BTreeMap::new());
        }
        // Read by this task also when one of the calls times out.
        let done = Arc::new(AtomicUsize::new(0));
        let (recoverer, id, attempted) = (Arc::clone(&self.recoverer), container.id.clone(), to.clone());
        let (job_calls, job_done) = (calls.clone(), Arc::clone(&done));
        let outcome = self
            .run(Method::Update, move |job| {
                let mut states = BTreeMap::new();
                for (plugin, details) in &job_calls {
                    let reply = update(job, &*recoverer, &id, plugin, details, &to)?;
                    if let Some(state) = reply.state {
                        states.insert(plugin.name().to_string(), state);
                    }
                    job_done.fetch_add(1, Ordering::Release);
                }
                Ok(states)
            })
            .await;
        let done = done.load(Ordering::Acquire);
        let (cause, affected) = match outcome {
            Ok(Ok(states)) => return Ok(states),
            // The one that failed may have done part of it.
            Ok(Err(cause)) => (cause, calls.into_iter().take(done + 1)),
            // The one that timed out is still running, and must not be called at the same time.
            Err(error) if error.is_late() => (error, calls.into_iter().take(done)),
            Err(error) => (error, calls.into_iter().take(done + 1)),
        };
        let (recoverer, id) = (Arc::clone(&self.recoverer), container.id.clone());
        let mut affected: Vec<_> = affected.rev().collect();
        affected.iter_mut().for_each(|(_, details)| details.resources = attempted.clone());
        let rollback = self
            .run(Method::Update, move |job| {
                let failures = affected.iter().filter_map(|(plugin, details)| {
                    update(job, &*recoverer, &id, plugin, details, &from).err()
                });
                failures.collect::<Vec<CallError>>()
            })
            .await
            .unwrap_or_else(|timeout| vec![timeout]);
        Err(if rollback.is_empty() { cause.into() } else { ChainError::RollbackFailed { cause, rollback } })
    }
}

fn update(
    job: &Job,
    recoverer: &dyn Recoverer,
    id: &ContainerId,
    plugin: &Plugin,
    details: &ContainerDetails,
    resources: &Resources,
) -> Result<StateReply, CallError> {
    let request = UpdateRequest { details: details.clone(), resources: resources.clone() };
    plugin.call(job, recoverer, Method::Update, id.as_str(), &request)
}
