//! The launch request.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_plugin_model::{Command, ContainerClass, ContainerId, Limit, LinuxOptions, Resources, Value};
use serde::{Deserialize, Serialize};

/// A request to launch a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Id of the new container.
    pub id: ContainerId,
    /// Purpose of the container.
    #[serde(default)]
    pub class: ContainerClass,
    /// Command to run.
    #[serde(default)]
    pub command: Command,
    /// Files to fetch into its sandbox before the command runs.
    #[serde(default)]
    pub uris: Vec<Uri>,
    /// Directory on the host to use as the root file system; it is not modified.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// Requested resources and limits.
    #[serde(default)]
    pub resources: Resources,
    /// Free-form labels for plugins and clients.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Options specific to Linux.
    #[serde(default)]
    pub linux: LinuxOptions,
}

/// A file to fetch into the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uri {
    /// An absolute path, or a `file`, `http` or `https` URL.
    pub value: String,
    /// Set the executable bits; an archive is then not unpacked.
    #[serde(default)]
    pub executable: bool,
    /// Unpack it if it is a tar archive.
    #[serde(default = "yes")]
    pub extract: bool,
    /// File name in the sandbox; by default the last component of the path.
    #[serde(default)]
    pub output_file: Option<String>,
    /// Expected SHA-256, in hexadecimal.
    #[serde(default)]
    pub sha256: Option<String>,
}

fn yes() -> bool {
    true
}

/// Why a request is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The command is empty.
    #[error("the command of container `{id}` is empty; set `value` or `arguments`")]
    NoCommand {
        /// The container.
        id: ContainerId,
    },
    /// A string that is passed to the kernel contains a NUL.
    #[error("{what} of container `{id}` contains a NUL character")]
    Nul {
        /// The container.
        id: ContainerId,
        /// Which field.
        what: &'static str,
    },
    /// An environment variable has an invalid name.
    #[error(
        "`{name}` of container `{id}` is not a valid name of an environment variable; it must not be empty or contain `=` or NUL"
    )]
    Variable {
        /// The container.
        id: ContainerId,
        /// The name.
        name: String,
    },
    /// The path of the root file system is relative.
    #[error("the root file system `{path}` of container `{id}` is not an absolute path")]
    RelativeRootfs {
        /// The container.
        id: ContainerId,
        /// The path.
        path: PathBuf,
    },
    /// The path of the working directory is relative.
    #[error("the working directory `{path}` of container `{id}` is not an absolute path")]
    RelativeWorkingDirectory {
        /// The container.
        id: ContainerId,
        /// The path.
        path: PathBuf,
    },
    /// An amount is not a positive number.
    #[error("container `{id}` requests {amount} of `{resource}`; expected a number above 0")]
    Amount {
        /// The container.
        id: ContainerId,
        /// The resource.
        resource: String,
        /// The amount.
        amount: String,
    },
    /// A limit is below the request for the same resource.
    #[error(
        "container `{id}` requests {request} of `{resource}` with a limit of {limit}; a limit must be at least the request"
    )]
    LimitBelowRequest {
        /// The container.
        id: ContainerId,
        /// The resource.
        resource: String,
        /// The requested amount.
        request: String,
        /// The limit.
        limit: String,
    },
    /// A debug container has no parent.
    #[error(
        "container `{id}` is of class DEBUG but not nested; a debug container needs a parent whose namespaces it enters"
    )]
    DebugWithoutParent {
        /// The container.
        id: ContainerId,
    },
}

impl Request {
    /// A container that runs a shell command, with defaults for everything else.
    #[must_use]
    pub fn shell(id: ContainerId, line: impl Into<String>) -> Self {
        let command = Command { value: Some(line.into()), ..Command::default() };
        Self::new(id, command)
    }

    /// A container that runs a command, with defaults for everything else.
    #[must_use]
    pub fn new(id: ContainerId, command: Command) -> Self {
        Self {
            id,
            class: ContainerClass::default(),
            command,
            uris: Vec::new(),
            rootfs: None,
            resources: Resources::default(),
            labels: BTreeMap::new(),
            linux: LinuxOptions::default(),
        }
    }

