//! Hooks: plugins that are called at points of a launch and of the life of tasks, in the operator's order.
//!
//! ```text
//!   containerizer ──▶ pre_launch_docker, post_fetch                     a failure fails the launch,
//!   executor ───────▶ executor_environment                              unless the hook is optional
//!            └──────▶ task_status, remove_executor                      a failure is logged and counted
//! ```
//!
//! Each call is a job of its own, and hooks share no lock: a slow hook delays what it is called for, up to its timeout, and
//! no other container.

mod error;
mod merge;
mod sandbox;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_plugin_model::{
    ContainerId, DockerLaunch, DockerLaunchReply, ExecutorDetails, ExecutorEnvironment,
    ExecutorEnvironmentReply, Method, PostFetch, TaskStatus, TaskStatusReply,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blocking::{BlockingPool, Job};
use crate::config::FailPolicy;
use crate::plugin::{CallError, Plugin, attribute};

pub use error::HookError;

use merge::Merged;

/// How large the labels and the container status of a reply may be, as JSON. They are kept with each update.
const MAX_DECORATION: usize = 8 << 10;

/// All hooks of an agent, in the order in which they are called. Cheap to clone.
#[derive(Clone)]
pub struct Hooks {
    hooks: Arc<[Arc<Plugin>]>,
    pool: BlockingPool,
}

impl Hooks {
    /// These hooks, in this order.
    #[must_use]
    pub fn new(hooks: Vec<Arc<Plugin>>, pool: BlockingPool) -> Self {
        Self { hooks: hooks.into(), pool }
    }

    /// Whether any hook has a method.
    #[must_use]
    pub fn has(&self, method: Method) -> bool {
        self.with(method).next().is_some()
    }

