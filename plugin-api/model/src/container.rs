//! Description of a container for plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Cgroups, ContainerId, Resources, Rlimit};

/// A container that is to be launched: the request of `prepare`. Defaults of the agent's configuration are merged in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The container.
    pub id: ContainerId,
    /// Its class.
    #[serde(default)]
    pub class: ContainerClass,
    /// Whether it was launched by itself, without an executor or task.
    #[serde(default)]
    pub standalone: bool,
    /// Its command.
    #[serde(default)]
    pub command: Command,
    /// Directory of the host with its files and logs; absolute. It is kept when the container ends.
    #[serde(default)]
    pub sandbox: PathBuf,
    /// Directory of the host for files that are removed when the container ends; absolute. It is on the same filesystem
    /// as the sandbox, so it can contain the upper layer of an overlay.
    #[serde(default)]
    pub scratch: PathBuf,
    /// Directory of the host that is to be its root filesystem. If it is assembled from an image, this shows its content,
    /// and is valid until `prepare` returns; what it consists of is in [`Container::image_root`].
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// Requested resources and limits.
    #[serde(default)]
    pub resources: Resources,
    /// Its cgroups.
    #[serde(default)]
    pub cgroups: Cgroups,
    /// Labels of the request.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Linux options of the request.
    #[serde(default)]
    pub linux: LinuxOptions,
    /// Bounding set of capabilities that plugins earlier in the chain request, without `CAP_`; `None` if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounding_capabilities: Option<BTreeSet<String>>,
    /// Path of the sandbox as the container sees it, if plugins earlier in the chain give it a root filesystem and mount
    /// the sandbox there. See [`Container::sandbox_in_container`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_path: Option<PathBuf>,
    /// Volumes of the request, in order.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Networks of the request, in order.
    #[serde(default)]
    pub networks: Vec<NetworkRequest>,
    /// Resource limits of the request by name without `RLIMIT_`.
    #[serde(default)]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Terminal of the request; `None` for none.
    #[serde(default)]
    pub tty: Option<Tty>,
    /// Configuration of its image; `None` without an image.
    #[serde(default)]
    pub image: Option<ImageConfig>,
    /// Root filesystem that the agent has assembled from its image; `None` without an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_root: Option<ImageRoot>,
    /// Where the loggers want its output that this logger passes it on to, in the operator's order. Only for a logger that
    /// requires the feature `container.log_targets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_targets: Vec<LogTarget>,
    /// Numeric user of its command.
    #[serde(default)]
    pub uid: u32,
    /// Numeric group of its command.
    #[serde(default)]
    pub gid: u32,
    /// The container that it is nested in; `None` for a top-level container.
    #[serde(default)]
    pub parent: Option<Parent>,
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
            bounding_capabilities: None,
            sandbox_path: None,
            volumes: Vec::new(),
            networks: Vec::new(),
            rlimits: BTreeMap::new(),
            tty: None,
            image: None,
            image_root: None,
            log_targets: Vec::new(),
            uid: 0,
            gid: 0,
            parent: None,
        }
    }

    /// Path of the sandbox as the container sees it.
    #[must_use]
    pub fn sandbox_in_container(&self) -> &Path {
        self.sandbox_path.as_deref().unwrap_or(&self.sandbox)
    }

    /// Whether it has no cgroups of its own but shares those of its parent. A top-level container always has its
    /// own.
    #[must_use]
    pub fn shares_cgroups(&self) -> bool {
        self.id.is_nested() && (self.linux.share_cgroups || self.class == ContainerClass::Debug)
    }
}

/// Class of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContainerClass {
    /// Runs a workload.
    #[default]
    Default,
    /// Inspects its parent: joins all of its namespaces, and ends when the agent restarts.
    Debug,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// Where a logger wants the output of a container that another one passes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTarget {
    /// Name of the logger.
    pub logger: String,
    /// Standard output; `None` if the logger discards it.
    #[serde(default)]
    pub stdout: Option<LogPlace>,
    /// Standard error, likewise.
    #[serde(default)]
    pub stderr: Option<LogPlace>,
}

/// A file or a pipe that output is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlace {
    /// Absolute path. That of a file may be in a directory that the container can change; created if missing, it belongs to the
    /// container's user, and is appended to.
    pub path: PathBuf,
    /// Whether it is a pipe, which exists, in a directory that only the agent's user can change.
    #[serde(default)]
    pub pipe: bool,
}

