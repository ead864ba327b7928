//! Calls at the two ends of a plugin's work: `recover` and `cleanup`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use cofferdam_plugin_model::{ContainerDetails, ContainerId, Method};

use super::Chain;
use super::types::ContainerContext;
use crate::blocking::Job;
use crate::plugin::CallError;

impl Chain {
    /// Calls `recover` of every plugin. One that fails is out of service.
    pub async fn recover(&self) {
        // A logger that passes output on opens the pipes of the others again before these see that nobody has them open.
        for plugin in self.isolators.iter().chain(self.loggers.iter().rev()) {
            let (recovering, recoverer) = (Arc::clone(plugin), Arc::clone(&self.recoverer));
            let min_timeout = plugin.min_timeout(Method::Recover);
            let outcome = self.pool.run(min_timeout, move |job| recovering.recover(job, &*recoverer)).await;
            let reason = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(abandoned) => self.attribute(abandoned).to_string(),
            };
            tracing::error!(plugin = %plugin.name(), "plugin out of service, containers keep running: {reason}");
            plugin.disable(format!("it did not recover: {reason}"));
        }
    }

    /// Calls `cleanup` of every participant in reverse order, as steps of a job whose shortest timeout is
    /// [`Chain::teardown_timeout`]. Returns the failures, which are to be retried. Plugins in `lost`, to which
    /// an earlier attempt lost its job, are not called this time.
    pub fn cleanup(
        &self,
        job: &Job,
        container: &ContainerContext,
        lost: &BTreeMap<String, CallError>,
    ) -> Vec<CallError> {
        let (excluded, missing): (Vec<_>, Vec<_>) = container
            .participants
            .iter()
            .filter(|participant| self.plugin(&participant.plugin).is_none())
            .partition(|participant| participant.excluded);
        for participant in excluded {
            // It failed, the container did without, and the operator removed it from the chain.
            tracing::warn!(container = %container.id, plugin = participant.plugin, "plugin is gone; cleanup skipped");
        }
        let mut failed: Vec<CallError> = missing
            .into_iter()
            .map(|participant| CallError::Unavailable {
                plugin: participant.plugin.clone(),
                method: Method::Cleanup,
                state: "not in the chain",
                reason: "it prepared this container and must clean up after it; add it to the configuration \
                         and restart the agent"
                    .into(),
            })
            .collect();
        for (plugin, details) in self.calls(container, Method::Cleanup).into_iter().rev() {
            if let Some(error) = lost.get(&**plugin.name()) {
                failed.push(error.clone());
                continue;
            }
            let id = container.id.as_str();
            let request = || {
                let state = self.recoverer.state(plugin.name(), id);
                plugin.encode(Method::Cleanup, &ContainerDetails { state, ..details })
            };
            let outcome = plugin.call_with(job, &*self.recoverer, Method::Cleanup, id, request, &[]);
            failed.extend(outcome.err());
        }
        failed
    }

    /// Waits until one of the plugins whose calls about a container were late can be called again.
    pub async fn any_callable(&self, plugins: &BTreeSet<String>, container: &ContainerId) {
        let plugins = plugins.iter().filter_map(|name| self.plugin(name));
        let mut waiting: Vec<_> =
            plugins.map(|plugin| Box::pin(plugin.callable(container.as_str()))).collect();
        poll_fn(|context| {
            let is_ready = waiting.iter_mut().any(|plugin| plugin.as_mut().poll(context).is_ready());
            if is_ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The shortest timeout of any call during a teardown.
    #[must_use]
    pub fn teardown_timeout(&self) -> Duration {
        self.min_timeout(Method::Cleanup).min(self.min_timeout(Method::Limitation))
    }
}
