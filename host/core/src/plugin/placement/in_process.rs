//! Plugin instances in the agent's own process.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use abi_stable::std_types::{RResult, RSlice, RStr};
use cofferdam_plugin_abi as abi;
use cofferdam_plugin_abi::{Answer, Call, HookBox, IsolatorBox, LoggerBox, ModuleRef, Reply};
use cofferdam_plugin_model::{Kind, Method};

use super::descriptors;
use super::{Failure, FailureKind, Instance, Invocation, InvokeError, Placement, Response};
use crate::plugin::load::{self, Layout, LoadError};
use crate::plugin::log;
use crate::plugin::services::Services;

/// A plugin library that is loaded into this process.
pub struct InProcess {
    name: String,
    kind: Kind,
    module: ModuleRef,
    services: Arc<Services>,
}

/// An instance in this process.
struct Object {
    /// `Some` until it is dropped.
    object: Option<PluginObject>,
}

enum PluginObject {
    Isolator(IsolatorBox),
    Logger(LoggerBox),
    Hook(HookBox),
}

impl InProcess {
    /// Loads a private copy of the plugin's file. The library stays loaded for the life of the process.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        name: &str,
        kind: Kind,
        copy: &Path,
        sha256: &str,
        layout: Layout,
        services: Arc<Services>,
    ) -> Result<Self, LoadError> {
        Ok(Self { name: name.to_owned(), kind, module: load::load(name, copy, sha256, layout)?, services })
    }
}

impl Placement for InProcess {
    fn create(&self, request: &[u8]) -> Result<Box<dyn Instance>, Failure> {
        let (module, host, request) =
            (self.module, log::host_for(&self.name, Arc::clone(&self.services)), RSlice::from_slice(request));
        let created = match self.kind {
            Kind::Isolator => {
                (module.new_isolator())(host, request).into_result().map(PluginObject::Isolator)
            }
            Kind::Logger => (module.new_logger())(host, request).into_result().map(PluginObject::Logger),
            // Not part of the first version of the boundary.
            Kind::Hook => match module.new_hook() {
                Some(new_hook) => new_hook(host, request).into_result().map(PluginObject::Hook),
                None => Err(abi::Failure::unsupported("new_hook")),
            },
            other => Err(abi::Failure::unsupported(&other.to_string())),
        };
        let object = created.map_err(Failure::from)?;
        Ok(Box::new(Object { object: Some(object) }))
    }
}

impl Instance for Object {
    fn invoke(&self, call: Invocation<'_>) -> Result<Response, InvokeError> {
        let numbers: Vec<i32> = call.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let context = Call {
            container: RStr::from_str(call.container),
            span: 0,
            trace: [0; 2],
            deadline_unix_ms: call.deadline_unix_ms,
            descriptors: RSlice::from_slice(&numbers),
        };
        match self.dispatch(call.method, context, RSlice::from_slice(call.request)) {
            RResult::ROk(Answer { payload, descriptors }) => Ok(Response {
                payload: payload.into_vec(),
                descriptors: descriptors::adopt(&descriptors, &numbers).map_err(InvokeError::Reply)?,
            }),
            RResult::RErr(failure) => Err(InvokeError::Failure(failure.into())),
        }
    }
}

impl Object {
    fn dispatch(&self, method: Method, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        use PluginObject::{Hook, Isolator, Logger};
        match (&self.object, method) {
            (Some(Isolator(isolator)), Method::Recover) => isolator.recover(call, request),
            (Some(Isolator(isolator)), Method::Prepare) => isolator.prepare(call, request),
            (Some(Isolator(isolator)), Method::Isolate) => isolator.isolate(call, request),
            (Some(Isolator(isolator)), Method::Watch) => isolator.watch(call, request),
            (Some(Isolator(isolator)), Method::Limitation) => isolator.limitation(call, request),
            (Some(Isolator(isolator)), Method::Update) => isolator.update(call, request),
            (Some(Isolator(isolator)), Method::Usage) => isolator.usage(call, request),
            (Some(Isolator(isolator)), Method::Status) => isolator.status(call, request),
            (Some(Isolator(isolator)), Method::Cleanup) => isolator.cleanup(call, request),
            (Some(Isolator(isolator)), Method::Removed) => isolator.removed(call, request),
            (Some(Logger(logger)), Method::Recover) => logger.recover(call, request),
            (Some(Logger(logger)), Method::Prepare) => logger.prepare(call, request),
            (Some(Logger(logger)), Method::Cleanup) => logger.cleanup(call, request),
            (Some(Logger(logger)), Method::Removed) => logger.removed(call, request),
            (Some(Hook(hook)), Method::ExecutorEnvironment) => hook.executor_environment(call, request),
            (Some(Hook(hook)), Method::PreLaunchDocker) => hook.pre_launch_docker(call, request),
            (Some(Hook(hook)), Method::PostFetch) => hook.post_fetch(call, request),
            (Some(Hook(hook)), Method::TaskStatus) => hook.task_status(call, request),
            (Some(Hook(hook)), Method::RemoveExecutor) => hook.remove_executor(call, request),
            (_, other) => RResult::RErr(abi::Failure::unsupported(other.name())),
        }
    }
}

impl Drop for Object {
    /// The author's `Drop` may block, so it runs on a thread of its own, which is not joined.
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        let span = tracing::Span::current();
        let drop_object = move || span.in_scope(|| drop(object));
        if let Err(error) = std::thread::Builder::new().name("plugin-drop".into()).spawn(drop_object) {
            tracing::error!(%error, "cannot start a thread to drop a plugin instance");
        }
    }
}

impl From<abi::Failure> for Failure {
    fn from(failure: abi::Failure) -> Self {
        let kind = match failure.code {
            abi::Failure::PANICKED => FailureKind::Panicked,
            abi::Failure::POISONED => FailureKind::Poisoned,
            abi::Failure::UNSUPPORTED => FailureKind::Unsupported,
            abi::Failure::MALFORMED => FailureKind::Malformed,
            abi::Failure::INVALID => FailureKind::Invalid,
            _ => FailureKind::Failed,
        };
        Self {
            kind,
            retryable: failure.retryable,
            message: failure.message.into_string(),
            location: failure.location.into_string(),
            payload: failure.payload.into_vec(),
        }
    }
}
