//! What a plugin is told of a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Cgroups, ContainerId, Resources};

/// Everything that is known of a container before it exists; the request of `prepare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// What it is for.
    #[serde(default)]
    pub class: ContainerClass,
    /// Whether an operator launched it by itself, without an executor or task.
    #[serde(default)]
    pub standalone: bool,
    /// What it runs.
    #[serde(default)]
    pub command: Command,
    /// The directory on the host with its files and logs; it outlives the container.
    #[serde(default)]
    pub sandbox: PathBuf,
    /// Its private directory on the host for things that end with it; empty until a plugin fills it.
    /// On the same kind of disk as the sandbox, so it can hold the upper layer of an overlay.
    #[serde(default)]
    pub scratch: PathBuf,
    /// The folder it wants as its root file system, as it lies on the host.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// What it asked for.
    #[serde(default)]
    pub resources: Resources,
    /// Where its control groups are.
    #[serde(default)]
    pub cgroups: Cgroups,
    /// Free text that the launcher of the container attached.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it asked of Linux.
    #[serde(default)]
    pub linux: LinuxOptions,
    /// The numeric user and group its command will run as.
    #[serde(default)]
    pub uid: u32,
    /// See [`Container::uid`].
    #[serde(default)]
    pub gid: u32,
}

impl Container {
    /// A container of which only the id is known.
    #[must_use]
    pub fn new(id: ContainerId) -> Self {
        Self {
            id,
            class: ContainerClass::default(),
            standalone: false,
            command: Command::default(),
            sandbox: PathBuf::new(),
            scratch: PathBuf::new(),
            rootfs: None,
            resources: Resources::default(),
            cgroups: Cgroups::default(),
            labels: BTreeMap::new(),
            linux: LinuxOptions::default(),
            uid: 0,
            gid: 0,
        }
    }

    /// Whether it has no control groups of its own but lives in its parent's: it asked to, or only looks
    /// into its parent. A container without parent always has its own.
    #[must_use]
    pub fn shares_cgroups(&self) -> bool {
        self.id.is_nested() && (self.linux.share_cgroups || self.class == ContainerClass::Debug)
    }
}

/// What a container is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContainerClass {
    /// Runs a workload.
    #[default]
    Default,
    /// Looks into its parent: joins all of its namespaces, and ends when the agent restarts.
    Debug,
    /// Something a newer agent knows.
    #[serde(other)]
    Unknown,
}

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Command {
    /// Whether `value` is a line for `/bin/sh -c` (then `arguments` are ignored) or a program.
    pub shell: bool,
    /// The shell line, or the program.
    pub value: Option<String>,
    /// The whole argument vector, the program's own name first. Ignored for a shell line.
    pub arguments: Vec<String>,
    /// The command's own environment; it wins over what plugins add.
    pub environment: BTreeMap<String, String>,
    /// The user to run as: a name or a number.
    pub user: Option<String>,
    /// Where it starts, as the command sees it: a full path, which wins over what plugins wish. Without one it
    /// starts where they wish, or in its sandbox. In a root file system of its own the directory is made if it
    /// is missing.
    pub working_directory: Option<PathBuf>,
}

impl Default for Command {
    fn default() -> Self {
        // Mesos' default too: a command that says nothing of it is a shell line.
        Self {
            shell: true,
            value: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            user: None,
            working_directory: None,
        }
    }
}

impl Command {
    /// The command in one line, for display.
    #[must_use]
    pub fn to_line(&self) -> String {
        match (&self.value, self.shell || self.arguments.is_empty()) {
            (Some(value), true) => value.clone(),
            _ => self.arguments.join(" "),
        }
    }
}

/// What a container asked of Linux.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxOptions {
    /// Share the pid namespace of the parent, or of the agent for a container without parent.
    pub share_pid_namespace: bool,
    /// Stay in the parent's control groups; only meaningful for a nested container.
    pub share_cgroups: bool,
    /// The host name inside; the container's own id value when it has its own UTS namespace and says nothing.
    pub hostname: Option<String>,
}

/// What every call after `prepare` is told of its container. Small, and only read when asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerDetails {
    /// The container's first process as the host sees it; `None` before it exists and after it ended.
    pub pid: Option<i32>,
    /// See [`Container::sandbox`].
    pub sandbox: PathBuf,
    /// See [`Container::scratch`].
    pub scratch: PathBuf,
    /// Where its control groups are.
    pub cgroups: Cgroups,
    /// What the plugin last asked the agent to keep for it.
    pub state: Json,
}
