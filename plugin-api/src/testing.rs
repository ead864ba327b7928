//! A harness for unit tests of plugins. It calls the plugin as the agent does: through the ABI, with encoded payloads.
//!
//! ```
//! # use cofferdam_plugin_api::prelude::*;
//! # struct Building;
//! # impl Isolator for Building {
//! #     const NAME: &'static str = "example/building";
//! #     type Config = ();
//! #     fn create(_: (), _: Host) -> Result<Self> { Ok(Self) }
//! #     fn prepare(&self, _: &NewContainer) -> Result<Prepared> {
//! #         Ok(Prepared::new().environment("BUILDING", "north"))
//! #     }
//! # }
//! use cofferdam_plugin_api::testing::PluginHarness;
//!
//! let harness = PluginHarness::<Building>::isolator(serde_json::json!({}))?;
//! let prepared = harness.prepare("web")?;
//! assert_eq!(prepared.launch.environment["BUILDING"], "north");
//! harness.cleanup("web")?;
//! # Ok::<(), cofferdam_plugin_api::testing::Refused>(())
//! ```

mod cgroups;
mod hierarchy;
mod host;
mod shell;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RSlice, RStr};
use cofferdam_linux::capability::OwnSets;
use cofferdam_linux::resource_limit;
use cofferdam_plugin_abi::{Answer, Call, Failure, HookBox, HostBox, IsolatorBox, LoggerBox};
use cofferdam_plugin_model as model;
use model::{
    AgentInfo, AgentProcess, Container, ContainerDetails, ContainerId, DockerLaunch, DockerLaunchReply,
    ExecutorDetails, ExecutorEnvironment, ExecutorEnvironmentReply, Limitation, LoggerReply, Method, Parent,
    PostFetch, PrepareReply, RecoverReply, Recovered, Resources, StateReply, Status, TaskStatus,
    TaskStatusReply, TerminationDetails, Usage,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::bridge::{new_hook, new_isolator, new_logger};
use crate::event::is_cgroup_file;
use crate::{Hook, Isolator, Logger};

use host::{Shared, TestHost};

pub use cgroups::CgroupHarness;
pub use shell::Shell;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The message that the agent would report, one cause per line.
    pub message: String,
    /// Location of a panic, as `file:line`; `None` if the call did not panic.
    pub location: Option<String>,
    /// Whether the plugin marked the error as temporary.
    pub retryable: bool,
    /// Whether only another request can help, according to the plugin.
    pub invalid: bool,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        let panicked = failure.code == Failure::PANICKED;
        Self {
            message: failure.message.into(),
            location: panicked.then(|| failure.location.into()),
            retryable: failure.retryable,
            invalid: failure.code == Failure::INVALID,
        }
    }
}

/// An instance of a plugin, with temporary directories, and with the state and details of its containers as the agent
/// keeps them.
pub struct PluginHarness<P> {
    instance: Instance,
    directory: Arc<TemporaryDirectory>,
    shared: Arc<Shared>,
    timeout: Option<Duration>,
    plugin: PhantomData<P>,
}

enum Instance {
    Isolator(IsolatorBox),
    Logger(LoggerBox),
    Hook(HookBox),
}

impl<I: Isolator> PluginHarness<I> {
    /// Creates an isolator with this table of the configuration file, in an agent that supports all features.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting.
    pub fn isolator(config: Json) -> Result<Self, Refused> {
        Self::isolator_in(agent(), config)
    }

    /// Creates an isolator in an agent with this description.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting.
    pub fn isolator_in(agent: AgentInfo, config: Json) -> Result<Self, Refused> {
        Self::new(I::NAME, agent, config, create_isolator::<I>)
    }

