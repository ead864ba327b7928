//! The trait of isolators.

use std::os::fd::OwnedFd;

use cofferdam_plugin_model as model;
use model::{Limitation, Resources, Status, Usage};
use serde::de::DeserializeOwned;

use crate::{
    Applied, ContainerRef, Host, NewContainer, PluginConfig, Prepared, RecoverRequest, Recovery, Result,
};

/// An isolator: prepares, limits, observes and cleans up containers.
///
/// ```text
///  create ─▶ recover ─▶ ┬─ prepare ─▶ watch ─▶ isolate ─▶ (the command runs) ─▶ cleanup ─▶ removed
///                       │              └▶ limitation, update, usage, status, any number of times
///                       └─ … for every container
/// ```
///
/// - **Calls.** Any thread of the agent may call. Calls for different containers overlap; for one container there is at
///   most one call at a time.
/// - **Threads.** A call must leave its thread as it was. A thread whose namespaces, credentials, working directory,
///   root directory or signal mask a plugin has changed is never used again, and the plugin is named in the log. Do
///   such things in a child process, on a thread of the plugin's own, or by descriptor: open
///   `/proc/<pid>/ns/net` and hand the descriptor to [`Prepared::enter_by_descriptor`].
/// - **Deadlines.** Every call has one, set by the operator: [`NewContainer::deadline`], [`ContainerRef::deadline`],
///   [`RecoverRequest::deadline`]. A call that returns later has failed. The client is told at once; `cleanup` is called
///   when it has returned.
/// - **State.** The agent keeps one JSON value per container for the plugin: from [`Prepared::state`],
///   [`Applied::state`], [`Error::with_state`](crate::Error::with_state) or, before an effect,
///   [`Host::put_state`]. Every later call gets it. What an instance has in memory is lost when the agent restarts
///   and when the plugin panics.
/// - **Panics** become errors. The instance is then replaced by a new one, which gets its containers in `recover`.
/// - **Errors** of `prepare`, `watch` or `isolate` fail the launch, and `cleanup` follows.
/// - Methods that the `impl` block does not contain are never called.
///
/// Put [`#[isolator]`](crate::isolator) on the `impl` block to export it.
pub trait Isolator: Send + Sync + Sized + 'static {
    /// Name in the operator's configuration: `area/name`, or `name`.
    const NAME: &'static str;

    /// Whether it takes part in nested containers. If not, it is not called for them at all.
    const NESTING: bool = false;

    /// Whether it takes part in containers that were launched by themselves, without an executor or task.
    const STANDALONE: bool = true;

    /// Names of plugins that must be in the chain as well; the agent does not start otherwise.
    const REQUIRES: &'static [&'static str] = &[];

    /// Names of plugins that must not be in the chain as well; the agent does not start otherwise.
    const CONFLICTS: &'static [&'static str] = &[];

    /// Names of plugins that must come earlier, if they are in the chain.
    const AFTER: &'static [&'static str] = &[];

    /// Names of plugins that must come later, if they are in the chain.
    const BEFORE: &'static [&'static str] = &[];

    /// Features of the agent that the plugin cannot do without, from [`model::FEATURES`]: an agent that does not support
    /// one refuses to load the plugin. Features that it can do without are asked for with [`Host::supports`].
    const FEATURES: &'static [&'static str] = &[];

    /// Parts of a launch request that it carries out, from [`model::REQUEST_PARTS`]. The agent refuses a container that
    /// requests a part which none of its isolators handles.
    const HANDLES: &'static [&'static str] = &[];

    /// Type of its table in the configuration file; `()` for none.
    type Config: PluginConfig + DeserializeOwned;

    /// Creates the instance: when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Keep the agent from starting.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Takes over what exists; called once after `create`, before any launch.
    ///
    /// A plugin whose states have another form than those of an earlier version returns [`Recovery::upgrade`].
    /// **Must succeed for containers that it has never seen**, and must not change a container that it refuses.
    ///
    /// # Errors
    /// Take the plugin out of service and are reported to the operator; containers are not affected.
    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let _ = request;
        Ok(Recovery::new())
    }

    /// Prepares a container that does not exist yet, and returns what its launch is to include.
    ///
    /// # Errors
    /// Fail the launch; `cleanup` follows. See [`Error::with_state`](crate::Error::with_state).
    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let _ = container;
        Ok(Prepared::new())
    }

    /// Acts on the container's first process, which exists in its namespaces and cgroups and has not executed its
    /// command yet. `container.descriptor(0)` is its pidfd, `container.pid()` its pid.
    ///
    /// # Errors
    /// Fail the launch; `cleanup` follows.
    fn isolate(&self, container: &ContainerRef) -> Result<Applied> {
        let _ = container;
        Ok(Applied::new())
    }

    /// Returns a descriptor that becomes readable when the container may have exceeded a limit: an
    /// [`Event`](crate::Event), a [`Cgroup::watch`](crate::Cgroup::watch), …. Called before `isolate`, and after
    /// `recover` for every running container that the plugin serves. A descriptor that cannot be polled is an error.
    ///
    /// # Errors
    /// Fail the launch; after `recover`, they are reported.
    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        let _ = container;
        Ok(None)
    }

    /// Returns the limit that was exceeded, if any; the container then ends. Called when the descriptor of `watch` became
    /// readable (it is `container.descriptor(0)`; [drain](crate::event::drain) it), and once more after the container
    /// exited by itself. [`Limitation::container`] names another container of the same tree if that one is to end.
    ///
    /// # Errors
    /// Are reported; the container continues.
    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        let _ = container;
        Ok(None)
    }

    /// Applies new resources to a running container; `container.details()` has the old ones. Both are complete. Of a resource
    /// that does not [change](ContainerRef::changes), nothing is to be done or checked. One that only the old ones have was
    /// added by an update that is rolled back: apply what a container has that was launched without it.
    ///
    /// # Errors
    /// Fail the update; the plugins that have applied it, and this one, are called again with the old resources as the new
    /// ones and the reverse. [`Cgroup::changes`](crate::Cgroup::changes) makes changes that are all undone if one fails.
    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let _ = (container, resources);
        Ok(Applied::new())
    }

    /// Returns the container's resource usage.
    ///
    /// # Errors
    /// Leave its values out and are named in the response.
    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let _ = container;
        Ok(Usage::default())
    }

    /// Returns the container's status.
    ///
    /// # Errors
    /// Leave its fields out and are named in the response.
    fn status(&self, container: &ContainerRef) -> Result<Status> {
        let _ = container;
        Ok(Status::default())
    }

    /// Undoes `prepare` and all later calls. Every process of the container has exited; its sandbox still exists, and
    /// `container.details()` tells how it ended.
    ///
    /// **Must succeed for a container that it has never seen, and when called again.**
    ///
    /// # Errors
    /// Keep the container visible as being destroyed; the call is repeated until it succeeds.
    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// Releases what has to outlive the container: the agent has removed it and its sandbox, so ids by which its files
    /// were accounted for can be reused.
    ///
    /// **Must succeed for a container that it has never seen, and when called again.**
    ///
    /// # Errors
    /// Are reported; the call is repeated until it succeeds.
    fn removed(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }
}
