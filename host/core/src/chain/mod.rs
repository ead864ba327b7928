//! The chain: all isolators in the operator's order, and the loggers, called as one.
//!
//! ```text
//! prepare     one after the other, in order; the first failure stops it
//! watch       one after the other, in order; the first failure stops a launch
//! isolate     all at once; waits until every call that was started has ended
//! update      one after the other; when one fails, the ones before it are rolled back
//! usage       one after the other, also for many containers; failures are reported, the rest is returned
//! cleanup     one after the other, in reverse; a failure does not skip the others
//! ```
//!
//! A failed launch is not undone here: the container is then destroyed, which calls `cleanup`.

mod cleanup;
mod fan_out;
mod plan;
mod prepare;
mod report;
mod sequence;
mod stdio;
mod types;
mod update;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_plugin_model::{Container, ContainerDetails, Method};
use serde_json::Value as Json;

use crate::blocking::{Abandoned, BlockingPool, Job};
use crate::config::{FailPolicy, default_timeout};
use crate::plugin::{CallError, Plugin, Recoverer, attribute};

pub use plan::{Conflict, LaunchPlan, Owned};
pub use prepare::LookUpUser;
pub use report::Reports;
pub use sequence::{CallSequence, SequenceOutcome};
pub use stdio::StdioTarget;
pub use types::{ChainError, ContainerContext, Participant, PreparedLaunch, Responses, RunAs, Watch};
pub use update::{FailedUpdate, Rollback, States};

/// All plugins of an agent, in the order in which they are called. Cheap to clone.
#[derive(Clone)]
pub struct Chain {
    isolators: Arc<[Arc<Plugin>]>,
    /// Those that the last one passes output on to, and that one.
    loggers: Arc<[Arc<Plugin>]>,
    pool: BlockingPool,
    recoverer: Arc<dyn Recoverer>,
}

/// The payload of a request, if it can be encoded.
type EncodedRequest = Result<Vec<u8>, CallError>;

impl Chain {
    /// A chain of these plugins, in this order. The last one of the loggers passes output on to the others, if there are some.
    #[must_use]
    pub fn new(
        isolators: Vec<Arc<Plugin>>,
        loggers: Vec<Arc<Plugin>>,
        pool: BlockingPool,
        recoverer: Arc<dyn Recoverer>,
    ) -> Self {
        Self { isolators: isolators.into(), loggers: loggers.into(), pool, recoverer }
    }

    /// Every plugin, the loggers last.
    pub fn plugins(&self) -> impl DoubleEndedIterator<Item = &Arc<Plugin>> {
        self.isolators.iter().chain(&*self.loggers)
    }

    /// Whether there is any isolator.
    #[must_use]
    pub fn has_isolators(&self) -> bool {
        !self.isolators.is_empty()
    }

    /// The logger, if there is one.
    #[must_use]
    pub fn logger(&self) -> Option<&Arc<Plugin>> {
        self.loggers.last()
    }

    /// The plugin of that name.
    #[must_use]
    pub fn plugin(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.plugins().find(|plugin| &**plugin.name() == name)
    }

    /// The participants of a new container: every plugin that supports such a container. They are recorded before
    /// the first is called, because `cleanup` must be called on each that may have been asked to `prepare`.
    #[must_use]
    pub fn participants(&self, container: &Container) -> Vec<Participant> {
        let supports = |plugin: &&Arc<Plugin>| {
            let manifest = plugin.manifest();
            (!container.id.is_nested() || manifest.nesting) && (!container.standalone || manifest.standalone)
        };
        self.plugins()
            .filter(supports)
            .map(|plugin| Participant {
                plugin: plugin.name().to_string(),
                version: plugin.manifest().version.clone(),
                state: Json::Null,
                unavailable: None,
                excluded: false,
            })
            .collect()
    }

    /// The first of the parts of a request that none of the participants handles. Those that were excluded do not count.
    #[must_use]
    pub fn unhandled(
        &self,
        parts: BTreeSet<&'static str>,
        participants: &[Participant],
    ) -> Option<&'static str> {
        let active = participants.iter().filter(|participant| participant.unavailable.is_none());
        let plugins: Vec<_> = active.filter_map(|participant| self.plugin(&participant.plugin)).collect();
        let is_handled = |part: &str| {
            plugins.iter().any(|plugin| plugin.manifest().handles.iter().any(|name| name == part))
        };
        parts.into_iter().find(|part| !is_handled(part))
    }

    /// Lets a launch continue without a plugin that failed, if its policy is optional.
    ///
    /// # Errors
    /// The plugin's error, if it is required.
    pub fn exclude(&self, error: &CallError, participants: &mut [Participant]) -> Result<(), ChainError> {
        let optional =
            self.plugin(error.plugin()).is_some_and(|plugin| plugin.policy() == FailPolicy::Optional);
        let participant = participants.iter_mut().find(|participant| participant.plugin == error.plugin());
        let Some(participant) = participant.filter(|_| optional) else {
            return Err(error.clone().into());
        };
        tracing::warn!(plugin = participant.plugin, "optional plugin excluded from the container: {error}");
        participant.unavailable = Some(error.to_string());
        participant.excluded = true;
        Ok(())
    }

    /// Turns an abandoned job into an error of the plugin that caused it.
    #[must_use]
    pub fn attribute(&self, abandoned: Abandoned) -> CallError {
        attribute(abandoned, |name| self.plugin(name))
    }

    /// The plugin of a participant, if it serves the container and has the method.
    fn serving(&self, participant: &Participant, method: Method) -> Option<&Arc<Plugin>> {
        // Whoever was asked to prepare is asked to clean up, whatever happened in between.
        let available =
            participant.unavailable.is_none() || matches!(method, Method::Cleanup | Method::Removed);
        self.plugin(&participant.plugin).filter(|plugin| available && plugin.implements(method))
    }

    /// The participants that serve the container and have the method, with what each gets to know of the container.
    fn calls(&self, container: &ContainerContext, method: Method) -> Vec<(Arc<Plugin>, ContainerDetails)> {
        let participants = container.participants.iter();
        participants
            .filter_map(|participant| {
                let plugin = self.serving(participant, method)?;
                Some((Arc::clone(plugin), container.details_for(participant)))
            })
            .collect()
    }

    /// [`Self::calls`], encoded.
    fn encoded_calls(
        &self,
        container: &ContainerContext,
        method: Method,
    ) -> Vec<(Arc<Plugin>, EncodedRequest)> {
        let encoded = |(plugin, details): (Arc<Plugin>, ContainerDetails)| {
            let request = plugin.encode(method, &details);
            (plugin, request)
        };
        self.calls(container, method).into_iter().map(encoded).collect()
    }

    /// Runs a job with calls of one method.
    async fn run<T: Send + 'static>(
        &self,
        method: Method,
        work: impl FnOnce(&Job) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        self.pool.run(self.min_timeout(method), work).await.map_err(|abandoned| self.attribute(abandoned))
    }

    /// The shortest timeout of any plugin for a method.
    fn min_timeout(&self, method: Method) -> Duration {
        let timeouts = self.plugins().map(|plugin| plugin.min_timeout(method));
        timeouts.min().unwrap_or_else(|| default_timeout(method))
    }
}
