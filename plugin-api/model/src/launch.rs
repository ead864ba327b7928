//! Launch information: the requests of a plugin for the launch of a container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bpf::BpfInstruction;

/// The requests of a plugin for the launch of a container.
///
/// The agent merges the requests of all plugins in chain order and remembers which plugin each entry came from.
/// Lists are appended and sets united; if two plugins set a single value differently, the launch fails and the error
/// names both. A key or variant that the agent does not know fails the launch: nothing is dropped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchInfo {
    /// Environment variables of the command. Those of the command itself take precedence.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Environment variables whose values are neither shown nor recorded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_environment: BTreeMap<String, String>,
    /// Values to prepend to `:`-separated environment variables such as `PATH`, whether they are set by the command or
    /// by a plugin.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_prepend: BTreeMap<String, Vec<String>>,
    /// Values to append to `:`-separated environment variables such as `PATH`, whether they are set by the command or
    /// by a plugin.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_append: BTreeMap<String, Vec<String>>,
    /// Replaces the command or its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandRewrite>,
    /// Working directory of the command, as the container sees it; [`Self::sandbox_path`] if no plugin sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Path at which the container sees its sandbox. Set by `filesystem/*` isolators that mount it in a root filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_path: Option<String>,
    /// User to run the command as, unless the request has one: `USER` or `USER:GROUP`, each a name or a number. Names are
    /// looked up in the root filesystem. Plugins later in the chain get the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Number of the signal that asks the command to stop; SIGTERM if no plugin sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// The root filesystem. Set by `filesystem/*` isolators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Namespaces of the parent container to enter.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub enter_namespaces: BTreeSet<Namespace>,
    /// Namespaces to enter, each with the index of its descriptor in the reply.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub enter_descriptors: BTreeMap<Namespace, usize>,
    /// Namespaces to create.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub clone_namespaces: BTreeSet<Namespace>,
    /// Id mappings of the container's own user namespace. Requires [`Namespace::User`] in `clone_namespaces`, which no agent
    /// creates yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_mappings: Option<IdMappings>,
    /// Clock offsets of the container's own time namespace. Requires [`Namespace::Time`] in `clone_namespaces`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_offsets: Option<TimeOffsets>,
    /// Cgroup v1 directories that the container's processes are in. On v2 they always are in the container's own cgroup. The
    /// process that sets the container up joins the former when it has done so, and is not in the latter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<PathBuf>,
    /// Changes to the container's view of the filesystem, in this order, before its command runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
    /// Kernel parameters of the container's own namespaces: `net.ipv4.ip_forward` = `1`. The namespace that a
    /// parameter belongs to must be the container's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Host name. Requires a UTS namespace of the container's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Supplementary group ids of the command.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub supplementary_groups: BTreeSet<u32>,
    /// Resource limits of the command by name without `RLIMIT_`: `NOFILE`, `CORE`, ….
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Capabilities of the command.
    #[serde(skip_serializing_if = "Capabilities::is_empty")]
    pub capabilities: Capabilities,
    /// Whether `no_new_privs` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
    /// Seccomp filter of the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// Whether the command gets a session keyring of its own; it does if this is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_keyring: Option<bool>,
    /// Badness adjustment for the OOM killer, from -1000 (never killed) to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Commands to run during the launch, in this order for each stage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<LaunchHook>,
    /// Labels that the launch plan shows to people and clients. Plugins are not given them, as whoever made an image is not to
    /// be taken for whoever requests a container; those of its image are in [`Container::image`](crate::Container::image).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Names of capabilities without `CAP_`, such as `NET_RAW`. A set that no plugin sets is determined by the kernel's
/// rules for the container's user.
///
/// When root executes the command, the kernel makes all capabilities of `bounding` permitted and effective
/// (capabilities(7)); to restrict root, restrict `bounding`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// Effective when the command starts; equal to `permitted` if only that is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective: Option<BTreeSet<String>>,
    /// Can be made effective; equal to `effective` if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permitted: Option<BTreeSet<String>>,
    /// Preserved when a file is executed, and permitted afterwards if it is in the file's inheritable set; equal to
    /// `ambient` if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inheritable: Option<BTreeSet<String>>,
    /// Upper bound of the capabilities that can be obtained by executing files; if not set, equal to `permitted`, or
    /// else to `effective`, or else not restricted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bounding: Option<BTreeSet<String>>,
    /// Preserved when a file without file capabilities is executed; if not set, equal to `effective` or else `permitted`
    /// for users other than root, and empty for root and if neither is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambient: Option<BTreeSet<String>>,
}