    /// Creates another instance with this configuration, as the agent does when it restarts: it has the same containers,
    /// states and leases. It recovers `containers`; `orphans` are to be cleaned up.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting, or take the plugin out of service.
    ///
    /// # Panics
    /// If an id is not a container id.
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn restart(&self, config: Json, containers: &[&str], orphans: &[&str]) -> Result<Self, Refused> {
        let id = |id: &&str| ContainerId::parse(id).expect("a container id");
        let written_by = model::Version::new(0, 0, 0);
        let recovered = |text: &&str| {
            let details = self.shared.details(text);
            let written_by = Some(written_by.clone()).filter(|_| !details.state.is_null());
            Recovered { id: id(text), details, written_by }
        };
        let (directory, shared) = (Arc::clone(&self.directory), Arc::clone(&self.shared));
        let next = Self::create(I::NAME, agent(), config, directory, shared, create_isolator::<I>)?;
        next.recover(containers.iter().map(recovered).collect(), orphans.iter().map(id).collect())?;
        Ok(next)
    }
}

impl<L: Logger> PluginHarness<L> {
    /// Creates a logger with this table of the configuration file, in an agent that supports all features.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting.
    pub fn logger(config: Json) -> Result<Self, Refused> {
        Self::logger_in(agent(), config)
    }

    /// Creates a logger in an agent with this description.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting.
    pub fn logger_in(agent: AgentInfo, config: Json) -> Result<Self, Refused> {
        Self::new(L::NAME, agent, config, |host, request| match new_logger::<L>(host, request) {
            RResult::ROk(logger) => Ok(Instance::Logger(logger)),
            RResult::RErr(failure) => Err(failure.into()),
        })
    }
}

impl<H: Hook> PluginHarness<H> {
    /// Creates a hook with this table of the configuration file, in an agent that supports all features.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting.
    pub fn hook(config: Json) -> Result<Self, Refused> {
        Self::hook_in(agent(), config)
    }

    /// Creates a hook in an agent with this description.
    ///
    /// # Errors
    /// The error that would prevent the agent from starting.
    pub fn hook_in(agent: AgentInfo, config: Json) -> Result<Self, Refused> {
        Self::new(H::NAME, agent, config, |host, request| match new_hook::<H>(host, request) {
            RResult::ROk(hook) => Ok(Instance::Hook(hook)),
            RResult::RErr(failure) => Err(failure.into()),
        })
    }

    /// Calls `executor_environment` for the executor in the container `id`. Returns the environment afterwards.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn executor_environment(
        &self,
        id: &str,
        request: &ExecutorEnvironment,
    ) -> Result<BTreeMap<String, String>, Refused> {
        let answer = self.call(Method::ExecutorEnvironment, id, &write(request)?, &[])?;
        let ExecutorEnvironmentReply { environment } = read(&answer)?;
        Ok(environment.unwrap_or_else(|| request.environment.clone()))
    }

    /// Calls `pre_launch_docker`.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn pre_launch_docker(&self, id: &str, request: &DockerLaunch) -> Result<DockerLaunchReply, Refused> {
        read(&self.call(Method::PreLaunchDocker, id, &write(request)?, &[])?)
    }

    /// Calls `post_fetch` with a directory as the sandbox, such as [`Container::sandbox`] of
    /// [`PluginHarness::container`].
    ///
    /// # Errors
    /// The error that would fail the launch.
    ///
    /// # Panics
    /// If the directory cannot be opened.
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn post_fetch(&self, id: &str, sandbox: &Path, request: &PostFetch) -> Result<(), Refused> {
        let sandbox = std::fs::File::open(sandbox).expect("cannot open the sandbox");
        self.call(Method::PostFetch, id, &write(request)?, &[sandbox.as_raw_fd()]).map(drop)
    }

    /// Calls `task_status` for a task of the executor in the container `id`.
    ///
    /// # Errors
    /// The error that the agent would report.
    pub fn task_status(&self, id: &str, request: &TaskStatus) -> Result<TaskStatusReply, Refused> {
        read(&self.call(Method::TaskStatus, id, &write(request)?, &[])?)
    }

    /// Calls `remove_executor` for the executor in the container `id`.
    ///
    /// # Errors
    /// The error that the agent would report.
    pub fn remove_executor(&self, id: &str, executor: &ExecutorDetails) -> Result<(), Refused> {
        self.call(Method::RemoveExecutor, id, &write(executor)?, &[]).map(drop)
    }
}

fn create_isolator<I: Isolator>(host: HostBox, request: RSlice<'_, u8>) -> Result<Instance, Refused> {
    match new_isolator::<I>(host, request) {
        RResult::ROk(isolator) => Ok(Instance::Isolator(isolator)),
        RResult::RErr(failure) => Err(failure.into()),
    }
}

