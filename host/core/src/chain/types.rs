//! Data that passes between the chain and its callers.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use cofferdam_plugin_model::{ContainerDetails, ContainerId, LogFiles};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::plan::{Conflict, LaunchPlan, Planned};
use super::stdio::{PassedOn, StdioTarget};
use crate::plugin::CallError;

/// Participation of a plugin in one container, as recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Participant {
    /// The plugin.
    pub plugin: String,
    /// The version that wrote the state.
    pub version: semver::Version,
    /// The plugin's state for the container.
    #[serde(default)]
    pub state: Json,
    /// Why the plugin does not serve the container, if it does not.
    #[serde(default)]
    pub unavailable: Option<String>,
    /// Whether the container was launched without the plugin: then only `cleanup` is called.
    #[serde(default)]
    pub excluded: bool,
}

/// Whom a command runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// What the plugins request for the launch of a container.
#[derive(Default)]
pub struct PreparedLaunch {
    /// The merged launch information of the isolators.
    pub plan: LaunchPlan,
    /// Descriptors of the isolators' replies, which the plan refers to by index.
    pub descriptors: Vec<OwnedFd>,
    /// Values of the secret environment variables, which are neither shown nor recorded.
    pub secrets: BTreeMap<String, String>,
    /// Standard input, output and error, as the logger set them.
    pub stdio: [StdioTarget; 3],
    /// Files in which the output can be read, if the logger named them.
    pub log_files: Option<LogFiles>,
    /// Where other loggers want the output that the logger passes on to them. Empty when that has been called.
    pub(super) passed_on: PassedOn,
    /// The user that a plugin requests, looked up, if the request has none.
    pub user: Option<RunAs>,
}

impl PreparedLaunch {
    /// What later plugins get to know.
    pub(super) fn planned(&self) -> Planned {
        let user = self.user.as_ref().map(|user| (user.uid, user.gid));
        Planned { user, ..self.plan.planned() }
    }
}

/// A container as the chain needs it for calls after `prepare`.
#[derive(Debug, Clone)]
pub struct ContainerContext {
    /// The container.
    pub id: ContainerId,
    /// What every plugin gets to know of it, except for the state, which is each plugin's own.
    pub details: ContainerDetails,
    /// The plugins that participate in it.
    pub participants: Vec<Participant>,
}

impl ContainerContext {
    /// The details with the state of one participant.
    pub(super) fn details_for(&self, participant: &Participant) -> ContainerDetails {
        ContainerDetails { state: participant.state.clone(), ..self.details.clone() }
    }
}

/// A descriptor that becomes readable when a plugin may have a limitation to report.
#[derive(Debug)]
pub struct Watch {
    /// The plugin.
    pub plugin: String,
    /// Readable when `limitation` is to be called.
    pub descriptor: OwnedFd,
}

/// Successful replies and failures of a call to several plugins.
#[derive(Debug)]
pub struct Responses<T> {
    /// Replies by plugin, in chain order.
    pub replies: Vec<(String, T)>,
    /// Failures.
    pub failed: Vec<CallError>,
}

/// Why the chain could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A plugin failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Two plugins request different values.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The user that a plugin requests is unknown.
    #[error("the command cannot run as `{user}`, which `{plugin}` requests")]
    User {
        /// The plugin.
        plugin: String,
        /// The user.
        user: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The logger's reply refers to a descriptor that it does not contain.
    #[error("logger `{logger}` refers to descriptor {index} of its reply, which contains {count}")]
    Descriptor {
        /// The logger.
        logger: String,
        /// The index.
        index: usize,
        /// Number of descriptors in the reply.
        count: usize,
    },
    /// A logger that another one passes output on to has a pipe that cannot be opened by its name.
    #[error(
        "logger `{logger}` takes output over a descriptor that is not a named pipe; output cannot be passed on to it by \
         another logger"
    )]
    LogPipe {
        /// The logger.
        logger: String,
    },
    /// The logger's reply has a kind of stream that this agent does not know.
    #[error("logger `{logger}` requests a kind of output that this agent does not know; upgrade the agent")]
    Stream {
        /// The logger.
        logger: String,
    },
}

impl ChainError {
    /// Whether the same call may succeed later, according to the plugin that failed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { retryable: true, .. }))
    }

    /// Whether the client has to change its request.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Call(CallError::Invalid { .. }) | Self::User { .. })
    }
}