impl Capabilities {
    /// Whether no set is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Replaces the command of a container, or its arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandRewrite {
    /// Whether `value` is a line for `/bin/sh -c`; as in the request if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<bool>,
    /// The program, or the shell line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The whole argument vector, beginning with the name of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
}

/// A kind of Linux namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Namespace {
    /// Cgroup root.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mount,
    /// Network devices, addresses, ports.
    Network,
    /// Process ids.
    Pid,
    /// Monotonic and boot-time clocks.
    Time,
    /// User and group ids, capabilities. No agent creates one yet: a launch with a request for it fails. When one does,
    /// [`FEATURES`](crate::FEATURES) will have `launch.user_namespace`.
    User,
    /// Host and domain name.
    Uts,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// Id mappings of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdMappings {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// A range of ids that is mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdMapping {
    /// First id inside.
    pub container: u32,
    /// First id outside, in the agent's user namespace.
    pub host: u32,
    /// Number of ids.
    pub size: u32,
}

/// Clock offsets of a time namespace, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeOffsets {
    /// Added to `CLOCK_MONOTONIC`.
    pub monotonic_nanos: i64,
    /// Added to `CLOCK_BOOTTIME`.
    pub boottime_nanos: i64,
}

/// A seccomp filter program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seccomp {
    /// Instructions of the BPF program; at most 4096. In JSON: their `struct sock_filter` in little-endian byte order, as Base64.
    #[serde(with = "crate::bpf::base64")]
    pub program: Vec<BpfInstruction>,
    /// Flags of seccomp(2) by name without `SECCOMP_FILTER_FLAG_`: `LOG`, `SPEC_ALLOW`, `TSYNC`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub flags: BTreeSet<String>,
}

/// A command to run during a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchHook {
    /// When and in which namespaces it runs.
    pub stage: HookStage,
    /// Absolute path of the program. For stages before the root change it is a path of the host.
    pub program: PathBuf,
    /// The whole argument vector, beginning with the name of the program; if empty, it consists of the program only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// The whole environment; the agent's variables are not inherited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Timeout in milliseconds, after which the program is killed and the launch fails; 0 stands for 30,000.
    #[serde(default)]
    pub timeout_millis: u64,
}

