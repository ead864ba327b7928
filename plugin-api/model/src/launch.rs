//! What a plugin may wish for a container that is about to be launched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a plugin wishes for a launch.
///
/// The agent merges the wishes of all plugins in the order of the chain and remembers who asked for what.
/// Lists append and sets unite; where two plugins set the same single value to different things, the launch
/// fails and the error names both.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchInfo {
    /// Variables for the container's command. The command's own environment wins over them.
    pub environment: BTreeMap<String, String>,
    /// Another command, or other arguments.
    pub command: Option<CommandRewrite>,
    /// Where the command starts, as the container sees it.
    pub working_directory: Option<String>,
    /// The root file system. Only a `filesystem/*` isolator has reason to set it.
    pub root: Option<Root>,
    /// Namespaces of the parent container to enter.
    pub enter_namespaces: BTreeSet<Namespace>,
    /// Namespaces to make anew.
    pub clone_namespaces: BTreeSet<Namespace>,
    /// Cgroup v1 directories in which the container's first process is to be born. On v2 it is born in
    /// its own control group in any case.
    pub cgroups: Vec<PathBuf>,
    /// Changes to the file system as the container will see it, in this order, before its command runs.
    pub operations: Vec<Operation>,
    /// Extra group ids.
    pub supplementary_groups: BTreeSet<u32>,
    /// Resource limits of the command by name: `NOFILE`, `CORE`, ….
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Names such as `NET_RAW` of the capabilities that the command starts with.
    pub effective_capabilities: Option<BTreeSet<String>>,
    /// Names of the capabilities that the command can ever obtain.
    pub bounding_capabilities: Option<BTreeSet<String>>,
    /// Whether gaining privileges by exec is off for good.
    pub no_new_privileges: Option<bool>,
    /// How eagerly the kernel picks the container when memory runs out: -1000 (never) to 1000 (first).
    pub oom_score_adj: Option<i32>,
}

/// Another command for a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandRewrite {
    /// The program to run instead.
    pub value: Option<String>,
    /// The whole argument vector to use instead, the program's own name first.
    pub arguments: Option<Vec<String>>,
}

/// A kind of Linux namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Namespace {
    /// Control groups.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mount,
    /// Network devices, addresses, ports.
    Network,
    /// Process ids.
    Pid,
    /// Host and domain name.
    Uts,
    /// Something a newer plugin knows.
    #[serde(other)]
    Unknown,
}

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Root {
    /// A folder on the host, used as it is: the container changes it.
    Directory {
        /// The folder.
        path: PathBuf,
    },
    /// Folders that stay as they are, below one that takes the changes.
    Overlay {
        /// The folders that stay as they are, topmost first.
        lower: Vec<PathBuf>,
        /// Takes the changes; on the same file system as `work`.
        upper: PathBuf,
        /// An empty directory the kernel needs.
        work: PathBuf,
    },
    /// Something a newer plugin knows.
    #[serde(other)]
    Unknown,
}

/// One change to the file system as the container will see it. Paths inside are absolute in its view and
/// never lead out of its root, whatever symbolic links lie there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// Shows a file or folder of the host inside.
    Bind {
        /// On the host.
        source: PathBuf,
        /// Inside; made if missing.
        target: PathBuf,
        /// With what is mounted below it.
        #[serde(default)]
        recursive: bool,
        /// Mount flags: `ro`, `nosuid`, `nodev`, `noexec`, ….
        #[serde(default)]
        flags: BTreeSet<String>,
    },
    /// Mounts a new file system.
    Mount {
        /// Its type: `proc`, `tmpfs`, ….
        fstype: String,
        /// Inside; made if missing.
        target: PathBuf,
        /// Mount flags: `ro`, `nosuid`, `nodev`, `noexec`, `strictatime`, ….
        #[serde(default)]
        flags: BTreeSet<String>,
        /// Options of the file system: `mode=755`, `size=64m`, ….
        #[serde(default)]
        options: Vec<String>,
    },
    /// Makes a character device.
    Device {
        /// Inside; its folder exists or is made.
        path: PathBuf,
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
        /// Permission bits.
        mode: u32,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Inside; what exists there already stays.
        path: PathBuf,
        /// What it points to.
        target: PathBuf,
    },
    /// Makes a folder and those above it.
    Mkdir {
        /// Inside.
        path: PathBuf,
        /// Permission bits of the last one.
        mode: u32,
    },
    /// Hides a file or folder; nothing happens where there is none.
    Mask {
        /// Inside.
        path: PathBuf,
    },
    /// Makes a file or folder read-only; nothing happens where there is none.
    ReadOnly {
        /// Inside.
        path: PathBuf,
    },
    /// Something a newer plugin knows.
    #[serde(other)]
    Unknown,
}

/// A pair of resource limits; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// Where the kernel stops the process; it may raise this up to `hard`.
    pub soft: Option<u64>,
    /// How far it may raise `soft`.
    pub hard: Option<u64>,
}
