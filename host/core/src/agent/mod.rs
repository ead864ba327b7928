//! The agent, the interface of this library.
//!
//! ```text
//!   start.rs ──▶ build.rs    constructs the rest of the library and connects it
//!                  ├──▶ host.rs       what exists on the host for the agent
//!                  ├──▶ plugins.rs    from their configuration to instances
//!                  └──▶ identity.rs   how others tell agents apart
//! ```

mod build;
mod error;
mod host;
mod identity;
mod plugins;
mod start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use host::Host;

use crate::blocking::{Abandoned, CallFile};
use crate::config::AgentConfig;
use crate::containerizer::{Containerizer, KillError, LaunchError, LaunchOutcome, RemoveError, UpdateError};
use crate::events::Events;
use crate::executor::Executors;
use crate::fatal::FatalErrors;
use crate::fetcher::{FetchStats, Fetcher};
use crate::image_gc::ImageGc;
use crate::model::view::{
    CallInProgress, Inspection, InterruptedCall, KeepersView, PluginView, Report, StatusView, Summary,
    UsageView, WantedReports,
};
use crate::model::{ContainerId, Request, Resources, Termination};
use crate::plugin::{Plugin, Store as PluginStore};
use crate::provisioner::{PrunePolicy, Pruned, Store, StoreError};
use crate::stats::{LaunchCounters, LaunchStats};
use crate::switchboard::{AttachError, AttachedInput, Attachment};

pub use error::StartError;
pub use identity::instance_of;

/// A removal of images that takes this long is reported.
const PRUNE_WARNING: Duration = Duration::from_secs(600);

/// Pause after an attempt to remove images during which somebody else used the store.
const PRUNE_RETRY: Duration = Duration::from_millis(250);

/// The agent. Cheap to clone; all clones are the same agent.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    config: AgentConfig,
    host: Host,
    containerizer: Arc<dyn Containerizer>,
    executors: Executors,
    plugins: Vec<Arc<Plugin>>,
    launches: LaunchCounters,
    calls: Option<Arc<CallFile>>,
    /// Calls during which the previous agent died.
    interrupted: Vec<InterruptedCall>,
    fatal: FatalErrors,
    events: Events,
    fetcher: Fetcher,
    images: Store,
    /// Keeps space for images, if that is configured.
    _image_gc: Option<ImageGc>,
    /// Copies of plugin files that are in use are not removed while it is open.
    _plugin_store: Arc<PluginStore>,
}

/// Why images were not removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread of the agent panicked.
    #[error("the removal was interrupted: {0}")]
    Interrupted(#[from] Abandoned),
}

