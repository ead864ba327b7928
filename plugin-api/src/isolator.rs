//! What an isolator is to its author.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_plugin_model as model;
use model::{
    Container, ContainerId, Limitation, Namespace, Operation, Recovered, Resources, Root, Status, Usage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Host, PluginConfig, Result, Subject};

/// One way of isolating containers.
///
/// ```text
///  create ─▶ recover ─▶ ┬─ prepare ─▶ watch ─▶ isolate ─▶ (the command runs) ─▶ cleanup
///                       │              └▶ limitation, update, usage, status, any number of times
///                       └─ … for every container
/// ```
///
/// - **Threads.** Any thread of the agent calls, never one that others wait for. Calls for different
///   containers overlap; calls for one container follow each other.
/// - **Deadlines.** Each call has one, set by the operator. What answers too late has failed; the call is
///   abandoned, and `cleanup` still comes.
/// - **Panics** become errors. The instance is then made anew and told of its containers by `recover`.
/// - **Failing** `prepare`, `isolate` or `watch` fails the launch, and `cleanup` follows.
/// - Methods that are not in the `impl` block are never called, and cost nothing.
///
/// Write the block under `#[cofferdam_plugin_api::isolator]`, which exports it.
pub trait Isolator: Send + Sync + Sized + 'static {
    /// `area/name`: what operators write into their chain.
    const NAME: &'static str;

    /// Whether it takes part in nested containers.
    const NESTING: bool = false;

    /// Whether it takes part in containers that an operator launched by themselves.
    const STANDALONE: bool = true;

    /// Plugins that must be in the chain as well.
    const REQUIRES: &'static [&'static str] = &[];

    /// Plugins that must not be in the chain as well.
    const CONFLICTS: &'static [&'static str] = &[];

    /// Plugins that, if in the chain, must come earlier.
    const AFTER: &'static [&'static str] = &[];

    /// Its table in the configuration file; `()` for none.
    type Config: PluginConfig + DeserializeOwned;

    /// Makes it. Called once when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Keep the agent from starting.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Learns what is there already; called once after `create`, before any launch.
    ///
    /// `containers` run and were prepared by this plugin, perhaps in an earlier version: look at
    /// [`Recovered::written_by`] and migrate the state, or refuse. `orphans` are about to be cleaned up by
    /// the ordinary way. What else it finds of its own on the host belongs to nobody and is its to remove.
    /// **Must succeed on containers it has never seen**, and touch nothing of one it refuses.
    ///
    /// # Errors
    /// Keep the plugin out of service, and name it to the operator; no container is harmed.
    fn recover(&self, containers: Vec<Recovered>, orphans: Vec<ContainerId>) -> Result<Recovery> {
        let _ = (containers, orphans);
        Ok(Recovery::new())
    }

    /// Gets ready for a container that does not exist yet, and says what it wishes for its launch.
    ///
    /// # Errors
    /// Fail the launch. What was done must be left so that `cleanup` can undo it.
    fn prepare(&self, container: &Container) -> Result<Prepared> {
        let _ = container;
        Ok(Prepared::new())
    }

    /// Gets hold of the container's first process, which exists in its namespaces and control groups and
    /// waits. `container.descriptor(0)` is its pidfd.
    ///
    /// # Errors
    /// Fail the launch.
    fn isolate(&self, container: &Subject) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// Says what to wait for: a descriptor that becomes readable when the container may have gone over a
    /// limit. Called before `isolate`, and after `recover` for every container that runs.
    ///
    /// # Errors
    /// Fail the launch; after `recover`, they are reported.
    fn watch(&self, container: &Subject) -> Result<Option<OwnedFd>> {
        let _ = container;
        Ok(None)
    }

    /// Says which limit was reached, or none. Called when the descriptor of `watch` became readable (it is
    /// `container.descriptor(0)`; read it empty), and once more when the container has ended by itself.
    /// A limit that was reached ends the container.
    ///
    /// # Errors
    /// Are reported; the container goes on.
    fn limitation(&self, container: &Subject) -> Result<Option<Limitation>> {
        let _ = container;
        Ok(None)
    }

    /// Changes what the container may use from now on. `Some` state replaces what the agent keeps.
    ///
    /// # Errors
    /// Fail the update; the others in the chain are then told to go back.
    fn update(&self, container: &Subject, resources: &Resources) -> Result<Option<serde_json::Value>> {
        let _ = (container, resources);
        Ok(None)
    }

    /// Says what the container uses.
    ///
    /// # Errors
    /// Leave its figures out, and are named in the answer.
    fn usage(&self, container: &Subject) -> Result<Usage> {
        let _ = container;
        Ok(Usage::default())
    }

    /// Says how the container is.
    ///
    /// # Errors
    /// Leave its fields out, and are named in the answer.
    fn status(&self, container: &Subject) -> Result<Status> {
        let _ = container;
        Ok(Status::default())
    }

    /// Undoes what `prepare` and all later calls did. Every process of the container is gone.
    ///
    /// **Must succeed on a container it has never seen, and when called again.**
    ///
    /// # Errors
    /// Keep the container visible as being destroyed; the call is repeated until it succeeds.
    fn cleanup(&self, container: &Subject) -> Result<()> {
        let _ = container;
        Ok(())
    }
}

