//! The trait of container loggers.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_plugin_model as model;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ContainerRef, Host, NewContainer, PluginConfig, RecoverRequest, Recovery, Result};

/// A container logger: the destination of the output of containers. An agent has exactly one.
///
/// Containers must be able to write while no agent is running: return files, or the write end of a pipe that is read by
/// a process which the plugin starts, a [companion](mod@crate::companion). `recover` must be able to find it, so keep its pid
/// and start time in the state. The rules on calls, threads, deadlines, state and panics are those of
/// [`Isolator`](crate::Isolator).
///
/// Put [`#[logger]`](crate::logger) on the `impl` block to export it.
pub trait Logger: Send + Sync + Sized + 'static {
    /// Name in the operator's configuration: `area/name`, or `name`.
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

    /// Creates the instance. Called when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Prevent the agent from starting. After a panic, they take the plugin out of service.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Takes over existing containers; called once after `create`. See [`Isolator::recover`](crate::Isolator::recover).
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

    /// Flushes the output and stops what `prepare` started. Called when every process of the container has exited. The
    /// agent reports the end of the container only afterwards, so that clients find the complete output.
    ///
    /// **Must succeed for a container that is unknown to the plugin, and if called repeatedly.**
    ///
    /// # Errors
    /// Keep the container in the state of being destroyed; the call is retried until it succeeds.
    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// See [`Isolator::removed`](crate::Isolator::removed).
    ///
    /// # Errors
    /// Are reported; the call is retried until it succeeds.
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
    /// Absolute path of a file. As output, it is appended to, and created for the container's user if missing. As
    /// input, it is read.
    Path(PathBuf),
    /// A pipe, socket or file. The agent takes ownership of it.
    Descriptor(OwnedFd),
}

/// Reply of [`Logger::prepare`]: the standard streams of a container, and the logger's state for it. Descriptors are
/// closed when it is dropped instead of returned.
#[derive(Debug, Default)]
pub struct Streams {
    pub(crate) stdin: Output,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// The other fields of the reply.
    pub(crate) reply: model::LoggerReply,
}

impl Streams {
    /// With these destinations of standard output and standard error; standard input is `/dev/null`.
    #[must_use]
    pub fn new(stdout: Output, stderr: Output) -> Self {
        Self { stdout, stderr, ..Self::default() }
    }

    /// Sets the source of standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: Output) -> Self {
        self.stdin = stdin;
        self
    }

    /// Sets the absolute paths of the files in which clients can read standard output and standard error. Needed if the
    /// streams are descriptors. Rotated files have `.1`, `.2`, … appended, the newest first; see
    /// [`model::LogFiles`]. Feature `logger.files`.
    #[must_use]
    pub fn files(mut self, stdout: impl Into<PathBuf>, stderr: impl Into<PathBuf>) -> Self {
        let (stdout, stderr) = (Some(stdout.into()), Some(stderr.into()));
        self.reply.files =
            Some(model::LogFiles { stdout, stderr, ..self.reply.files.take().unwrap_or_default() });
        self
    }

    /// States that there are files with the times of the output; see [`model::LogFiles::times`]. Feature `logger.times`.
    #[must_use]
    pub fn times(mut self) -> Self {
        self.reply.files.get_or_insert_default().times = true;
        self
    }

    /// Sets an environment variable of the command, such as the address of a log service. A variable in the launch
    /// request takes precedence.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.reply.environment.insert(name.into(), value.into());
        self
    }

    /// Sets the logger's state for this container, as [`Prepared::state`](crate::Prepared::state) does.
    ///
    /// # Errors
    /// If the state cannot be encoded as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.reply.state = Some(serde_json::to_value(state)?);
        Ok(self)
    }
}
