//! The trait of container loggers.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_plugin_model as model;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ContainerRef, Host, NewContainer, PluginConfig, RecoverRequest, Recovery, Result};

/// A container logger: the destination of the output of containers. An agent has exactly one.
///
/// Output must not depend on the agent being alive: return files, or the write end of a pipe that a process of the
/// plugin's own reads. Such a process must be started in a session and cgroup of its own, and found again by `recover`
/// (keep its pid and start time in the state). The rules on calls, threads, deadlines, state and panics are those of
/// [`Isolator`](crate::Isolator).
///
/// Put [`#[logger]`](crate::logger) on the `impl` block to export it.
pub trait Logger: Send + Sync + Sized + 'static {
    /// The name in the operator's configuration.
    const NAME: &'static str;

    /// Names of plugins that must be in the chain as well; the agent does not start otherwise.
    const REQUIRES: &'static [&'static str] = &[];

    /// Names of plugins that must not be in the chain as well; the agent does not start otherwise.
    const CONFLICTS: &'static [&'static str] = &[];

    /// Without meaning: the logger comes after all isolators.
    #[doc(hidden)]
    const AFTER: &'static [&'static str] = &[];

    /// Without meaning: the logger comes after all isolators.
    #[doc(hidden)]
    const BEFORE: &'static [&'static str] = &[];

    /// See [`Isolator::FEATURES`](crate::Isolator::FEATURES).
    const FEATURES: &'static [&'static str] = &[];

    /// Type of its table in the configuration file; `()` for none.
    type Config: PluginConfig + DeserializeOwned;

    /// Creates the instance: when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Keep the agent from starting.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Takes over what exists; called once after `create`. See [`Isolator::recover`](crate::Isolator::recover).
    ///
    /// # Errors
    /// Take the plugin out of service and are reported to the operator; containers are not affected.
    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let _ = request;
        Ok(Recovery::new())
    }

    /// Returns the destinations of a container's output; called once, before its first process exists.
    ///
    /// # Errors
    /// Fail the launch; `cleanup` follows. See [`Error::with_state`](crate::Error::with_state).
    fn prepare(&self, container: &NewContainer) -> Result<Streams>;

    /// Flushes the output and ends what `prepare` started. Every process of the container has exited; the agent reports
    /// its end afterwards, so that clients find the complete output.
    ///
    /// **Must succeed for a container that it has never seen, and when called again.**
    ///
    /// # Errors
    /// Keep the container visible as being destroyed; the call is repeated until it succeeds.
    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// See [`Isolator::removed`](crate::Isolator::removed).
    ///
    /// # Errors
    /// Are reported; the call is repeated until it succeeds.
    fn removed(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }
}

/// Source or destination of a standard stream.
#[derive(Debug, Default)]
pub enum Output {
    /// `/dev/null`.
    #[default]
    Null,
    /// A file, absolute: created if missing and appended to as output, read as input. A created file belongs to the
    /// container's user.
    Path(PathBuf),
    /// A pipe, socket or file, which the agent owns from then on.
    Descriptor(OwnedFd),
}

/// Reply of [`Logger::prepare`]: the standard streams of a container, and the logger's state for it. Descriptors are
/// closed when it is dropped instead of returned.
#[derive(Debug, Default)]
pub struct Streams {
    pub(crate) stdin: Output,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// Everything but the streams.
    pub(crate) reply: model::LoggerReply,
}

impl Streams {
    /// The destinations of output and errors; no input.
    #[must_use]
    pub fn new(stdout: Output, stderr: Output) -> Self {
        Self { stdout, stderr, ..Self::default() }
    }

    /// Sets the source of the input.
    #[must_use]
    pub fn stdin(mut self, stdin: Output) -> Self {
        self.stdin = stdin;
        self
    }

    /// Names the files in which output and errors can be read, absolute, for clients that read the logs. Needed if the
    /// streams are descriptors. Rotated files have `.1`, `.2`, … appended, the newest first. Feature `logger.files`.
    #[must_use]
    pub fn files(mut self, stdout: impl Into<PathBuf>, stderr: impl Into<PathBuf>) -> Self {
        self.reply.files = Some(model::LogFiles { stdout: Some(stdout.into()), stderr: Some(stderr.into()) });
        self
    }

    /// Sets an environment variable of the command, for example with the address of a log service. One that the command
    /// itself sets takes precedence.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.reply.environment.insert(name.into(), value.into());
        self
    }

    /// Has the agent keep `state` for this container, as [`Prepared::state`](crate::Prepared::state) does.
    ///
    /// # Errors
    /// If the state cannot be written as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.reply.state = Some(serde_json::to_value(state)?);
        Ok(self)
    }
}