/// An agent with the `linux` launcher that supports all features of this version.
fn agent() -> AgentInfo {
    AgentInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: model::FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
        launcher: "linux".to_owned(),
        process: process(),
        ..AgentInfo::default()
    }
}

/// That of the test.
fn process() -> AgentProcess {
    let sets = OwnSets::read().unwrap_or(OwnSets { permitted: 0, bounding: 0 });
    AgentProcess {
        permitted_capabilities: sets.permitted,
        bounding_capabilities: sets.bounding,
        hard_limits: resource_limit::own_hard_limits(),
    }
}

/// Construction, and the state of containers.
impl<P> PluginHarness<P> {
    fn new(
        name: &str,
        agent: AgentInfo,
        config: Json,
        create: impl FnOnce(HostBox, RSlice<'_, u8>) -> Result<Instance, Refused>,
    ) -> Result<Self, Refused> {
        let directory = TemporaryDirectory::new().map_err(|error| Refused {
            message: format!("cannot create a temporary directory for the test: {error}"),
            location: None,
            retryable: false,
            invalid: false,
        })?;
        Self::create(name, agent, config, Arc::new(directory), Arc::new(Shared::new(name)), create)
    }

    fn create(
        name: &str,
        agent: AgentInfo,
        config: Json,
        directory: Arc<TemporaryDirectory>,
        shared: Arc<Shared>,
        create: impl FnOnce(HostBox, RSlice<'_, u8>) -> Result<Instance, Refused>,
    ) -> Result<Self, Refused> {
        let request = model::CreateRequest {
            config,
            name: name.to_owned(),
            agent,
            runtime_directory: directory.0.join("runtime"),
            work_directory: directory.0.join("work"),
            file: library::<P>(),
        };
        let host = HostBox::from_value(TestHost(Arc::clone(&shared)), TD_Opaque);
        let instance = create(host, RSlice::from_slice(&write(&request)?))?;
        Ok(Self { instance, directory, shared, timeout: None, plugin: PhantomData })
    }

    /// Sets the time between the start of each call and its deadline. The harness still waits until calls return. By
    /// default, calls have no deadline.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// A temporary directory, which is removed when the harness is dropped.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// Creates a container as in a request of `prepare`, with an existing sandbox and scratch directory. If `id` is
    /// nested, the parent has the details and the state that this harness has for it.
    ///
    /// # Panics
    /// If `id` is not a container id or the directories cannot be created.
    #[must_use]
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn container(&self, id: &str) -> Container {
        let mut container = Container::new(ContainerId::parse(id).expect("`id` is a container id"));
        container.sandbox = self.directory.0.join("sandbox").join(id);
        container.scratch = self.directory.0.join("scratch").join(id);
        container.standalone = true;
        container.command.value = Some("true".into());
        container.parent = container.id.parent().map(|parent| {
            let details = self.shared.details(parent.as_str());
            Parent {
                id: parent.as_str().to_owned(),
                pid: details.pid,
                sandbox: details.sandbox,
                rootfs: details.rootfs,
                uid: details.uid,
                gid: details.gid,
                state: details.state,
            }
        });
        for directory in [&container.sandbox, &container.scratch] {
            std::fs::create_dir_all(directory).expect("cannot create a directory for the test");
        }
        container
    }

    /// The plugin's state for a container; null if there is none.
    #[must_use]
    pub fn state(&self, id: &str) -> Json {
        self.shared.details(id).state
    }

    /// The fields of the events that the plugin logged, in order, each as an object. All instances of plugins in one
    /// process log to the harness that was created first.
    #[must_use]
    pub fn logged(&self) -> Vec<Json> {
        self.shared.logged()
    }

    /// Bytes of output that the plugin has counted as lost, by stream, in all containers.
    #[must_use]
    pub fn lost_output(&self) -> BTreeMap<String, u64> {
        self.shared.lost_output()
    }

    /// Sets the pid of the container's first process, without a call. For plugins without `isolate`.
    pub fn started(&self, id: &str, pid: i32) {
        self.shared.change(id, |details| details.pid = Some(pid));
    }

    /// Records that the container's first process has exited, without a call.
    pub fn ended(&self, id: &str) {
        self.terminated(id, TerminationDetails::default());
    }

    /// Records how the container ended, for `cleanup`, without a call.
    pub fn terminated(&self, id: &str, termination: TerminationDetails) {
        self.shared.change(id, |details| {
            details.pid = None;
            details.termination = Some(termination);
        });
    }
}

/// The methods of the plugin. Errors are those that the agent would report.
impl<P> PluginHarness<P> {
    /// Calls `prepare` of an isolator for [`PluginHarness::container`] of this id.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn prepare(&self, id: &str) -> Result<PrepareReply, Refused> {
        self.prepare_container(&self.container(id))
    }

    /// Calls `prepare` of an isolator. Closes the descriptors of the reply.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn prepare_container(&self, container: &Container) -> Result<PrepareReply, Refused> {
        self.prepare_with_descriptors(container).map(|(reply, _)| reply)
    }

