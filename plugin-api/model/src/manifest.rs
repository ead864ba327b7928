//! The manifest of a plugin file, which is read before any of its code runs.

use std::fmt;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// Features of the plugin API that this version supports. An agent refuses to load a plugin that requires any other, or
/// [`LINUX_LAUNCHER`] if it has another launcher.
pub const FEATURES: &[&str] = &[
    "agent.companions",
    "agent.process",
    "container.bounding_capabilities",
    "container.image_root",
    LOG_TARGETS,
    "container.sandbox_path",
    "container.volume_images",
    "launch.bind_descriptor",
    "launch.capabilities",
    "launch.enter_descriptor",
    "launch.environment_append",
    "launch.hooks",
    "launch.hostname",
    "launch.labels",
    "launch.read_only_root",
    "launch.sandbox_path",
    "launch.seccomp",
    "launch.secret_environment",
    "launch.session_keyring",
    "launch.stop_signal",
    "launch.sysctls",
    "launch.time_offsets",
    "launch.user",
    "launch.write_file",
    LINUX_LAUNCHER,
    "limitation.container",
    "logger.files",
    "logger.times",
    "method.removed",
    "service.leases",
    "service.output",
    "service.state",
];

/// The feature that a logger requires which passes output on to other loggers: [`Container::log_targets`](crate::Container::log_targets).
pub const LOG_TARGETS: &str = "container.log_targets";

/// The feature of an agent whose launcher is `linux`: containers have cgroups, and can have namespaces and mounts of their own.
pub const LINUX_LAUNCHER: &str = "launcher.linux";

/// Parts of a launch request that take effect only if a plugin handles them. The agent refuses a container that
/// requests one which none of its plugins handles.
pub const REQUEST_PARTS: &[&str] = &[
    "capabilities",
    "command.replaces_cmd",
    "hostname",
    "image",
    "ipc_mode",
    "networks",
    "rlimits",
    "seccomp",
    "secrets",
    "shm_size",
    "volumes.device",
    "volumes.docker_volume",
    "volumes.host_path",
    "volumes.image",
    "volumes.sandbox_path",
    "volumes.secret",
];

/// The manifest of a plugin file: an ELF note, which is read without running plugin code.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Kind of the plugin.
    pub kind: Kind,
    /// Name of the plugin: `area/name`, or `name`.
    pub name: String,
    /// Version of the plugin.
    pub version: Version,
    /// Version of the plugin API that it was built against.
    pub api: Version,
    /// ABI of its entry point: `abi_stable-0.11`.
    pub abi: String,
    /// Encoding of its payloads: `json`.
    pub encoding: String,
    /// Panic strategy that it was compiled with: `unwind` or `abort`. With `abort`, its first panic would end the
    /// agent, so the agent refuses to load it.
    pub panic: String,
    /// Description of the plugin's package, for operators.
    #[serde(default)]
    pub description: String,
    /// The methods it implements; the others are never called.
    #[serde(default)]
    pub methods: Methods,
    /// Whether it takes part in nested containers.
    #[serde(default)]
    pub nesting: bool,
    /// Whether it takes part in containers without executor or task.
    #[serde(default)]
    pub standalone: bool,
    /// Plugins that must be in the chain as well.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Plugins that must not be in the chain as well.
    #[serde(default)]
    pub conflicts: Vec<String>,
    /// Plugins that, if in the chain, must come earlier.
    #[serde(default)]
    pub after: Vec<String>,
    /// Plugins that, if in the chain, must come later.
    #[serde(default)]
    pub before: Vec<String>,
    /// Features of the agent that it requires, see [`FEATURES`].
    #[serde(default)]
    pub features: Vec<String>,
    /// Parts of a launch request that it handles, see [`REQUEST_PARTS`].
    #[serde(default)]
    pub handles: Vec<String>,
    /// JSON schema of its table in the configuration file.
    #[serde(default)]
    pub config: Json,
}

/// Kind of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// Isolates containers.
    Isolator,
    /// Receives the output of containers.
    Logger,
    /// Is called at points of a launch and of the life of tasks.
    Hook,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Isolator => "isolator",
            Self::Logger => "logger",
            Self::Hook => "hook",
            Self::Unknown => "plugin of an unknown kind",
        })
    }
}

/// A method of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Method {
    /// Creates the instance. A root function of the plugin file, but counted and given a timeout as the methods are.
    Create,
    /// Takes over the existing containers.
    Recover,
    /// Prepares the isolation of a container.
    Prepare,
    /// Isolates its first process, before the command runs.
    Isolate,
    /// Returns the descriptor that reports a limitation.
    Watch,
    /// Returns the limitation that was reached.
    Limitation,
    /// Changes its resources.
    Update,
    /// Returns its resource usage.
    Usage,
    /// Returns its status.
    Status,
    /// Undoes `prepare`.
    Cleanup,
    /// Called after the container was removed with its sandbox.
    Removed,
    /// Returns the environment of an executor.
    ExecutorEnvironment,
    /// Returns environment variables of a container of an engine.
    PreLaunchDocker,
    /// Called when the files of a container were fetched, and its image was pulled.
    PostFetch,
    /// Decorates a status update of a task.
    TaskStatus,
    /// Called when an executor has ended, and the updates of its tasks were acknowledged.
    RemoveExecutor,
}

impl Method {
    /// All methods: those of isolators and loggers, then those of hooks, in the order in which they are first called.
    pub const ALL: [Self; 16] = [
        Self::Create,
        Self::Recover,
        Self::Prepare,
        Self::Isolate,
        Self::Watch,
        Self::Limitation,
        Self::Update,
        Self::Usage,
        Self::Status,
        Self::Cleanup,
        Self::Removed,
        Self::ExecutorEnvironment,
        Self::PreLaunchDocker,
        Self::PostFetch,
        Self::TaskStatus,
        Self::RemoveExecutor,
    ];

    /// The name in code, configuration, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Recover => "recover",
            Self::Prepare => "prepare",
            Self::Isolate => "isolate",
            Self::Watch => "watch",
            Self::Limitation => "limitation",
            Self::Update => "update",
            Self::Usage => "usage",
            Self::Status => "status",
            Self::Cleanup => "cleanup",
            Self::Removed => "removed",
            Self::ExecutorEnvironment => "executor_environment",
            Self::PreLaunchDocker => "pre_launch_docker",
            Self::PostFetch => "post_fetch",
            Self::TaskStatus => "task_status",
            Self::RemoveExecutor => "remove_executor",
        }
    }

    /// The method of that name; `None` if there is none.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of methods, encoded as an array of their names. Names that this version does not know are dropped, because
/// those methods are never called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct Methods(u32);

impl Methods {
    /// Adds a method.
    #[must_use]
    pub const fn with(self, method: Method) -> Self {
        Self(self.0 | 1 << method as u32)
    }

    /// Whether `method` is among them.
    #[must_use]
    pub const fn contains(self, method: Method) -> bool {
        self.0 & 1 << method as u32 != 0
    }

    /// The methods of the set, in the order of [`Method::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |&method| self.contains(method))
    }
}

impl From<Vec<String>> for Methods {
    fn from(names: Vec<String>) -> Self {
        names.iter().filter_map(|name| Method::from_name(name)).fold(Self::default(), Self::with)
    }
}

impl From<Methods> for Vec<String> {
    fn from(methods: Methods) -> Self {
        methods.iter().map(|method| method.name().to_owned()).collect()
    }
}