impl Agent {
    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.0.config
    }

    /// Launches a container, or leaves nothing of it behind. Dropping the future does not cancel the launch.
    ///
    /// Returns the pid of its first process.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn launch(&self, request: Request) -> Result<i32, LaunchError> {
        let started = Instant::now();
        let id = request.id.clone();
        let outcome = match self.0.containerizer.launch(request).await {
            Ok(LaunchOutcome::Launched { pid }) => Ok(pid),
            Ok(LaunchOutcome::NotSupported) => Err(LaunchError::NotSupported { id }),
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) => self.0.launches.count_started(started.elapsed()),
            Err(_) => self.0.launches.count_failed(),
        }
        outcome
    }

    /// Waits until a container has ended and is cleaned up. `None` for an unknown container.
    pub async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.containerizer.wait(id).await
    }

    /// Attaches a client to the standard streams, or the terminal, of a container. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.0.containerizer.attach(id)
    }

    /// The attachment of the client for which a container was launched, once: see [`Request::attached`].
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.0.containerizer.attach_first(id)
    }

    /// As [`Self::attach`], for input only.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        self.0.containerizer.attach_input(id)
    }

    /// Sends a signal to a container's command; SIGKILL destroys the container. Returns false for a container that
    /// is unknown or has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        self.0.containerizer.kill(id, signal).await
    }

    /// Destroys a container, and those nested in it, without waiting for plugins that do not clean up. What they missed is
    /// recorded and shown, and performed when they can be called. Returns false for a container that is unknown or has
    /// ended.
    pub async fn force(&self, id: &ContainerId) -> bool {
        self.0.containerizer.force(id).await
    }

    /// Destroys a container and waits until nothing is left of it. `None` for an unknown container.
    pub async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        self.0.containerizer.destroy(id).await
    }

    /// Removes a container that has ended, with its sandbox. Returns false for an unknown container.
    ///
    /// # Errors
    /// When it has not ended.
    pub async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        self.0.containerizer.remove(id).await
    }

    /// Changes a container's resources, all of them or none.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        self.0.containerizer.update(id, resources).await
    }

    /// Resource usage of a container. `None` for one that is unknown or not running.
    pub async fn usage(&self, id: &ContainerId) -> Option<UsageView> {
        self.report(id, WantedReports::USAGE).await.usage
    }

    /// Status of a container. `None` for one that is unknown or not running.
    pub async fn status(&self, id: &ContainerId) -> Option<StatusView> {
        self.report(id, WantedReports::STATUS).await.status
    }

    async fn report(&self, id: &ContainerId, wanted: WantedReports) -> Report {
        self.reports(std::slice::from_ref(id), wanted).await.pop().unwrap_or_default()
    }

    /// What is reported about containers, in the order of `ids`. Faster than asking about one after the other.
    pub async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        self.0.containerizer.reports(ids, wanted).await
    }

    /// Removes images that no container uses, except those that are excluded here or in the configuration. Waits for pulls and
    /// imports that are in progress.
    ///
    /// # Errors
    /// [`PruneError`].
    pub async fn prune_images(&self, mut policy: PrunePolicy) -> Result<Pruned, PruneError> {
        policy.excluded.extend(self.0.config.image_gc.excluded.iter().cloned());
        let policy = Arc::new(policy);
        loop {
            let (store, policy) = (self.0.images.clone(), Arc::clone(&policy));
            let pruned = self.0.host.pool.run(PRUNE_WARNING, move |_| store.try_prune(&policy)).await??;
            if let Some(pruned) = pruned {
                return Ok(pruned);
            }
            // A thread that waits for the lock would be missing elsewhere, for as long as a pull takes.
            tokio::time::sleep(PRUNE_RETRY).await;
        }
    }

    /// All containers, parents before children.
    #[must_use]
    pub fn containers(&self) -> Vec<Summary> {
        self.0.containerizer.containers()
    }

    /// Executors and their tasks.
    #[must_use]
    pub fn executors(&self) -> &Executors {
        &self.0.executors
    }

    /// Whether a container is known.
    #[must_use]
    pub fn contains(&self, id: &ContainerId) -> bool {
        self.0.containerizer.contains(id)
    }

    /// Details of a container.
    #[must_use]
    pub fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        self.0.containerizer.inspect(id)
    }

    /// All plugins in chain order, then the logger, then the hooks.
    #[must_use]
    pub fn plugins(&self) -> Vec<PluginView> {
        let interrupted = |plugin: &Plugin| {
            let calls = self.0.interrupted.iter().filter(|call| call.plugin == **plugin.name());
            calls.cloned().collect()
        };
        let view =
            |plugin: &Arc<Plugin>| PluginView { interrupted_calls: interrupted(plugin), ..plugin.view() };
        self.0.plugins.iter().map(view).collect()
    }

    /// The calls of plugins about containers that are in progress, in chain order.
    #[must_use]
    pub fn calls_in_progress(&self) -> Vec<CallInProgress> {
        self.0.plugins.iter().flat_map(|plugin| plugin.calls_in_progress()).collect()
    }

    /// What is known of the keepers, the processes that create those of containers.
    #[must_use]
    pub fn keepers(&self) -> KeepersView {
        self.0.host.launcher.keepers().view()
    }

    /// What happens to containers and plugins.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// Launches since the start.
    #[must_use]
    pub fn launch_stats(&self) -> LaunchStats {
        self.0.launches.read()
    }

    /// Counts of fetched files, and what is in the cache of these.
    #[must_use]
    pub fn fetch_stats(&self) -> FetchStats {
        self.0.fetcher.stats()
    }

    /// Waits for an error after which the agent cannot go on, and returns it: a task that supervises a container
    /// panicked. End the process or start another agent then; the containers keep running.
    pub async fn failed(&self) -> String {
        self.0.fatal.first().await
    }

    /// Stops the agent. Its containers keep running; the next agent recovers them.
    pub async fn shutdown(self) {
        self.0.host.release().await;
        self.0.calls.iter().for_each(|calls| calls.close());
        let running = self.containers().iter().filter(|container| container.phase.is_live()).count();
        tracing::info!("agent stopped; {running} containers keep running");
    }

    /// Destroys every container. Returns those that are not gone within the destroy timeout.
    pub async fn destroy_all(&self) -> Vec<ContainerId> {
        let deadline = tokio::time::Instant::now() + self.0.config.destroy_timeout;
        let live = self.containers().into_iter().filter(|container| container.phase.is_live());
        let mut destroying = Vec::new();
        for container in live {
            let (agent, id) = (self.clone(), container.id.clone());
            destroying.push((container.id, tokio::spawn(async move { agent.destroy(&id).await })));
        }
        let mut remaining = Vec::new();
        for (id, destroyed) in destroying {
            if tokio::time::timeout_at(deadline, destroyed).await.is_err() {
                remaining.push(id);
            }
        }
        remaining
    }
}
