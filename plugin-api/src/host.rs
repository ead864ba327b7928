//! The interface of the agent for plugins.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use abi_stable::std_types::{RResult, RSlice, RStr};
use cofferdam_plugin_abi::{Failure, HostBox};
use cofferdam_plugin_model as model;
use model::service::{CountLost, OUTPUT_LOST, PutState, STATE_PUT};
use model::{AgentInfo, ContainerId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result, ResultExt};

/// Handle of the agent: describes it and provides its services. Cheap to clone.
///
/// To log, use the macros of `tracing`; they do not need this handle.
#[derive(Clone)]
pub struct Host(Arc<Shared>);

struct Shared {
    api: Arc<HostBox>,
    name: String,
    agent: AgentInfo,
    runtime_directory: PathBuf,
    work_directory: PathBuf,
    file: PathBuf,
}

impl Host {
    /// The host, and the plugin's table of the configuration file.
    pub(crate) fn new(api: Arc<HostBox>, request: model::CreateRequest) -> (Self, serde_json::Value) {
        let model::CreateRequest { config, name, agent, runtime_directory, work_directory, file } = request;
        (Self(Arc::new(Shared { api, name, agent, runtime_directory, work_directory, file })), config)
    }

    /// The plugin's name in the chain.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Description of the agent: version, features, launcher, cgroup hierarchies, resources of the node, chain.
    #[must_use]
    pub fn agent(&self) -> &AgentInfo {
        &self.0.agent
    }

    /// Whether the agent supports a feature of [`model::FEATURES`]. A plugin that requires one lists it in its
    /// `FEATURES` instead: an agent that does not support it then refuses to load the plugin.
    #[must_use]
    pub fn supports(&self, feature: &str) -> bool {
        self.0.agent.features.contains(feature)
    }

    /// Directory for this plugin only, which does not survive a reboot; absolute. The plugin creates it if it needs it.
    #[must_use]
    pub fn runtime_directory(&self) -> &Path {
        &self.0.runtime_directory
    }

    /// Directory for this plugin only, which survives a reboot; absolute. The plugin creates it if it needs it.
    #[must_use]
    pub fn work_directory(&self) -> &Path {
        &self.0.work_directory
    }

    /// The plugin's own file: the private copy that the agent has loaded. See [`companion`](mod@crate::companion).
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.0.file
    }

    /// Stores the plugin's state for a container; on return it is on disk. Use it before an effect to record which
    /// cgroup, network or mount is about to be created: `cleanup` and `recover` get the state even if the agent is
    /// killed during the call.
    ///
    /// `container` is the argument of the current call: `host.put_state(container, &state)`. A state in the reply of
    /// that call replaces this one.
    ///
    /// # Errors
    /// If the state cannot be encoded as JSON, if the plugin does not participate in that container, or if the agent
    /// cannot write its record.
    pub fn put_state(&self, container: impl AsRef<str>, state: &impl Serialize) -> Result<()> {
        let container = ContainerId::parse(container.as_ref())?;
        let state = serde_json::to_value(state).context("cannot encode the state as JSON")?;
        self.request::<()>(STATE_PUT, &PutState { container, state })
    }

    /// Counts bytes of a stream (`stdout` or `stderr`) of a container that this logger has lost, for the metrics of the
    /// agent. Those that were counted before are not counted again. An agent without the feature `service.output` does not
    /// count them; the plugin logs them in any case.
    pub fn count_lost_output(&self, stream: &str, bytes: u64) {
        if bytes == 0 || !self.supports("service.output") {
            return;
        }
        let request = CountLost { stream: stream.to_owned(), bytes };
        if let Err(error) = self.request::<()>(OUTPUT_LOST, &request) {
            tracing::warn!(stream, bytes, "lost output is not counted: {}", error.causes().join(": "));
        }
    }

    /// Calls a service. An empty reply is decoded as null.
    pub(crate) fn request<T: DeserializeOwned>(&self, service: &str, request: &impl Serialize) -> Result<T> {
        let payload = serde_json::to_vec(request)?;
        match self.0.api.request(RStr::from_str(service), RSlice::from_slice(&payload)) {
            RResult::ROk(answer) => {
                let reply = if answer.payload.is_empty() { b"null" } else { answer.payload.as_slice() };
                serde_json::from_slice(reply)
                    .context(format!("cannot decode the agent's reply to `{service}`"))
            }
            RResult::RErr(failure) if failure.code == Failure::UNSUPPORTED => Err(Error::new(format!(
                "agent {} does not provide the service `{service}`; upgrade the agent",
                self.0.agent.version
            ))),
            RResult::RErr(failure) => {
                let error = Error::new(failure.message.as_str().replace('\n', ": "));
                Err(if failure.retryable { error.retryable() } else { error })
            }
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.0.name)
            .field("agent", &self.0.agent)
            .finish_non_exhaustive()
    }
}
