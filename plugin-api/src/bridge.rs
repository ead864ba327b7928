//! Implements the traits of the ABI for the traits of the SDK.
//!
//! Every call of plugin code goes through [`Guarded::call`], which decodes the request, catches panics and
//! encodes the reply. An instance that panicked is poisoned: it is not called again, because its state is unknown. The
//! agent replaces it.

use std::mem::ManuallyDrop;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RSlice, RString, RVec};
use cofferdam_plugin_abi as abi;
use cofferdam_plugin_abi::{Answer, Call, Failure, HookBox, HostBox, IsolatorBox, LoggerBox, Reply};
use cofferdam_plugin_model as model;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Schema;
use crate::panic::{Panicked, guarded};
use crate::{
    ContainerRef, Deadline, Error, Hook, HookCall, Host, Isolator, Logger, NewContainer, Output,
    PluginConfig, RecoverRequest, Recovery, Result, ResultExt, Streams, descriptors, log,
};

/// The root function that an isolator exports.
pub extern "C" fn new_isolator<I: Isolator>(
    host: HostBox,
    request: RSlice<'_, u8>,
) -> RResult<IsolatorBox, Failure> {
    create(host, request.as_slice(), I::create)
        .map(|guarded: Guarded<I>| IsolatorBox::from_value(guarded, TD_Opaque))
        .into()
}

/// The root function that a logger exports.
pub extern "C" fn new_logger<L: Logger>(
    host: HostBox,
    request: RSlice<'_, u8>,
) -> RResult<LoggerBox, Failure> {
    create(host, request.as_slice(), L::create)
        .map(|guarded: Guarded<L>| LoggerBox::from_value(guarded, TD_Opaque))
        .into()
}

/// The root function that a hook exports.
pub extern "C" fn new_hook<H: Hook>(host: HostBox, request: RSlice<'_, u8>) -> RResult<HookBox, Failure> {
    create(host, request.as_slice(), H::create)
        .map(|guarded: Guarded<H>| HookBox::from_value(guarded, TD_Opaque))
        .into()
}

/// Exported as `new_isolator` by plugins of other kinds.
pub extern "C" fn no_isolator(_: HostBox, _: RSlice<'_, u8>) -> RResult<IsolatorBox, Failure> {
    RResult::RErr(Failure::unsupported("new_isolator"))
}

/// Exported as `new_logger` by plugins of other kinds.
pub extern "C" fn no_logger(_: HostBox, _: RSlice<'_, u8>) -> RResult<LoggerBox, Failure> {
    RResult::RErr(Failure::unsupported("new_logger"))
}

/// Exported as `new_hook` by plugins of other kinds.
pub extern "C" fn no_hook(_: HostBox, _: RSlice<'_, u8>) -> RResult<HookBox, Failure> {
    RResult::RErr(Failure::unsupported("new_hook"))
}

fn create<P, C: PluginConfig + DeserializeOwned>(
    host: HostBox,
    request: &[u8],
    new: impl FnOnce(C, Host) -> Result<P>,
) -> Result<Guarded<P>, Failure> {
    let host = Arc::new(host);
    log::connect(Arc::clone(&host));
    let created = guarded(|| -> Result<P> {
        let (host, table) = Host::new(host, read(request)?);
        let table = if table.is_null() { serde_json::json!({}) } else { table };
        new(read_config(table)?, host)
    });
    match created {
        Ok(Ok(plugin)) => Ok(Guarded { plugin: ManuallyDrop::new(plugin), poisoned: AtomicBool::new(false) }),
        Ok(Err(error)) => Err(failed(&error)),
        Err(panic) => Err(panicked("create", panic)),
    }
}

/// Decodes a table. For `()`, an empty table is decoded as null, because serde accepts nothing else.
fn read_config<C: PluginConfig + DeserializeOwned>(table: serde_json::Value) -> Result<C> {
    let keys: Vec<&str> = table.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    if matches!(C::SCHEMA, Schema::Table { fields: [], closed: true }) && !keys.is_empty() {
        return Err(Error::new(format!(
            "this plugin has no settings, but its table contains `{}`",
            keys.join("`, `")
        )));
    }
    let empty = keys.is_empty();
    serde_json::from_value(table)
        .or_else(|error| {
            if empty {
                serde_json::from_value(serde_json::Value::Null).map_err(|_| error)
            } else {
                Err(error)
            }
        })
        .context("cannot read the plugin's configuration")
}