    /// Calls `prepare` of an isolator. Returns the descriptors of the reply as well.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn prepare_with_descriptors(
        &self,
        container: &Container,
    ) -> Result<(PrepareReply, Vec<OwnedFd>), Refused> {
        let (reply, descriptors): (PrepareReply, _) = self.add_and_prepare(container)?;
        self.keep(container.id.as_str(), reply.state.clone());
        Ok((reply, descriptors))
    }

    /// Calls `prepare` of a logger. Returns the descriptors of the reply as well.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn open(&self, container: &Container) -> Result<(LoggerReply, Vec<OwnedFd>), Refused> {
        let (reply, descriptors): (LoggerReply, _) = self.add_and_prepare(container)?;
        self.keep(container.id.as_str(), reply.state.clone());
        Ok((reply, descriptors))
    }

    /// Calls `isolate` with a pidfd. Later calls get the pid, until [`PluginHarness::ended`].
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn isolate(&self, id: &str, pid: i32, pidfd: BorrowedFd<'_>) -> Result<(), Refused> {
        self.started(id, pid);
        let reply: StateReply = read(&self.call_with_details(Method::Isolate, id, &[pidfd.as_raw_fd()])?)?;
        self.keep(id, reply.state);
        Ok(())
    }

    /// Calls `watch`.
    ///
    /// # Errors
    /// The error that would fail the launch.
    pub fn watch(&self, id: &str) -> Result<Option<OwnedFd>, Refused> {
        let answer = self.call_with_details(Method::Watch, id, &[])?;
        Ok(own(&answer).into_iter().next())
    }

    /// Calls `limitation` with the descriptor that `watch` returned.
    ///
    /// # Errors
    /// The error that the agent would report.
    pub fn limitation(&self, id: &str, watch: Option<BorrowedFd<'_>>) -> Result<Option<Limitation>, Refused> {
        let descriptors: Vec<i32> = watch.iter().map(AsRawFd::as_raw_fd).collect();
        let answer = self.call_with_details(Method::Limitation, id, &descriptors)?;
        if answer.payload.is_empty() { Ok(None) } else { read(&answer).map(Some) }
    }

    /// Calls `update` with the container's resources in which those that `resources` names are replaced, as the agent does.
    /// Later calls get the new resources.
    ///
    /// # Errors
    /// The error that would fail the update.
    pub fn update(&self, id: &str, resources: Resources) -> Result<(), Refused> {
        let resources = self.shared.details(id).resources.updated(&resources);
        self.replace(id, resources)
    }

    /// Calls `update` as the agent does when another plugin failed: to return to `resources`, which the container had before
    /// the last [`PluginHarness::update`].
    ///
    /// # Errors
    /// The error that would fail the roll back.
    pub fn roll_back(&self, id: &str, resources: Resources) -> Result<(), Refused> {
        self.replace(id, resources)
    }

    fn replace(&self, id: &str, resources: Resources) -> Result<(), Refused> {
        let request = model::UpdateRequest { details: self.shared.details(id), resources };
        let answer = self.call(Method::Update, id, &write(&request)?, &[])?;
        let reply: StateReply = read(&answer)?;
        self.keep(id, reply.state);
        self.shared.change(id, |details| details.resources = request.resources);
        Ok(())
    }

    /// Calls `usage`.
    ///
    /// # Errors
    /// The error that the agent would report.
    pub fn usage(&self, id: &str) -> Result<Usage, Refused> {
        read(&self.call_with_details(Method::Usage, id, &[])?)
    }

    /// Calls `status`.
    ///
    /// # Errors
    /// The error that the agent would report.
    pub fn status(&self, id: &str) -> Result<Status, Refused> {
        read(&self.call_with_details(Method::Status, id, &[])?)
    }

    /// Calls `cleanup`.
    ///
    /// # Errors
    /// The error that the agent would report before it retries.
    pub fn cleanup(&self, id: &str) -> Result<(), Refused> {
        self.call_with_details(Method::Cleanup, id, &[]).map(drop)
    }

    /// Calls `removed`. Then removes the container and its leases from the harness, as the agent does.
    ///
    /// # Errors
    /// The error that the agent would report before it retries.
    pub fn removed(&self, id: &str) -> Result<(), Refused> {
        self.call_with_details(Method::Removed, id, &[])?;
        self.shared.forget(id);
        Ok(())
    }

    /// Calls `recover`. Later calls get the details in `containers`, with the states that the plugin migrated.
    ///
    /// # Errors
    /// The error that would take the plugin out of service.
    pub fn recover(
        &self,
        containers: Vec<Recovered>,
        orphans: Vec<ContainerId>,
    ) -> Result<RecoverReply, Refused> {
        let request = model::RecoverRequest { containers, orphans };
        let reply: RecoverReply = read(&self.call(Method::Recover, "", &write(&request)?, &[])?)?;
        for container in request.containers {
            let migrated = match reply.verdicts.get(&container.id) {
                Some(model::Verdict::Migrated { state }) => Some(state.clone()),
                _ => None,
            };
            let state = migrated.unwrap_or(container.details.state);
            self.shared.change(container.id.as_str(), |details| {
                *details = ContainerDetails { state, ..container.details };
            });
        }
        Ok(reply)
    }
}

