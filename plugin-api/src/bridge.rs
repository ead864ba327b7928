//! The counter between the agent and the author: the one file that knows both.
//!
//! Every call into author code passes [`Guarded::call`], which reads the request, keeps panics inside, and
//! writes the answer. An instance that panicked is poisoned: nothing is called on it again, because
//! nobody knows what it left half done. The agent makes a new one.

use std::mem::ManuallyDrop;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RSlice, RString, RVec};
use cofferdam_plugin_abi as abi;
use cofferdam_plugin_abi::{Answer, Call, Failure, HostBox, IsolatorBox, LoggerBox, Reply};
use cofferdam_plugin_model as model;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Schema;
use crate::panic::{Panicked, guarded};
use crate::{
    ContainerRef, Error, Host, Isolator, Logger, Output, PluginConfig, Recovery, Result, ResultExt, Streams,
    descriptors, log,
};

/// Makes an isolator: the root function of an isolator's library.
pub extern "C" fn new_isolator<I: Isolator>(
    host: HostBox,
    request: RSlice<'_, u8>,
) -> RResult<IsolatorBox, Failure> {
    create(host, request.as_slice(), I::create)
        .map(|guarded: Guarded<I>| IsolatorBox::from_value(guarded, TD_Opaque))
        .into()
}

/// Makes a logger: the root function of a logger's library.
pub extern "C" fn new_logger<L: Logger>(
    host: HostBox,
    request: RSlice<'_, u8>,
) -> RResult<LoggerBox, Failure> {
    create(host, request.as_slice(), L::create)
        .map(|guarded: Guarded<L>| LoggerBox::from_value(guarded, TD_Opaque))
        .into()
}

/// What a logger's library answers when asked for an isolator.
pub extern "C" fn no_isolator(_: HostBox, _: RSlice<'_, u8>) -> RResult<IsolatorBox, Failure> {
    RResult::RErr(Failure::unsupported("new_isolator"))
}

/// What an isolator's library answers when asked for a logger.
pub extern "C" fn no_logger(_: HostBox, _: RSlice<'_, u8>) -> RResult<LoggerBox, Failure> {
    RResult::RErr(Failure::unsupported("new_logger"))
}

fn create<P, C: PluginConfig + DeserializeOwned>(
    host: HostBox,
    request: &[u8],
    make: impl FnOnce(C, Host) -> Result<P>,
) -> Result<Guarded<P>, Failure> {
    log::connect(host);
    let made = guarded(|| -> Result<P> {
        let request: model::CreateRequest =
            serde_json::from_slice(request).context("cannot read the agent's request")?;
        let host = Host::new(&request);
        let table = if request.config.is_null() { serde_json::json!({}) } else { request.config };
        let config = read_config(table)?;
        make(config, host)
    });
    match made {
        Ok(Ok(plugin)) => Ok(Guarded { plugin: ManuallyDrop::new(plugin), poisoned: AtomicBool::new(false) }),
        Ok(Err(error)) => Err(failed(&error)),
        Err(panic) => Err(panicked("create", panic)),
    }
}

