//! The trait of hooks.

use std::collections::BTreeMap;

use cofferdam_plugin_model as model;
use model::{DockerLaunch, DockerLaunchReply, ExecutorDetails, ExecutorEnvironment, PostFetch, TaskStatus};
use serde::de::DeserializeOwned;

use crate::{HookCall, Host, PluginConfig, Result};

/// A hook: is called at points of a launch and of the life of tasks, and can change or refuse what happens there.
///
/// ```text
///  an executor: executor_environment ─▶ (its container) ─▶ task_status, for every update ─▶ remove_executor
///
///  a container of an engine:   pre_launch_docker ─▶ (fetch, pull)  ─▶ post_fetch ─▶ (the command runs)
///  a container of processes:                        (fetch)        ─▶ post_fetch ─▶ (the command runs)
/// ```
///
/// - **Calls.** Any thread of the agent may call. Calls for different containers overlap; for one container there is at
///   most one call at a time. Hooks are called in the operator's order.
/// - **Threads, deadlines and panics** are as for an [`Isolator`](crate::Isolator): a call must leave its thread as it was,
///   one that returns after [`HookCall::deadline`] has failed, and a panic is an error of one call.
/// - **State.** A hook has none: there is no `recover` and no `cleanup`. What an instance has in memory is lost when the
///   agent restarts and when the plugin panics. Do not create what somebody has to remove; that is for isolators.
/// - **Errors** of `executor_environment`, `pre_launch_docker` and `post_fetch` fail the launch, unless the operator has made
///   the hook optional. Those of `task_status` and `remove_executor` are logged and counted.
/// - Methods that the `impl` block does not contain are never called.
///
/// Put [`#[hook]`](macro@crate::hook) on the `impl` block to export it.
pub trait Hook: Send + Sync + Sized + 'static {
    /// Name in the operator's configuration: `area/name`, or `name`.
    const NAME: &'static str;

    /// Names of plugins that must be configured as well; the agent does not start otherwise.
    const REQUIRES: &'static [&'static str] = &[];

    /// Names of plugins that must not be configured as well; the agent does not start otherwise.
    const CONFLICTS: &'static [&'static str] = &[];

    /// Names of hooks that must come earlier, if they are configured.
    const AFTER: &'static [&'static str] = &[];

    /// Names of hooks that must come later, if they are configured.
    const BEFORE: &'static [&'static str] = &[];

    /// See [`Isolator::FEATURES`](crate::Isolator::FEATURES).
    const FEATURES: &'static [&'static str] = &[];

    /// Type of its table in the configuration file; `()` for none.
    type Config: PluginConfig + DeserializeOwned;

    /// Creates the instance. Called when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Prevent the agent from starting. After a panic, they take the plugin out of service.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Returns the whole environment that the command of an executor is to have instead of
    /// [`ExecutorEnvironment::environment`]; `None` to leave it. Called before the launch of an executor, whatever launches
    /// it. Each hook gets what the ones before have returned. `inspect` shows the values.
    ///
    /// # Errors
    /// Fail the launch.
    fn executor_environment(
        &self,
        call: &HookCall<'_, ExecutorEnvironment>,
    ) -> Result<Option<BTreeMap<String, String>>> {
        let _ = call;
        Ok(None)
    }

    /// Returns environment variables for a container that an engine is about to make, and for its task. Called when its
    /// sandbox exists, before anything is fetched. May refuse the container.
    ///
    /// # Errors
    /// Fail the launch.
    fn pre_launch_docker(&self, call: &HookCall<'_, DockerLaunch>) -> Result<DockerLaunchReply> {
        let _ = call;
        Ok(DockerLaunchReply::default())
    }

    /// Acts on the sandbox of a container ([`HookCall::sandbox`]) after its files were fetched and, for a container of an
    /// engine, its image was pulled. Called for every container, also if it has no files to fetch and if it is nested. Its
    /// command has not been started; processes of a parent may change the sandbox meanwhile.
    ///
    /// # Errors
    /// Fail the launch.
    fn post_fetch(&self, call: &HookCall<'_, PostFetch>) -> Result<()> {
        let _ = call;
        Ok(())
    }

    /// Returns other labels or another container status for a status update of a task, before anybody receives it. Each hook
    /// gets what the ones before have returned. An update that is sent again after a failure may be decorated again.
    ///
    /// # Errors
    /// Are reported; the update is as before.
    fn task_status(&self, call: &HookCall<'_, TaskStatus>) -> Result<model::TaskStatusReply> {
        let _ = call;
        Ok(model::TaskStatusReply::default())
    }

    /// An executor has ended, and the status updates of its tasks were acknowledged. Called at most once; not called if the
    /// agent ends at that moment.
    ///
    /// # Errors
    /// Are reported.
    fn remove_executor(&self, call: &HookCall<'_, ExecutorDetails>) -> Result<()> {
        let _ = call;
        Ok(())
    }
}