/// The container that another is nested in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parent {
    /// Dotted id.
    pub id: String,
    /// Pid of its first process in the agent's pid namespace.
    pub pid: Option<i32>,
    /// Its sandbox.
    pub sandbox: PathBuf,
    /// Its root filesystem on the host, if the request had one.
    pub rootfs: Option<PathBuf>,
    /// Numeric user of its command.
    pub uid: u32,
    /// Numeric group of its command.
    pub gid: u32,
    /// The plugin's own state for it.
    pub state: Json,
}

/// Command of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Command {
    /// Whether `value` is a line for `/bin/sh -c` (then `arguments` are ignored) or a program.
    pub shell: bool,
    /// The shell line, or the program.
    pub value: Option<String>,
    /// The whole argument vector, beginning with the name of the program. Ignored for a shell line.
    pub arguments: Vec<String>,
    /// Environment variables, which take precedence over those of plugins.
    pub environment: BTreeMap<String, String>,
    /// Environment variables whose values are secrets: references that a plugin resolves, or values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// User to run as: a name or a number.
    pub user: Option<String>,
    /// Working directory as the command sees it: an absolute path, which takes precedence over those of plugins.
    /// If not set, it is that of the plugins, or else the sandbox. Within a root filesystem of the container's own
    /// it is created if missing.
    pub working_directory: Option<PathBuf>,
    /// Whether `arguments` are those of the image's entry point, and the whole command if it has none, as with `docker run`. As
    /// in Mesos, they otherwise are arguments of the first word of the image's default command if there is no entry point. Only
    /// without `value`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replaces_cmd: bool,
}

impl Default for Command {
    fn default() -> Self {
        // As in Mesos, a command is a shell line by default.
        Self {
            shell: true,
            value: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            secrets: BTreeMap::new(),
            user: None,
            working_directory: None,
            replaces_cmd: false,
        }
    }
}

impl Command {
    /// The command on one line, for display: the shell line or program, or the arguments joined with spaces.
    #[must_use]
    pub fn to_line(&self) -> String {
        match (&self.value, self.shell || self.arguments.is_empty()) {
            (Some(value), true) => value.clone(),
            _ => self.arguments.join(" "),
        }
    }
}

/// A secret, as in the Mesos `Secret`. `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Secret {
    /// A reference to a secret store.
    Reference {
        /// Name of the secret.
        name: String,
        /// Key within the secret.
        #[serde(default)]
        key: Option<String>,
    },
    /// The value itself, which is never shown or recorded.
    Value(String),
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference { name, key } => {
                f.debug_struct("Reference").field("name", name).field("key", key).finish()
            }
            Self::Value(_) => f.write_str("Value(..)"),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

/// Linux options of a container, as in the Mesos `LinuxInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxOptions {
    /// Share the pid namespace of the parent, or of the agent for a top-level container.
    pub share_pid_namespace: bool,
    /// Run the command as process 1 of its pid namespace. Otherwise process 1 is an init that reaps orphans.
    pub without_init: bool,
    /// Stay in the cgroups of the parent; only meaningful for a nested container.
    pub share_cgroups: bool,
    /// Host name; the last value of the container's id if it has its own UTS namespace and none is requested.
    pub hostname: Option<String>,
    /// IPC namespace and `/dev/shm`; if not set, the plugins decide.
    pub ipc_mode: Option<IpcMode>,
    /// Size of a private `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Requested effective capabilities, without `CAP_`.
    pub effective_capabilities: Option<BTreeSet<String>>,
    /// Requested bounding capabilities, without `CAP_`.
    pub bounding_capabilities: Option<BTreeSet<String>>,
    /// Requested seccomp profile.
    pub seccomp: Option<SeccompRequest>,
    /// Whether its root filesystem, which must be its own, is read-only when its command runs. What is mounted in it is not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root: bool,
}

/// Sharing of the IPC namespace and `/dev/shm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IpcMode {
    /// Own IPC namespace and `/dev/shm`.
    Private,
    /// Those of the parent, or of the host for a top-level container.
    ShareParent,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// Requested seccomp profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeccompRequest {
    /// Name of a profile.
    pub profile: Option<String>,
    /// Whether no filter is requested.
    pub unconfined: bool,
}

/// A volume of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Path in the container: absolute, or relative to the sandbox.
    pub container_path: PathBuf,
    /// Whether it is mounted read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Source of its content.
    pub source: VolumeSource,
}

