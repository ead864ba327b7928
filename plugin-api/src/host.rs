//! The agent, as a plugin sees it.

use std::path::{Path, PathBuf};

use cofferdam_plugin_model as model;
use model::CreateRequest;

/// The agent, as a plugin sees it. Logging needs no handle: use the macros of `tracing`.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    agent: model::AgentInfo,
    runtime_directory: PathBuf,
    work_directory: PathBuf,
}

impl Host {
    pub(crate) fn new(request: &CreateRequest) -> Self {
        Self {
            name: request.name.clone(),
            agent: request.agent.clone(),
            runtime_directory: request.runtime_directory.clone(),
            work_directory: request.work_directory.clone(),
        }
    }

    /// The name that this plugin goes by in the agent.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The agent's version.
    #[must_use]
    pub fn agent_version(&self) -> &str {
        &self.agent.version
    }

    /// A folder of the plugin's own that is gone after a reboot. The plugin makes it if it needs it.
    #[must_use]
    pub fn runtime_directory(&self) -> &Path {
        &self.runtime_directory
    }

    /// A folder of the plugin's own that survives a reboot. The plugin makes it if it needs it.
    #[must_use]
    pub fn work_directory(&self) -> &Path {
        &self.work_directory
    }
}