/// Stage of a launch at which a [`LaunchHook`] runs. A hook that cannot be started or exits with a status other than 0 fails
/// the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HookStage {
    /// In the container's namespaces, before its root is changed, as the agent's user. `proc` and `cgroup` file systems are
    /// not mounted yet. Refused for a container that enters the mount namespace of its parent, as debug containers do: paths of
    /// the host lead to files of the parent there.
    BeforeRoot,
    /// In the container's namespaces and root, after all operations, as the agent's user. The program, and what it loads, are
    /// the container's, which need not mean well.
    AfterRoot,
    /// Like `after_root`, directly before the command, with its user, capabilities and limits but no seccomp filter.
    BeforeExec,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// A root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Root {
    /// A directory of the host. The container's changes are written to it.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of the host that is not changed: it is read-only, also for the operations.
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// An overlay of directories that are not changed, and one that the container's changes are written to.
    Overlay {
        /// The directories that are not changed, topmost first.
        lower: Vec<PathBuf>,
        /// The directory that changes are written to; on the same filesystem as `work`.
        upper: PathBuf,
        /// An empty directory for use by the kernel.
        work: PathBuf,
    },
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// A change to the container's view of the filesystem. Paths of the container are absolute and resolved within its
/// root, even if they contain symbolic links. Without a root filesystem of the container's own, operations apply to a
/// private mount namespace; those that would create or change files of the host are refused.
///
/// What is at or below the path of an earlier mount is resolved in that mount: a symbolic link that leads out of it
/// fails the launch, and so do a `..` after a name and a mount over the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Operation {
    /// Bind-mounts a file or directory of the host.
    Bind {
        /// Path of the host.
        source: PathBuf,
        /// Path of the container; created if missing.
        target: PathBuf,
        /// Whether mounts below the source are included.
        #[serde(default)]
        recursive: bool,
        /// Mount flags: `ro`, `nosuid`, `nodev`, `noexec`, ….
        #[serde(default)]
        flags: BTreeSet<String>,
    },
    /// Bind-mounts what a descriptor of the reply refers to: a file, a directory or a detached mount.
    BindDescriptor {
        /// Index of the descriptor in the reply.
        index: usize,
        /// Path of the container; created if missing.
        target: PathBuf,
        /// Whether mounts below the source are included.
        #[serde(default)]
        recursive: bool,
        /// As for [`Operation::Bind`].
        #[serde(default)]
        flags: BTreeSet<String>,
    },
    /// Mounts a new filesystem.
    Mount {
        /// Its type: `proc`, `tmpfs`, ….
        fstype: String,
        /// Path of the container; created if missing.
        target: PathBuf,
        /// Mount flags: `ro`, `nosuid`, `nodev`, `noexec`, `strictatime`, ….
        #[serde(default)]
        flags: BTreeSet<String>,
        /// Options of the filesystem: `mode=755`, `size=64m`, ….
        #[serde(default)]
        options: Vec<String>,
    },
    /// Moves a mount to another path of the container.
    Move {
        /// Path of the container, at which something is mounted.
        source: PathBuf,
        /// Path of the container; created if missing.
        target: PathBuf,
    },
    /// Creates a device node.
    Device {
        /// Path of the container; its parent directories are created if missing. A node of the same kind and number may
        /// exist there and keeps its mode and owner; anything else fails the launch.
        path: PathBuf,
        /// Kind of the node.
        #[serde(default)]
        kind: DeviceKind,
        /// Major device number; ignored for a FIFO.
        #[serde(default)]
        major: u32,
        /// Minor device number; ignored for a FIFO.
        #[serde(default)]
        minor: u32,
        /// Permission bits.
        mode: u32,
        /// Owner.
        #[serde(default)]
        owner: Owner,
    },
    /// Creates a symbolic link.
    Symlink {
        /// Path of the container. A link to the same target may exist there; anything else fails the launch.
        path: PathBuf,
        /// Target of the link.
        target: PathBuf,
    },
    /// Creates a directory and its parents.
    Mkdir {
        /// Path of the container.
        path: PathBuf,
        /// Permission bits of the directory; its parents are not affected.
        mode: u32,
        /// Owner of the directory; its parents are not affected.
        #[serde(default)]
        owner: Owner,
    },
    /// Creates a regular file, or replaces its content.
    WriteFile {
        /// Path of the container; its parent directories are created if missing.
        path: PathBuf,
        /// The content.
        content: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        #[serde(default)]
        owner: Owner,
    },
    /// Hides a file or directory; one that does not exist is ignored.
    Mask {
        /// Path of the container.
        path: PathBuf,
    },
    /// Makes a file or directory read-only; one that does not exist is ignored.
    ReadOnly {
        /// Path of the container.
        path: PathBuf,
    },
    /// Sets the propagation of the mount at a path.
    Propagation {
        /// Path of the container, at which something is mounted.
        path: PathBuf,
        /// The propagation.
        propagation: Propagation,
        /// Whether it applies to all mounts below.
        #[serde(default)]
        recursive: bool,
    },
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceKind {
    /// Character device.
    #[default]
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// Numeric owner of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Owner {
    /// User id, as the container sees it.
    pub uid: u32,
    /// Group id, as the container sees it.
    pub gid: u32,
}

/// Propagation of mount events, see mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Propagation {
    /// In no direction.
    Private,
    /// From the host into the container.
    Slave,
    /// In both directions.
    Shared,
    /// In no direction, and cannot be bind-mounted.
    Unbindable,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// A pair of resource limits; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rlimit {
    /// Enforced by the kernel; the process may raise it up to `hard`.
    pub soft: Option<u64>,
    /// Upper bound of `soft`.
    pub hard: Option<u64>,
}