    /// Checks the request by itself, without access to files or plugins.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        let id = || self.id.clone();
        let command = &self.command;
        let empty = if command.shell {
            command.value.is_none()
        } else {
            command.value.is_none() && command.arguments.is_empty()
        };
        if empty {
            return Err(InvalidRequest::NoCommand { id: id() });
        }
        let texts = [
            ("the command", command.value.iter().chain(&command.arguments).collect::<Vec<_>>()),
            ("the environment", command.environment.values().collect()),
            ("the host name", self.linux.hostname.iter().collect()),
        ];
        let directory = command.working_directory.as_ref();
        if directory.is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
            return Err(InvalidRequest::Nul { id: id(), what: "the working directory" });
        }
        for (what, texts) in texts {
            if texts.iter().any(|text| text.contains('\0')) {
                return Err(InvalidRequest::Nul { id: id(), what });
            }
        }
        if let Some(name) = command.environment.keys().find(|n| n.is_empty() || n.contains(['=', '\0'])) {
            return Err(InvalidRequest::Variable { id: id(), name: name.clone() });
        }
        if let Some(path) = self.rootfs.as_ref().filter(|path| !path.is_absolute()) {
            return Err(InvalidRequest::RelativeRootfs { id: id(), path: path.clone() });
        }
        if let Some(path) = command.working_directory.as_ref().filter(|path| !path.is_absolute()) {
            return Err(InvalidRequest::RelativeWorkingDirectory { id: id(), path: path.clone() });
        }
        if self.class == ContainerClass::Debug && !self.id.is_nested() {
            return Err(InvalidRequest::DebugWithoutParent { id: id() });
        }
        check_resources(&self.id, &self.resources)
    }
}

/// Checks the amounts and limits of a launch or an update.
///
/// # Errors
/// The first invalid amount.
pub fn check_resources(id: &ContainerId, resources: &Resources) -> Result<(), InvalidRequest> {
    let amounts = resources.requests.iter().filter_map(|(name, value)| match value {
        Value::Scalar(amount) => Some((name, *amount)),
        _ => None,
    });
    let limits = resources.limits.iter().filter_map(|(name, limit)| match limit {
        Limit::At(amount) => Some((name, *amount)),
        _ => None,
    });
    for (resource, amount) in amounts.chain(limits) {
        if !amount.is_finite() || amount <= 0.0 {
            return Err(InvalidRequest::Amount {
                id: id.clone(),
                resource: resource.clone(),
                amount: amount.to_string(),
            });
        }
    }
    for (resource, limit) in &resources.limits {
        if let (Limit::At(limit), Some(request)) = (limit, resources.scalar(resource))
            && *limit < request
        {
            return Err(InvalidRequest::LimitBelowRequest {
                id: id.clone(),
                resource: resource.clone(),
                request: request.to_string(),
                limit: limit.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).unwrap()
    }

    #[test]
    fn an_invalid_request_is_refused_with_the_reason() {
        let good = Request::shell(id("web"), "true");
        assert_eq!(good.check(), Ok(()));

        let empty = Request::new(id("web"), Command::default());
        assert_eq!(empty.check(), Err(InvalidRequest::NoCommand { id: id("web") }));

        let mut nul = good.clone();
        nul.command.arguments.push("a\0b".into());
        assert!(matches!(nul.check(), Err(InvalidRequest::Nul { what: "the command", .. })));

        let mut variable = good.clone();
        variable.command.environment.insert("A=B".into(), String::new());
        assert!(matches!(variable.check(), Err(InvalidRequest::Variable { .. })));

        let mut negative = good.clone();
        negative.resources = Resources::default().with("cpus", -1.0);
        assert!(matches!(negative.check(), Err(InvalidRequest::Amount { .. })));

        let mut low = good.clone();
        low.resources = Resources::default().with("mem", 64.0).with_limit("mem", Limit::At(32.0));
        assert!(matches!(low.check(), Err(InvalidRequest::LimitBelowRequest { .. })));

        let mut directory = good.clone();
        directory.command.working_directory = Some("data".into());
        assert!(matches!(directory.check(), Err(InvalidRequest::RelativeWorkingDirectory { .. })));
        directory.command.working_directory = Some("/da\0ta".into());
        assert!(matches!(directory.check(), Err(InvalidRequest::Nul { what: "the working directory", .. })));

        let mut debug = good;
        debug.class = ContainerClass::Debug;
        assert!(matches!(debug.check(), Err(InvalidRequest::DebugWithoutParent { .. })));
    }
}
