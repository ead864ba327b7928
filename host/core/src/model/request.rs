//! What somebody asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_plugin_model::{Command, ContainerClass, ContainerId, Limit, LinuxOptions, Resources, Value};
use serde::{Deserialize, Serialize};

/// A container that somebody wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: ContainerId,
    /// What it is for.
    #[serde(default)]
    pub class: ContainerClass,
    /// What it runs.
    #[serde(default)]
    pub command: Command,
    /// What is to be in its sandbox before it runs.
    #[serde(default)]
    pub uris: Vec<Uri>,
    /// A folder on the host as its root file system; it stays as it was.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// What it may use.
    #[serde(default)]
    pub resources: Resources,
    /// Free text for plugins and people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it asks of Linux.
    #[serde(default)]
    pub linux: LinuxOptions,
}

/// A file that a container needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uri {
    /// An absolute path, or a `file`, `http` or `https` URL.
    pub value: String,
    /// Make it executable; an archive is then not unpacked.
    #[serde(default)]
    pub executable: bool,
    /// Unpack it if it is a tar archive.
    #[serde(default = "yes")]
    pub extract: bool,
    /// Its name in the sandbox; the last part of the path if not given.
    #[serde(default)]
    pub output_file: Option<String>,
    /// The SHA-256 it must have, in hexadecimal.
    #[serde(default)]
    pub sha256: Option<String>,
}

fn yes() -> bool {
    true
}

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// There is nothing to run.
    #[error("the command of container `{id}` says nothing to run; give a `value`, or `arguments`")]
    NoCommand {
        /// The container.
        id: ContainerId,
    },
    /// A text that goes into the kernel holds a NUL.
    #[error("{what} of container `{id}` holds a NUL character")]
    Nul {
        /// The container.
        id: ContainerId,
        /// Which text.
        what: &'static str,
    },
    /// A variable cannot be named like that.
    #[error("`{name}` of container `{id}` cannot be the name of an environment variable")]
    Variable {
        /// The container.
        id: ContainerId,
        /// The name.
        name: String,
    },
    /// The root file system is not where it can be found.
    #[error("the root file system `{path}` of container `{id}` is not an absolute path")]
    RelativeRootfs {
        /// The container.
        id: ContainerId,
        /// The path.
        path: PathBuf,
    },
    /// Nobody can say from where the path of the working directory is to be followed.
    #[error("the working directory `{path}` of container `{id}` is not an absolute path")]
    RelativeWorkingDirectory {
        /// The container.
        id: ContainerId,
        /// The path.
        path: PathBuf,
    },
    /// An amount makes no sense.
    #[error("container `{id}` asks for {amount} `{resource}`; expected a number above 0")]
    Amount {
        /// The container.
        id: ContainerId,
        /// The resource.
        resource: String,
        /// The amount.
        amount: String,
    },
    /// A limit is below what is set aside.
    #[error(
        "container `{id}` asks for {request} `{resource}` and to be limited to {limit}; a limit is at least the request"
    )]
    LimitBelowRequest {
        /// The container.
        id: ContainerId,
        /// The resource.
        resource: String,
        /// What is asked for.
        request: String,
        /// The limit.
        limit: String,
    },
    /// A debug container looks into another.
    #[error("container `{id}` is of class DEBUG but not nested; a debug container looks into its parent")]
    DebugWithoutParent {
        /// The container.
        id: ContainerId,
    },
}

impl Request {
    /// A container that runs one shell line, with nothing else said.
    #[must_use]
    pub fn shell(id: ContainerId, line: impl Into<String>) -> Self {
        let command = Command { value: Some(line.into()), ..Command::default() };
        Self::new(id, command)
    }

    /// A container that runs a command, with nothing else said.
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

    /// Checks what can be known without touching anything.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        let id = || self.id.clone();
        let command = &self.command;
        let nothing = if command.shell {
            command.value.is_none()
        } else {
            command.value.is_none() && command.arguments.is_empty()
        };
        if nothing {
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

/// Checks amounts and limits, of a request or of an update.
///
/// # Errors
/// The first amount that makes no sense.
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
    fn a_request_that_makes_no_sense_is_refused_by_name() {
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

        let mut lost = good.clone();
        lost.command.working_directory = Some("data".into());
        assert!(matches!(lost.check(), Err(InvalidRequest::RelativeWorkingDirectory { .. })));
        lost.command.working_directory = Some("/da\0ta".into());
        assert!(matches!(lost.check(), Err(InvalidRequest::Nul { what: "the working directory", .. })));

        let mut debug = good;
        debug.class = ContainerClass::Debug;
        assert!(matches!(debug.check(), Err(InvalidRequest::DebugWithoutParent { .. })));
    }
}
