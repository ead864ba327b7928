//! What a container logger is to its author.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_plugin_model as model;
use model::{Container, ContainerId, Recovered};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ContainerRef, Host, PluginConfig, Recovery, Result};

/// Where the output of containers goes.
///
/// Output must not depend on the agent being alive: answer a file, or a pipe that a process of its own
/// reads. The rules on threads, deadlines and panics are those of [`Isolator`](crate::Isolator).
///
/// Write the block under `#[cofferdam_plugin_api::logger]`, which exports it.
pub trait Logger: Send + Sync + Sized + 'static {
    /// What operators write into their configuration.
    const NAME: &'static str;

    /// Plugins that must be in the chain as well.
    const REQUIRES: &'static [&'static str] = &[];

    /// Plugins that must not be in the chain as well.
    const CONFLICTS: &'static [&'static str] = &[];

    /// Has no meaning for a logger, which always comes last.
    #[doc(hidden)]
    const AFTER: &'static [&'static str] = &[];

    /// Its table in the configuration file; `()` for none.
    type Config: PluginConfig + DeserializeOwned;

    /// Makes it. Called once when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Keep the agent from starting.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Learns what is there already; called once after `create`. See
    /// [`Isolator::recover`](crate::Isolator::recover).
    ///
    /// # Errors
    /// Keep the plugin out of service, and name it to the operator; no container is harmed.
    fn recover(&self, containers: Vec<Recovered>, orphans: Vec<ContainerId>) -> Result<Recovery> {
        let _ = (containers, orphans);
        Ok(Recovery::new())
    }

    /// Says where a container's input and output go; called once, before its first process exists.
    ///
    /// # Errors
    /// Fail the launch. What was done must be left so that `cleanup` can undo it.
    fn prepare(&self, container: &Container) -> Result<Streams>;

    /// Flushes and ends what `prepare` began. Every process of the container is gone, and its end is only
    /// reported afterwards, so that whoever waits for it finds its last words.
    ///
    /// **Must succeed on a container it has never seen, and when called again.**
    ///
    /// # Errors
    /// Keep the container visible as being destroyed; the call is repeated until it succeeds.
    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }
}

/// One end of a container's input or output.
#[derive(Debug, Default)]
pub enum Output {
    /// `/dev/null`.
    #[default]
    Null,
    /// A file, made if missing and appended to; read, if it is the input.
    Path(PathBuf),
    /// A pipe, socket or file; the agent owns it from now on.
    Descriptor(OwnedFd),
}

/// Where a container's input and output go, and what the agent is to keep for the logger.
#[derive(Debug, Default)]
pub struct Streams {
    pub(crate) stdin: Output,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) state: serde_json::Value,
}

impl Streams {
    /// No input; output and errors as given.
    #[must_use]
    pub fn new(stdout: Output, stderr: Output) -> Self {
        Self { stdout, stderr, ..Self::default() }
    }

    /// Where the container reads from.
    #[must_use]
    pub fn stdin(mut self, stdin: Output) -> Self {
        self.stdin = stdin;
        self
    }

    /// Has the agent keep a state for this container.
    ///
    /// # Errors
    /// When the state cannot be written as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.state = serde_json::to_value(state)?;
        Ok(self)
    }
}