    /// Lets hooks change the environment that the command of an executor requests. `container` is the one that it is about
    /// to be launched in.
    ///
    /// # Errors
    /// [`HookError`] of the first required hook that fails.
    pub async fn executor_environment(
        &self,
        container: &ContainerId,
        executor: ExecutorDetails,
        environment: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, HookError> {
        const METHOD: Method = Method::ExecutorEnvironment;
        let mut request = ExecutorEnvironment { executor, environment };
        for hook in self.with(METHOD) {
            let reply = self.ask(hook, METHOD, container, &request, None).await;
            let reply = reply.and_then(|reply: ExecutorEnvironmentReply| {
                checked(hook, METHOD, reply.environment.iter().flatten())?;
                Ok(reply.environment)
            });
            match reply {
                Ok(Some(environment)) => request.environment = environment,
                Ok(None) => {}
                Err(error) => do_without(hook, container, error)?,
            }
        }
        Ok(request.environment)
    }

    /// Asks hooks for environment variables of a container that an engine is about to make, and merges them.
    ///
    /// # Errors
    /// [`HookError`] of the first required hook that fails, or of two that set a variable to different values.
    pub async fn pre_launch_docker(
        &self,
        container: &ContainerId,
        launch: &DockerLaunch,
    ) -> Result<DockerLaunchReply, HookError> {
        const METHOD: Method = Method::PreLaunchDocker;
        let (mut executor, mut task) = (Merged::default(), Merged::default());
        for hook in self.with(METHOD) {
            let reply = self.ask(hook, METHOD, container, launch, None).await;
            let reply = reply.and_then(|reply: DockerLaunchReply| {
                checked(hook, METHOD, reply.executor_environment.iter().chain(&reply.task_environment))?;
                Ok(reply)
            });
            match reply {
                Ok(reply) => {
                    executor.add(hook.name(), reply.executor_environment)?;
                    task.add(hook.name(), reply.task_environment)?;
                }
                Err(error) => do_without(hook, container, error)?,
            }
        }
        Ok(DockerLaunchReply { executor_environment: executor.take(), task_environment: task.take() })
    }

    /// Shows hooks the sandbox of a container whose files were fetched.
    ///
    /// # Errors
    /// [`HookError`] of the first required hook that fails.
    pub async fn post_fetch(
        &self,
        container: &ContainerId,
        fetched: &PostFetch,
        sandbox: &Path,
    ) -> Result<(), HookError> {
        const METHOD: Method = Method::PostFetch;
        for hook in self.with(METHOD) {
            let done: Result<(), _> =
                self.ask(hook, METHOD, container, fetched, Some(sandbox.to_owned())).await;
            done.or_else(|error| do_without(hook, container, error))?;
        }
        Ok(())
    }

    /// Lets hooks decorate a status update of a task of the executor in a container. Returns what it is to have.
    pub async fn task_status(&self, container: &ContainerId, mut status: TaskStatus) -> TaskStatus {
        const METHOD: Method = Method::TaskStatus;
        for hook in self.with(METHOD) {
            let limit = hook.timeout(METHOD) * 2;
            let reply = tokio::time::timeout(limit, self.ask(hook, METHOD, container, &status, None)).await;
            let reply = reply.unwrap_or_else(|_| Err(not_called(hook, METHOD, limit)));
            match reply.and_then(|reply| checked_decoration(hook, reply)) {
                Ok(TaskStatusReply { labels, container_status }) => {
                    status.labels = labels.unwrap_or(status.labels);
                    status.container_status = container_status.unwrap_or(status.container_status);
                }
                Err(error) => {
                    tracing::warn!(%container, task = status.task, "status update not decorated: {error}");
                }
            }
        }
        status
    }

    /// Informs hooks that an executor is removed.
    pub async fn remove_executor(&self, container: &ContainerId, executor: &ExecutorDetails) {
        const METHOD: Method = Method::RemoveExecutor;
        for hook in self.with(METHOD) {
            let done: Result<(), _> = self.ask(hook, METHOD, container, executor, None).await;
            if let Err(error) = done {
                tracing::warn!(%container, executor = executor.id, "hook not informed: {error}");
            }
        }
    }

    /// The hooks that have a method.
    fn with(&self, method: Method) -> impl Iterator<Item = &Arc<Plugin>> {
        self.hooks.iter().filter(move |hook| hook.implements(method))
    }

    /// Calls a method of one hook, with the descriptor of a sandbox if there is one.
    async fn ask<T: DeserializeOwned + Default + Send + 'static>(
        &self,
        hook: &Arc<Plugin>,
        method: Method,
        container: &ContainerId,
        request: &impl Serialize,
        sandbox: Option<PathBuf>,
    ) -> Result<T, CallError> {
        let request = hook.encode(method, request)?;
        let (called, container) = (Arc::clone(hook), container.clone());
        // Dropped with this call, if it is not waited for any more: then one that has not begun is not made.
        let waiting = Arc::new(());
        let is_waiting = Arc::downgrade(&waiting);
        let call = move |job: &Job| {
            if is_waiting.strong_count() == 0 {
                return Err(CallError::Cancelled { plugin: called.name().to_string(), method });
            }
            // Of its own for each hook: a copy would share its position with that of the hook before.
            let sandbox = sandbox.map(|path| sandbox::open(&path)).transpose();
            let sandbox = sandbox.map_err(|error| malformed(&called, method, error.to_string()))?;
            let descriptors: Vec<BorrowedFd<'_>> = sandbox.iter().map(AsFd::as_fd).collect();
            // It keeps no states, and recovers nothing.
            let response =
                called.call_encoded(job, &(), method, container.as_str(), &request, &descriptors)?;
            called.decode(method, &response).inspect_err(|_| called.count_failure(method))
        };
        let outcome = self.pool.run(hook.min_timeout(method), call).await;
        drop(waiting);
        outcome.unwrap_or_else(|abandoned| Err(attribute(abandoned, |_| Some(hook))))
    }
}

/// Continues a launch without a hook that failed, if it is optional.
fn do_without(hook: &Plugin, container: &ContainerId, error: CallError) -> Result<(), HookError> {
    match hook.policy() {
        FailPolicy::Required => Err(error.into()),
        FailPolicy::Optional => {
            tracing::warn!(%container, "launch continues without an optional hook: {error}");
            Ok(())
        }
    }
}

/// Checks that environment variables can be passed to a program. Their values are not part of the error.
fn checked<'v>(
    hook: &Plugin,
    method: Method,
    variables: impl IntoIterator<Item = (&'v String, &'v String)>,
) -> Result<(), CallError> {
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            let reason = format!(
                "`{}` is not a valid name of an environment variable; it must not be empty or contain `=` or NUL",
                name.escape_debug()
            );
            return Err(counted(hook, method, reason));
        }
        if value.contains('\0') {
            let reason = format!("the value of the environment variable `{name}` contains a NUL character");
            return Err(counted(hook, method, reason));
        }
    }
    Ok(())
}

fn checked_decoration(hook: &Plugin, reply: TaskStatusReply) -> Result<TaskStatusReply, CallError> {
    const METHOD: Method = Method::TaskStatus;
    if reply.container_status.as_ref().is_some_and(|status| !status.is_object()) {
        return Err(counted(hook, METHOD, "`container_status` is not an object".into()));
    }
    let size = serde_json::to_vec(&reply).map_or(0, |json| json.len());
    if size > MAX_DECORATION {
        let reason = format!("labels and container status of {size} bytes; the limit is {MAX_DECORATION}");
        return Err(counted(hook, METHOD, reason));
    }
    Ok(reply)
}

/// The error of a call that had to wait for a thread for too long: nothing but a call of a plugin has a timeout in the pool.
fn not_called(hook: &Plugin, method: Method, limit: Duration) -> CallError {
    hook.count_timeout(method);
    let plugin = hook.name().to_string();
    let reason =
        format!("`{method}` of `{plugin}` was not called within {limit:?}: all threads wait for plugins");
    CallError::TimedOut { plugin, reason }
}

/// An invalid reply, which is counted as a failure of the hook.
fn counted(hook: &Plugin, method: Method, reason: String) -> CallError {
    hook.count_failure(method);
    malformed(hook, method, reason)
}

fn malformed(hook: &Plugin, method: Method, reason: String) -> CallError {
    CallError::Malformed { plugin: hook.name().to_string(), method, reason }
}
