//! Update of a container's resources, all of it or nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cofferdam_plugin_model::{ContainerDetails, ContainerId, Method, Resources, StateReply, UpdateRequest};
use serde_json::Value as Json;

use super::Chain;
use super::types::ContainerContext;
use crate::blocking::Job;
use crate::plugin::{CallError, Plugin, Recoverer};

/// States that changed, by plugin.
pub type States = BTreeMap<String, Json>;

/// A plugin with what it gets to know of the container.
type PluginCall = (Arc<Plugin>, ContainerDetails);

/// Why an update failed, and the result of its roll back.
#[derive(Debug)]
pub struct FailedUpdate {
    /// Why it failed.
    pub cause: CallError,
    /// The roll back.
    pub rollback: Rollback,
}

/// What a roll back has achieved.
#[derive(Debug, Default)]
pub struct Rollback {
    /// States that changed.
    pub states: States,
    /// Why it is incomplete: calls that failed, or one of the update itself that is late and may still apply it.
    pub failures: Vec<CallError>,
}

impl Chain {
    /// Calls `update` of each plugin. When one fails, those that were called are rolled back to `from`.
    ///
    /// Returns the states that changed.
    ///
    /// # Errors
    /// The failure, and the result of the roll back.
    pub async fn update(
        &self,
        container: &ContainerContext,
        from: Resources,
        to: Resources,
    ) -> Result<States, FailedUpdate> {
        let calls = self.update_calls(container, &from);
        // Read by this task also when one of the calls times out.
        let done = Arc::new(AtomicUsize::new(0));
        let (recoverer, id, attempted) = (Arc::clone(&self.recoverer), container.id.clone(), to.clone());
        let (job_calls, job_done) = (calls.clone(), Arc::clone(&done));
        let outcome = self
            .run(Method::Update, move |job| {
                let mut states = States::new();
                for (plugin, details) in &job_calls {
                    let reply = update(job, &*recoverer, &id, plugin, details, &to)?;
                    states.extend(reply.state.map(|state| (plugin.name().to_string(), state)));
                    job_done.fetch_add(1, Ordering::Release);
                }
                Ok(states)
            })
            .await;
        let cause = match outcome.and_then(|outcome| outcome) {
            Ok(states) => return Ok(states),
            Err(cause) => cause,
        };
        // The one that failed may have done part of it. One that is late is still running, and cannot be called.
        let done = done.load(Ordering::Acquire);
        let called = if cause.is_late() { done } else { done + 1 };
        let affected = calls.into_iter().take(called).map(|(plugin, _)| plugin.name().to_string()).collect();
        let mut rollback = self.roll_back_of(container, attempted, from, Some(affected)).await;
        if cause.is_late() {
            rollback.failures.push(cause.clone());
        }
        Err(FailedUpdate { cause, rollback })
    }

    /// Calls `update` of each plugin to roll back an update from `attempted` to `to`. What `attempted` has and `to` has not
    /// is taken back, which plugins see from the old resources in the details. A failure does not keep the others from being
    /// called.
    pub async fn roll_back(
        &self,
        container: &ContainerContext,
        attempted: Resources,
        to: Resources,
    ) -> Rollback {
        self.roll_back_of(container, attempted, to, None).await
    }

    /// [`Self::roll_back`] of some plugins only, by name.
    async fn roll_back_of(
        &self,
        container: &ContainerContext,
        attempted: Resources,
        to: Resources,
        plugins: Option<Vec<String>>,
    ) -> Rollback {
        let mut calls = self.update_calls(container, &attempted);
        if let Some(plugins) = plugins {
            calls.retain(|(plugin, _)| plugins.iter().any(|name| **name == **plugin.name()));
        }
        let (recoverer, id) = (Arc::clone(&self.recoverer), container.id.clone());
        let outcome = self.run(Method::Update, move |job| {
            let mut rollback = Rollback::default();
            for (plugin, details) in calls.iter().rev() {
                match update(job, &*recoverer, &id, plugin, details, &to) {
                    Ok(reply) => {
                        rollback.states.extend(reply.state.map(|state| (plugin.name().to_string(), state)))
                    }
                    Err(error) => rollback.failures.push(error),
                }
            }
            rollback
        });
        // After a timeout, what the others have replied is lost; the next attempt gets it again.
        outcome.await.unwrap_or_else(|late| Rollback { failures: vec![late], ..Rollback::default() })
    }

    /// The calls of an update of a container that has the resources `from`.
    fn update_calls(&self, container: &ContainerContext, from: &Resources) -> Vec<PluginCall> {
        let mut calls = self.calls(container, Method::Update);
        calls.iter_mut().for_each(|(_, details)| details.resources = from.clone());
        calls
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