/// Reads a table. A unit type stands for an empty one, which serde would read from null only.
fn read_config<C: PluginConfig + DeserializeOwned>(table: serde_json::Value) -> Result<C> {
    let keys: Vec<&str> = table.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    if matches!(C::SCHEMA, Schema::Table { fields: [], closed: true }) && !keys.is_empty() {
        return Err(Error::new(format!(
            "this plugin has nothing to configure, but its table has `{}`",
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

/// An author's plugin, behind the counter.
struct Guarded<P> {
    plugin: ManuallyDrop<P>,
    poisoned: AtomicBool,
}

impl<P> Guarded<P> {
    /// The one door into author code.
    fn call(&self, method: &str, call: impl FnOnce(&P) -> Result<Answer>) -> Reply {
        if self.poisoned.load(Ordering::Acquire) {
            return RResult::RErr(Failure {
                code: Failure::POISONED,
                retryable: true,
                message: RString::from(format!("`{method}` was not called: an earlier call panicked")),
                location: RString::new(),
            });
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

    /// A call that is about one container and is told of it.
    fn about(
        &self,
        method: &str,
        call: Call<'_>,
        request: &[u8],
        act: impl FnOnce(&P, &ContainerRef) -> Result<Answer>,
    ) -> Reply {
        self.call(method, |plugin| {
            let descriptors = descriptors::borrow(call.descriptors.as_slice());
            act(plugin, &ContainerRef::new(call.container.as_str(), request, descriptors))
        })
    }
}

impl<P> Drop for Guarded<P> {
    fn drop(&mut self) {
        // The plugin is dropped here and nowhere else, and not touched afterwards.
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
    // SAFETY: called once, by the drop of the struct that holds it.
    unsafe { ManuallyDrop::drop(plugin) }
}

impl<I: Isolator> abi::Isolator for Guarded<I> {
    fn recover(&self, _call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("recover", |plugin| {
            let request: model::RecoverRequest = read(request.as_slice())?;
            recovered(plugin.recover(request.containers, request.orphans)?)
        })
    }

    fn prepare(&self, _call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("prepare", |plugin| answer(&plugin.prepare(&read(request.as_slice())?)?.0))
    }

    fn isolate(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("isolate", call, request.as_slice(), |plugin, container| {
            plugin.isolate(container).map(|()| nothing())
        })
    }

    fn watch(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("watch", call, request.as_slice(), |plugin, container| {
            let descriptor = plugin.watch(container)?;
            Ok(Answer {
                payload: RVec::new(),
                descriptors: descriptor.map(OwnedFd::into_raw_fd).into_iter().collect(),
            })
        })
    }

    fn limitation(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("limitation", call, request.as_slice(), |plugin, container| {
            plugin.limitation(container)?.as_ref().map_or_else(|| Ok(nothing()), answer)
        })
    }

    fn update(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("update", |plugin| {
            let request: model::UpdateRequest = read(request.as_slice())?;
            let told = serde_json::to_vec(&request.details)?;
            let descriptors = descriptors::borrow(call.descriptors.as_slice());
            let container = ContainerRef::new(call.container.as_str(), &told, descriptors);
            let state = plugin.update(&container, &request.resources)?;
            answer(&model::StateReply { state })
        })
    }

    fn usage(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("usage", call, request.as_slice(), |plugin, container| answer(&plugin.usage(container)?))
    }

    fn status(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("status", call, request.as_slice(), |plugin, container| answer(&plugin.status(container)?))
    }

    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("cleanup", call, request.as_slice(), |plugin, container| {
            plugin.cleanup(container).map(|()| nothing())
        })
    }
}

impl<L: Logger> abi::Logger for Guarded<L> {
    fn recover(&self, _call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("recover", |plugin| {
            let request: model::RecoverRequest = read(request.as_slice())?;
            recovered(plugin.recover(request.containers, request.orphans)?)
        })
    }

    fn prepare(&self, _call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.call("prepare", |plugin| streams(plugin.prepare(&read(request.as_slice())?)?))
    }

    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.about("cleanup", call, request.as_slice(), |plugin, container| {
            plugin.cleanup(container).map(|()| nothing())
        })
    }
}

fn read<T: DeserializeOwned>(request: &[u8]) -> Result<T> {
    serde_json::from_slice(request).context("cannot read the agent's request")
}

fn nothing() -> Answer {
    Answer { payload: RVec::new(), descriptors: RVec::new() }
}

fn answer(reply: &impl Serialize) -> Result<Answer> {
    Ok(Answer { payload: serde_json::to_vec(reply)?.into(), descriptors: RVec::new() })
}

fn recovered(recovery: Recovery) -> Result<Answer> {
    answer(&model::RecoverReply { verdicts: recovery.0 })
}

fn streams(streams: Streams) -> Result<Answer> {
    let mut descriptors = RVec::new();
    let mut name = |output: Output| match output {
        Output::Null => model::Stream::Null,
        Output::Path(path) => model::Stream::Path { path },
        Output::Descriptor(descriptor) => {
            descriptors.push(descriptor.into_raw_fd());
            model::Stream::Descriptor { index: descriptors.len() - 1 }
        }
    };
    let reply = model::LoggerReply {
        stdin: name(streams.stdin),
        stdout: name(streams.stdout),
        stderr: name(streams.stderr),
        files: None,
        environment: Default::default(),
        state: Some(streams.state),
    };
    Ok(Answer { payload: serde_json::to_vec(&reply)?.into(), descriptors })
}

fn failed(error: &Error) -> Failure {
    Failure {
        code: Failure::FAILED,
        retryable: error.is_retryable(),
        message: RString::from(error.to_string()),
        location: RString::new(),
    }
}

fn panicked(method: &str, panic: Panicked) -> Failure {
    Failure {
        code: Failure::PANICKED,
        retryable: false,
        message: RString::from(format!("panicked in `{method}`: {}", panic.message)),
        location: RString::from(panic.location),
    }
}