/// An instance of a plugin.
struct Guarded<P> {
    plugin: ManuallyDrop<P>,
    poisoned: AtomicBool,
}

impl<P> Guarded<P> {
    /// Calls plugin code, unless an earlier call panicked.
    fn call(&self, method: &str, call: impl FnOnce(&P) -> Result<Answer>) -> Reply {
        if self.poisoned.load(Ordering::Acquire) {
            let message = format!("`{method}` was not called: an earlier call panicked");
            return RResult::RErr(Failure { retryable: true, ..Failure::new(Failure::POISONED, message) });
        }
        match guarded(|| call(&self.plugin)) {
            Ok(Ok(answer)) => RResult::ROk(answer),
            Ok(Err(error)) => RResult::RErr(failed(&error)),
            Err(panic) => {
                self.poisoned.store(true, Ordering::Release);
                RResult::RErr(panicked(method, panic))
            }
        }
    }

    /// Calls a method with the container that the call is about.
    fn call_for_container(
        &self,
        method: &str,
        call: Call<'_>,
        request: &[u8],
        act: impl FnOnce(&P, &ContainerRef) -> Result<Answer>,
    ) -> Reply {
        self.call(method, |plugin| act(plugin, &container(&call, request)))
    }

    /// Calls a method of a hook.
    fn call_hook<T: DeserializeOwned>(
        &self,
        method: &str,
        call: Call<'_>,
        request: &[u8],
        act: impl FnOnce(&P, &HookCall<'_, T>) -> Result<Answer>,
    ) -> Reply {
        self.call(method, |plugin| {
            let descriptors = descriptors::borrow(call.descriptors.as_slice());
            let call = HookCall::new(call.container.as_str(), read(request)?, descriptors, deadline(&call));
            act(plugin, &call)
        })
    }

    fn recover(
        &self,
        call: Call<'_>,
        request: &[u8],
        recover: impl FnOnce(&P, &RecoverRequest) -> Result<Recovery>,
    ) -> Reply {
        self.call("recover", |plugin| {
            let request = RecoverRequest::new(read(request)?, deadline(&call));
            answer(&model::RecoverReply { verdicts: recover(plugin, &request)?.0 })
        })
    }
}

impl<P> Drop for Guarded<P> {
    fn drop(&mut self) {
        if let Err(panic) = guarded(|| take(&mut self.plugin)) {
            tracing::error!(
                location = panic.location,
                "the plugin panicked while being dropped: {}",
                panic.message
            );
        }
    }
}

#[allow(unsafe_code)]
fn take<P>(plugin: &mut ManuallyDrop<P>) {
    // SAFETY: only called by `Guarded::drop`, so once, and the value is not used afterwards.
    unsafe { ManuallyDrop::drop(plugin) }
}

impl<I: Isolator> abi::Isolator for Guarded<I> {
    fn recover(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        Guarded::recover(self, call, request.as_slice(), I::recover)
    }

    fn prepare(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("prepare", |plugin| {
            let prepared = plugin.prepare(&new_container(&call, request.as_slice())?)?;
            with_descriptors(&prepared.reply, prepared.descriptors)
        })
    }

    fn isolate(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("isolate", call, request.as_slice(), |plugin, container| {
            answer(&plugin.isolate(container)?.0)
        })
    }

    fn watch(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("watch", call, request.as_slice(), |plugin, container| {
            let descriptor = plugin.watch(container)?;
            Ok(Answer { descriptors: into_raw(descriptor), ..empty() })
        })
    }

    fn limitation(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("limitation", call, request.as_slice(), |plugin, container| {
            plugin.limitation(container)?.as_ref().map_or_else(|| Ok(empty()), answer)
        })
    }

    fn update(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("update", |plugin| {
            let request: model::UpdateRequest = read(request.as_slice())?;
            let container = container(&call, &[]).with_details(request.details);
            answer(&plugin.update(&container, &request.resources)?.0)
        })
    }

    fn usage(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("usage", call, request.as_slice(), |plugin, container| {
            answer(&plugin.usage(container)?)
        })
    }

    fn status(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("status", call, request.as_slice(), |plugin, container| {
            answer(&plugin.status(container)?)
        })
    }

    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("cleanup", call, request.as_slice(), |plugin, container| {
            plugin.cleanup(container).map(|()| empty())
        })
    }