impl<P> PluginHarness<P> {
    /// Adds a container and calls `prepare`. The container is kept if the call fails, as `cleanup` follows.
    fn add_and_prepare<T: DeserializeOwned + Default>(
        &self,
        container: &Container,
    ) -> Result<(T, Vec<OwnedFd>), Refused> {
        self.shared.change(container.id.as_str(), |details| {
            *details = ContainerDetails {
                class: container.class,
                uid: container.uid,
                gid: container.gid,
                sandbox: container.sandbox.clone(),
                scratch: container.scratch.clone(),
                rootfs: container.rootfs.clone(),
                cgroups: container.cgroups.clone(),
                shares_cgroups: container.shares_cgroups(),
                resources: container.resources.clone(),
                labels: container.labels.clone(),
                ..ContainerDetails::default()
            };
        });
        let answer = self.call(Method::Prepare, container.id.as_str(), &write(container)?, &[])?;
        let descriptors = own(&answer);
        Ok((read(&answer)?, descriptors))
    }

    fn call_with_details(&self, method: Method, id: &str, descriptors: &[i32]) -> Result<Answer, Refused> {
        self.call(method, id, &write(&self.shared.details(id))?, descriptors)
    }

    fn keep(&self, id: &str, state: Option<Json>) {
        if let Some(state) = state {
            self.shared.change(id, |details| details.state = state);
        }
    }