/// Source of the content of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum VolumeSource {
    /// A path of the host: absolute, or relative to the sandbox.
    HostPath {
        /// The path.
        path: PathBuf,
        /// Requested propagation: `private`, `slave` or `shared`.
        #[serde(default)]
        propagation: Option<String>,
    },
    /// A path relative to a sandbox.
    SandboxPath {
        /// Whether the sandbox is that of the parent.
        #[serde(default)]
        parent: bool,
        /// The path.
        path: PathBuf,
    },
    /// A secret, presented as a file.
    Secret {
        /// The secret.
        secret: Secret,
    },
    /// A volume of a Docker volume driver.
    DockerVolume {
        /// The driver.
        driver: String,
        /// Name of the volume.
        name: String,
        /// Driver options.
        #[serde(default)]
        options: BTreeMap<String, String>,
    },
    /// The root filesystem of an image.
    Image {
        /// Its name or id.
        image: String,
        /// Whether the registry is asked for it even if the store has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force_pull: bool,
        /// What the agent has assembled for this volume alone; `None` in a request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        root: Option<ImageRoot>,
    },
    /// A device of the host.
    Device {
        /// Path of the host.
        path: PathBuf,
    },
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

impl VolumeSource {
    /// Its name as a part of a launch request, see [`REQUEST_PARTS`](crate::REQUEST_PARTS).
    #[must_use]
    pub const fn part(&self) -> &'static str {
        match self {
            Self::HostPath { .. } => "volumes.host_path",
            Self::SandboxPath { .. } => "volumes.sandbox_path",
            Self::Secret { .. } => "volumes.secret",
            Self::DockerVolume { .. } => "volumes.docker_volume",
            Self::Image { .. } => "volumes.image",
            Self::Device { .. } => "volumes.device",
            Self::Unknown => "volumes",
        }
    }
}

/// A network that a container requests to join.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRequest {
    /// Name of the network; `None` for the network of the host.
    pub name: Option<String>,
    /// Requested addresses.
    pub addresses: Vec<String>,
    /// Ports to map from the host.
    pub port_mappings: Vec<PortMapping>,
    /// Labels of the request.
    pub labels: BTreeMap<String, String>,
}

/// A port of the host that is mapped into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// `tcp` or `udp`; `tcp` if not set.
    pub protocol: Option<String>,
}

/// Terminal of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tty {
    /// Initial size in columns; 0 if unknown.
    pub columns: u16,
    /// Initial size in rows; 0 if unknown.
    pub rows: u16,
}

/// Configuration of an image, as in OCI and Docker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Working directory.
    pub working_directory: Option<PathBuf>,
    /// User.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks its command to stop, by name or number: `SIGQUIT`, `3`.
    pub stop_signal: Option<String>,
    /// Paths in a container that its command writes data to, as the author of the image says.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
}

/// A root filesystem that the agent has assembled from an image, for a container or one of its volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageRoot {
    /// Directories of the host that must not be changed, topmost first, with the marks of overlayfs for what a layer
    /// removes. The container's changes belong into another one.
    Layers {
        /// The directories.
        directories: Vec<PathBuf>,
    },
    /// A directory of the host that only this container uses. It may be changed, and is removed when the container ends.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of the host that must not be changed, and that the container sees read-only.
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// The container of a call after `prepare`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerDetails {
    /// Its class.
    pub class: ContainerClass,
    /// Pid of its first process in the agent's pid namespace; `None` before it exists and after it exited.
    pub pid: Option<i32>,
    /// Numeric user of its command.
    pub uid: u32,
    /// Numeric group of its command.
    pub gid: u32,
    /// See [`Container::sandbox`].
    pub sandbox: PathBuf,
    /// See [`Container::scratch`].
    pub scratch: PathBuf,
    /// See [`Container::rootfs`]; `None` if it was assembled from an image.
    pub rootfs: Option<PathBuf>,
    /// Its cgroups.
    pub cgroups: Cgroups,
    /// Whether it has no cgroups of its own but shares those of its parent.
    pub shares_cgroups: bool,
    /// Its current resources.
    pub resources: Resources,
    /// Labels of the request.
    pub labels: BTreeMap<String, String>,
    /// How it ended, in `cleanup` and in the last `limitation`.
    pub termination: Option<TerminationDetails>,
    /// The plugin's state for the container.
    pub state: Json,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TerminationDetails {
    /// Raw wait status of its command; `None` if it was never started or the status is unknown.
    pub status: Option<i32>,
    /// Mesos reason, such as `REASON_CONTAINER_LIMITATION_MEMORY`; `None` if its command exited by itself.
    pub reason: Option<String>,
    /// The reason as a sentence.
    pub message: Option<String>,
}