/// What an isolator wishes for a launch, and what the agent is to keep for it.
#[derive(Debug, Default)]
pub struct Prepared(pub(crate) model::PrepareReply);

impl Prepared {
    /// No wishes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The wishes themselves, for those without a method here.
    pub fn launch(&mut self) -> &mut model::LaunchInfo {
        &mut self.0.launch
    }

    /// Sets a variable of the container's environment.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.launch.environment.insert(name.into(), value.into());
        self
    }

    /// Makes a namespace anew.
    #[must_use]
    pub fn clone_namespace(mut self, namespace: Namespace) -> Self {
        self.0.launch.clone_namespaces.insert(namespace);
        self
    }

    /// Enters a namespace of the parent container.
    #[must_use]
    pub fn enter_namespace(mut self, namespace: Namespace) -> Self {
        self.0.launch.enter_namespaces.insert(namespace);
        self
    }

    /// Sets the root file system.
    #[must_use]
    pub fn root(mut self, root: Root) -> Self {
        self.0.launch.root = Some(root);
        self
    }

    /// Adds a change to the file system that the container sees.
    #[must_use]
    pub fn operation(mut self, operation: Operation) -> Self {
        self.0.launch.operations.push(operation);
        self
    }

    /// Has the container's first process born in this cgroup v1 directory.
    #[must_use]
    pub fn born_in(mut self, cgroup: impl Into<PathBuf>) -> Self {
        self.0.launch.cgroups.push(cgroup.into());
        self
    }

    /// Has the agent keep a state for this container: given back with every later call and in `recover`,
    /// and on disk before the container runs.
    ///
    /// # Errors
    /// When the state cannot be written as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.0.state = serde_json::to_value(state)?;
        Ok(self)
    }
}

/// What a plugin makes of the containers it found when it started. One that is not mentioned is accepted.
#[derive(Debug, Default)]
pub struct Recovery(pub(crate) BTreeMap<ContainerId, model::Verdict>);

impl Recovery {
    /// Accepts every container as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves this container, with a new state in place of the old one.
    ///
    /// # Errors
    /// When the state cannot be written as JSON.
    pub fn migrate(&mut self, container: &ContainerId, state: &impl Serialize) -> Result<()> {
        let state = serde_json::to_value(state)?;
        self.0.insert(container.clone(), model::Verdict::Migrated { state });
        Ok(())
    }

    /// Does not serve this container, and has changed nothing of it. It goes on unharmed, and the
    /// operator is told the reason.
    pub fn refuse(&mut self, container: &ContainerId, reason: impl Into<String>) {
        self.0.insert(container.clone(), model::Verdict::Refused { reason: reason.into() });
    }
}