    fn call(&self, method: Method, id: &str, request: &[u8], descriptors: &[i32]) -> Result<Answer, Refused> {
        use Instance::{Hook, Isolator, Logger};
        let call = Call {
            container: RStr::from_str(id),
            span: 0,
            trace: [0; 2],
            deadline_unix_ms: self.timeout.map_or(0, deadline),
            descriptors: RSlice::from_slice(descriptors),
        };
        let request = RSlice::from_slice(request);
        let reply = match (&self.instance, method) {
            (Isolator(isolator), Method::Recover) => isolator.recover(call, request),
            (Isolator(isolator), Method::Prepare) => isolator.prepare(call, request),
            (Isolator(isolator), Method::Isolate) => isolator.isolate(call, request),
            (Isolator(isolator), Method::Watch) => isolator.watch(call, request),
            (Isolator(isolator), Method::Limitation) => isolator.limitation(call, request),
            (Isolator(isolator), Method::Update) => isolator.update(call, request),
            (Isolator(isolator), Method::Usage) => isolator.usage(call, request),
            (Isolator(isolator), Method::Status) => isolator.status(call, request),
            (Isolator(isolator), Method::Cleanup) => isolator.cleanup(call, request),
            (Isolator(isolator), Method::Removed) => isolator.removed(call, request),
            (Logger(logger), Method::Recover) => logger.recover(call, request),
            (Logger(logger), Method::Prepare) => logger.prepare(call, request),
            (Logger(logger), Method::Cleanup) => logger.cleanup(call, request),
            (Logger(logger), Method::Removed) => logger.removed(call, request),
            (Hook(hook), Method::ExecutorEnvironment) => hook.executor_environment(call, request),
            (Hook(hook), Method::PreLaunchDocker) => hook.pre_launch_docker(call, request),
            (Hook(hook), Method::PostFetch) => hook.post_fetch(call, request),
            (Hook(hook), Method::TaskStatus) => hook.task_status(call, request),
            (Hook(hook), Method::RemoveExecutor) => hook.remove_executor(call, request),
            (_, other) => RResult::RErr(Failure::unsupported(other.name())),
        };
        match reply {
            RResult::ROk(answer) => Ok(answer),
            RResult::RErr(failure) => {
                if !id.is_empty() && !failure.payload.is_empty() {
                    let reply: StateReply =
                        serde_json::from_slice(&failure.payload).map_err(|error| malformed(&error))?;
                    self.keep(id, reply.state);
                }
                Err(failure.into())
            }
        }
    }
}

fn deadline(timeout: Duration) -> u64 {
    let at =
        SystemTime::now().checked_add(timeout).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    at.and_then(|at| u64::try_from(at.as_millis()).ok()).unwrap_or(0)
}

/// The library of the crate that a plugin is from, beside this test program; empty if it has not been built.
fn library<P>() -> PathBuf {
    let crate_name = std::any::type_name::<P>().split("::").next().unwrap_or_default();
    let build = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned()));
    let library = build.map(|build| build.join(format!("lib{crate_name}.so")));
    library.filter(|library| library.exists()).unwrap_or_default()
}

/// Reports on standard error that a test is skipped. The test must return afterwards.
///
/// # Panics
/// With `CI=true` in the environment, where tests must not be skipped.
pub fn skip(reason: impl std::fmt::Display) {
    use std::io::Write;
    assert!(std::env::var("CI").as_deref() != Ok("true"), "the test must not be skipped in CI: {reason}");
    // Not `eprintln`, whose output cargo captures.
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

/// Waits until a descriptor is readable, such as that of `watch`, or has changed, if it is an open file of a cgroup.
///
/// # Panics
/// If it cannot be polled or is not readable after a minute.
#[expect(clippy::expect_used, reason = "documented")]
pub fn wait_until_readable(descriptor: BorrowedFd<'_>) {
    let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
    let events = if is_cgroup_file(descriptor) { PollFlags::PRI } else { PollFlags::IN };
    let ready =
        poll(&mut [PollFd::new(&descriptor, events)], Some(&timeout)).expect("cannot poll the descriptor");
    assert_eq!(ready, 1, "the descriptor is not readable after a minute");
}

fn write(request: &impl Serialize) -> Result<Vec<u8>, Refused> {
    serde_json::to_vec(request).map_err(|error| malformed(&error))
}

fn read<T: DeserializeOwned + Default>(answer: &Answer) -> Result<T, Refused> {
    if answer.payload.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&answer.payload).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Refused {
    Refused { message: format!("invalid payload: {error}"), location: None, retryable: false, invalid: false }
}

#[allow(unsafe_code)]
fn own(answer: &Answer) -> Vec<OwnedFd> {
    // SAFETY: the ABI gives the descriptors of an answer to its receiver, and each answer is passed here once.
    answer.descriptors.iter().map(|&number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn new() -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("cofferdam-plugin-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = cofferdam_linux::tree::remove(&self.0);
    }
}

#[cfg(test)]
mod tests;