    fn removed(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("removed", call, request.as_slice(), |plugin, container| {
            plugin.removed(container).map(|()| empty())
        })
    }
}

impl<L: Logger> abi::Logger for Guarded<L> {
    fn recover(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        Guarded::recover(self, call, request.as_slice(), L::recover)
    }

    fn prepare(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("prepare", |plugin| streams(plugin.prepare(&new_container(&call, request.as_slice())?)?))
    }

    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("cleanup", call, request.as_slice(), |plugin, container| {
            plugin.cleanup(container).map(|()| empty())
        })
    }

    fn removed(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_for_container("removed", call, request.as_slice(), |plugin, container| {
            plugin.removed(container).map(|()| empty())
        })
    }
}

impl<H: Hook> abi::Hook for Guarded<H> {
    fn executor_environment(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_hook("executor_environment", call, request.as_slice(), |hook, call| {
            let environment = hook.executor_environment(call)?;
            answer(&model::ExecutorEnvironmentReply { environment })
        })
    }

    fn pre_launch_docker(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_hook("pre_launch_docker", call, request.as_slice(), |hook, call| {
            answer(&hook.pre_launch_docker(call)?)
        })
    }

    fn post_fetch(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_hook("post_fetch", call, request.as_slice(), |hook, call| {
            hook.post_fetch(call).map(|()| empty())
        })
    }

    fn task_status(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_hook("task_status", call, request.as_slice(), |hook, call| answer(&hook.task_status(call)?))
    }

    fn remove_executor(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call_hook("remove_executor", call, request.as_slice(), |hook, call| {
            hook.remove_executor(call).map(|()| empty())
        })
    }
}

fn deadline(call: &Call<'_>) -> Deadline {
    Deadline::from_unix_ms(call.deadline_unix_ms)
}

fn container<'a>(call: &Call<'a>, request: &'a [u8]) -> ContainerRef<'a> {
    let descriptors = descriptors::borrow(call.descriptors.as_slice());
    ContainerRef::new(call.container.as_str(), request, descriptors, deadline(call))
}

fn new_container(call: &Call<'_>, request: &[u8]) -> Result<NewContainer> {
    Ok(NewContainer::new(read(request)?, deadline(call)))
}

fn read<T: DeserializeOwned>(request: &[u8]) -> Result<T> {
    serde_json::from_slice(request).context("cannot decode the agent's request")
}

fn empty() -> Answer {
    Answer { payload: RVec::new(), descriptors: RVec::new() }
}

fn answer(reply: &impl Serialize) -> Result<Answer> {
    with_descriptors(reply, Vec::new())
}

/// Encodes a reply. The descriptors are released last, so that they are closed if encoding fails.
fn with_descriptors(reply: &impl Serialize, descriptors: Vec<OwnedFd>) -> Result<Answer> {
    let payload = serde_json::to_vec(reply)?.into();
    Ok(Answer { payload, descriptors: into_raw(descriptors) })
}

fn into_raw(descriptors: impl IntoIterator<Item = OwnedFd>) -> RVec<i32> {
    descriptors.into_iter().map(IntoRawFd::into_raw_fd).collect()
}

fn streams(streams: Streams) -> Result<Answer> {
    let mut descriptors = Vec::new();
    let mut stream = |output: Output| match output {
        Output::Null => model::Stream::Null,
        Output::Path(path) => model::Stream::Path { path },
        Output::Descriptor(descriptor) => {
            descriptors.push(descriptor);
            model::Stream::Descriptor { index: descriptors.len() - 1 }
        }
    };
    let (stdin, stdout, stderr) = (stream(streams.stdin), stream(streams.stdout), stream(streams.stderr));
    with_descriptors(&model::LoggerReply { stdin, stdout, stderr, ..streams.reply }, descriptors)
}

fn failed(error: &Error) -> Failure {
    let payload = error
        .state()
        .and_then(|state| serde_json::to_vec(&model::StateReply { state: Some(state.clone()) }).ok());
    Failure {
        retryable: error.is_retryable(),
        payload: payload.unwrap_or_default().into(),
        ..Failure::new(if error.is_invalid() { Failure::INVALID } else { Failure::FAILED }, error.to_string())
    }
}

fn panicked(method: &str, panic: Panicked) -> Failure {
    Failure {
        location: RString::from(panic.location),
        ..Failure::new(Failure::PANICKED, format!("panicked in `{method}`: {}", panic.message))
    }
}
