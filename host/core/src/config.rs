//! The configuration of an [`Agent`](crate::agent::Agent), as values. Reading it from a file, and checking it
//! against the plugins' schemas, is up to whoever embeds the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_plugin_model::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::engine::{Timeouts, Transport};
use crate::provisioner::{Backend, ImageName, Puller};

/// Default of [`AgentConfig::keeper_timeout`].
pub const DEFAULT_KEEPER_TIMEOUT: Duration = Duration::from_secs(10);

/// Default of [`AgentConfig::cgroup_max_descendants`]. A container with an init system of its own has some hundred.
pub const DEFAULT_CGROUP_MAX_DESCENDANTS: u64 = 1024;

/// Default of [`AgentConfig::cgroup_max_depth`]: as many levels as nested containers can have.
pub const DEFAULT_CGROUP_MAX_DEPTH: u64 = 32;

/// Configuration of an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Directory for state that is only valid until the next reboot: the ledger and its lock. Created if missing;
    /// used by one agent at a time.
    pub runtime_dir: PathBuf,
    /// Directory for state that survives a reboot: sandboxes and plugin state. Created if missing; used by one
    /// agent at a time.
    pub work_dir: PathBuf,
    /// Directory for private copies of plugin files; `plugins` in [`Self::work_dir`] if `None`. May be shared by
    /// several agents.
    pub plugin_store: Option<PathBuf>,
    /// Directory for images; `images` in [`Self::work_dir`] if `None`. May be shared by several agents.
    pub image_store: Option<PathBuf>,
    /// Directories of this machine that clients may launch images from, which are files or directories there. Absolute.
    pub local_images: Vec<PathBuf>,
    /// How root file systems are assembled from images.
    pub image_backend: Backend,
    /// Registries that images are pulled from.
    pub registry: RegistryConfig,
    /// Pulls images that the store does not have. Without one, containers can only be launched from images that it has.
    pub puller: Option<Arc<dyn Puller>>,
    /// Whether containers may be launched from images.
    pub images: bool,
    /// When images are removed automatically.
    pub image_gc: ImageGcConfig,
    /// Directory in which plugins without a [`PluginConfig::path`] are looked up by name.
    pub plugin_dir: PathBuf,
    /// Containerizers, in the order in which they are tried for a launch. Each at most once.
    pub containerizers: Vec<ContainerizerConfig>,
    /// How container processes are created and killed.
    pub launcher: LauncherKind,
    /// Parent cgroup of all containers, relative to the mount point of each hierarchy.
    pub cgroup_root: PathBuf,
    /// How many cgroups there may be below that of a container, on v2: those of nested containers, and those that its
    /// processes create.
    pub cgroup_max_descendants: u64,
    /// How many of them in one another.
    pub cgroup_max_depth: u64,
    /// Isolators in chain order.
    pub isolators: Vec<PluginConfig>,
    /// The container logger; without one, output goes to `/dev/null`.
    pub logger: Option<PluginConfig>,
    /// Hooks, in the order in which they are called.
    pub hooks: Vec<PluginConfig>,
    /// Loggers that [`Self::logger`] passes output on to, if it is one that does.
    pub log_targets: Vec<PluginConfig>,
    /// How long the setup of a container may take before its processes are killed and the launch fails. Fetching, calls
    /// of plugins, and hooks have timeouts of their own.
    pub launch_timeout: Duration,
    /// How long the processes of a container may take to exit after SIGKILL before the destroy is reported as
    /// stuck.
    pub destroy_timeout: Duration,
    /// Command line that runs the fetcher (`cofferdam fetch`). Without one, requests with URIs are refused.
    pub fetcher: Option<Vec<PathBuf>>,
    /// Limits of fetching for one container.
    pub fetch: FetchLimits,
    /// File with credentials for the servers that files are fetched from, in the format of netrc.
    pub fetch_credentials: Option<PathBuf>,
    /// The cache of fetched files. Without one, files are fetched as if none was to be cached.
    pub fetch_cache: Option<FetchCacheConfig>,
    /// Size in bytes of the tmpfs for what ends with containers. `None`: it is in [`Self::work_dir`].
    pub scratch_memory: Option<u64>,
    /// Whether containers are killed when the agent ends, however it ends. Otherwise they keep running.
    pub kill_containers_with_agent: bool,
    /// How long a keeper may take to answer. It waits for nothing, so one that takes longer was stopped; another one is
    /// started then.
    pub keeper_timeout: Duration,
    /// `RLIMIT_NOFILE` (soft, hard) of containers for which no plugin sets one; 1,024 and at most 524,288 if `None`.
    pub container_nofile: Option<(u64, u64)>,
    /// Executors and tasks.
    pub executors: ExecutorConfig,
}

impl AgentConfig {
    /// Default configuration of an agent without plugins that keeps everything in one directory.
    #[must_use]
    pub fn new(directory: &Path, launcher: LauncherKind) -> Self {
        Self {
            runtime_dir: directory.join("run"),
            work_dir: directory.join("work"),
            plugin_store: None,
            image_store: None,
            local_images: Vec::new(),
            image_backend: Backend::default(),
            registry: RegistryConfig::default(),
            puller: None,
            images: true,
            image_gc: ImageGcConfig::default(),
            plugin_dir: directory.join("plugins"),
            containerizers: vec![ContainerizerConfig::Mesos],
            launcher,
            cgroup_root: "cofferdam".into(),
            cgroup_max_descendants: DEFAULT_CGROUP_MAX_DESCENDANTS,
            cgroup_max_depth: DEFAULT_CGROUP_MAX_DEPTH,
            isolators: Vec::new(),
            logger: None,
            hooks: Vec::new(),
            log_targets: Vec::new(),
            launch_timeout: Duration::from_secs(60),
            destroy_timeout: Duration::from_secs(60),
            fetcher: None,
            fetch: FetchLimits::default(),
            fetch_credentials: None,
            fetch_cache: None,
            scratch_memory: None,
            kill_containers_with_agent: false,
            keeper_timeout: DEFAULT_KEEPER_TIMEOUT,
            container_nofile: None,
            executors: ExecutorConfig::default(),
        }
    }
}

/// Configuration of executors and tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// Address of the executor API, for executors that do not use its socket.
    pub endpoint: Option<SocketAddr>,
    /// Directory of the executor program of this project; without one, tasks need an executor of their own.
    pub launcher_dir: Option<PathBuf>,
    /// How long an executor may take to subscribe after its launch was accepted.
    pub registration_timeout: Duration,
    /// How long an executor may take to subscribe again after the agent was restarted.
    pub reregistration_timeout: Duration,
    /// How long an executor may take to shut down, unless its framework says otherwise.
    pub shutdown_grace_period: Duration,
    /// How long an executor waits for the next agent before it shuts down.
    pub recovery_timeout: Duration,
    /// Whether executors run as the users that their frameworks name, instead of that of the agent.
    pub switch_user: bool,
    /// Environment variables of all executors. Those of their frameworks take precedence.
    pub environment_variables: BTreeMap<String, String>,
    /// How many executors are remembered, with their sandboxes, after they have ended and the updates of their tasks were
    /// acknowledged.
    pub max_completed_executors: usize,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            launcher_dir: None,
            registration_timeout: Duration::from_secs(60),
            reregistration_timeout: Duration::from_secs(15),
            shutdown_grace_period: Duration::from_secs(5),
            recovery_timeout: Duration::from_secs(15 * 60),
            switch_user: true,
            environment_variables: BTreeMap::new(),
            max_completed_executors: 150,
        }
    }
}

/// Limits of fetching for one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchLimits {
    /// Maximum number of bytes, counting archives and their contents.
    pub bytes: u64,
    /// Maximum number of files, links and directories, and of the members of an archive.
    pub files: u64,
    /// How many times the size of an archive its contents may have, unless they are small.
    pub ratio: u64,
    /// How many redirects of a server are followed.
    pub redirects: u64,
    /// Hosts that files may be fetched from: names, `*.name` for the names below one, addresses. Any if empty.
    pub hosts: Vec<String>,
    /// Timeout of name resolution, of connecting, and of each read and write.
    pub stall: Duration,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            bytes: 16 << 30,
            files: 1_000_000,
            ratio: 200,
            redirects: 10,
            hosts: Vec::new(),
            stall: Duration::from_secs(60),
        }
    }
}

/// The cache of fetched files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchCacheConfig {
    /// Its directory, which it has for itself.
    pub directory: PathBuf,
    /// Maximum size in bytes of the files in it.
    pub size: u64,
}

/// Registries that images are pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryConfig {
    /// Registries that are asked before another one for its images, by its name. All are hosts with an optional port.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries without TLS.
    pub insecure: Vec<String>,
    /// Hosts that registries may redirect to, whatever their addresses: names, `*.name` for the names below one, addresses.
    pub redirect_hosts: Vec<String>,
    /// File with credentials, as `docker login` writes it.
    pub credentials: Option<PathBuf>,
    /// Timeout of name resolution, of connecting, and of each read and write.
    pub stall: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            redirect_hosts: Vec::new(),
            credentials: None,
            stall: Duration::from_secs(60),
        }
    }
}

/// When images are removed automatically.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGcConfig {
    /// Percent of the file system of the store that have to be available. If there are less, the images that were not used
    /// for the longest time are removed. 0: never.
    pub headroom_percent: u64,
    /// How often that is checked.
    pub check_interval: Duration,
    /// Images that are not removed, also not by [`Agent::prune_images`](crate::agent::Agent::prune_images).
    pub excluded: Vec<ImageName>,
}

impl Default for ImageGcConfig {
    fn default() -> Self {
        Self { headroom_percent: 0, check_interval: Duration::from_secs(3600), excluded: Vec::new() }
    }
}

/// A containerizer.
#[derive(Debug, Clone)]
pub enum ContainerizerConfig {
    /// Containers of processes, by the plugin chain and a launcher.
    Mesos,
    /// Containers of a container engine.
    Docker(DockerConfig),
}

impl ContainerizerConfig {
    /// Name in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mesos => "mesos",
            Self::Docker(_) => "docker",
        }
    }
}

/// Configuration of the docker containerizer.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// How requests reach the engine.
    pub engine: Arc<dyn Transport>,
    /// How long calls of the engine may take.
    pub timeouts: Timeouts,
    /// Path of the sandbox in containers.
    pub sandbox_directory: PathBuf,
    /// How long a container that has ended stays in the engine.
    pub remove_delay: Duration,
    /// Whether containers of this agent without a record are removed from the engine.
    pub kill_orphans: bool,
    /// File with credentials for registries, as `docker login` writes it.
    pub credentials: Option<PathBuf>,
    /// The image of the container of the engine that the agent itself is in. `None`: it is not in one.
    pub mesos_image: Option<String>,
}

impl DockerConfig {
    /// Default configuration for an engine.
    #[must_use]
    pub fn new(engine: Arc<dyn Transport>) -> Self {
        Self {
            engine,
            timeouts: Timeouts {
                call: Duration::from_secs(30),
                launch: Duration::from_secs(120),
                pull_stall: Duration::from_secs(600),
            },
            sandbox_directory: "/mnt/mesos/sandbox".into(),
            remove_delay: Duration::from_secs(6 * 3600),
            kill_orphans: true,
            credentials: None,
            mesos_image: None,
        }
    }
}

/// How container processes are created and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LauncherKind {
    /// Namespaces and cgroups; requires root.
    Linux,
    /// Plain processes; works for any user.
    Posix,
}

impl LauncherKind {
    /// The launcher that provides the most isolation for the user of this process.
    #[must_use]
    pub fn for_current_user() -> Self {
        if nix::unistd::geteuid().is_root() { Self::Linux } else { Self::Posix }
    }

    /// Name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Posix => "posix",
        }
    }
}

/// Configuration of one plugin.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    /// Name of the plugin: `area/name`, or `name`.
    pub name: String,
    /// Plugin file, absolute or relative to [`AgentConfig::plugin_dir`]; looked up by name if `None`.
    pub path: Option<PathBuf>,
    /// SHA-256 that the file must have, in hexadecimal.
    pub sha256: Option<String>,
    /// What happens to a launch when the plugin fails.
    pub policy: FailPolicy,
    /// Timeouts of methods, where they differ from [`default_timeout`].
    pub timeouts: BTreeMap<Method, Duration>,
    /// The plugin's own configuration, passed to it on creation.
    pub table: Json,
    /// Where this entry comes from (`agent.toml:12`), for error messages.
    pub origin: String,
}

/// What happens to a launch when a plugin fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FailPolicy {
    /// The launch fails.
    #[default]
    Required,
    /// The container runs without the plugin and its status says so.
    Optional,
}

impl PluginConfig {
    /// An entry with default settings.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            path: None,
            sha256: None,
            policy: FailPolicy::default(),
            timeouts: BTreeMap::new(),
            table: Json::Null,
            origin: "the embedding program".into(),
        }
    }

    /// Timeout of a method.
    #[must_use]
    pub fn timeout(&self, method: Method) -> Duration {
        self.timeouts.get(&method).copied().unwrap_or_else(|| default_timeout(method))
    }
}

/// Timeout of a method unless configured otherwise: short where a client waits for the answer, long where the
/// plugin does real work.
#[must_use]
pub fn default_timeout(method: Method) -> Duration {
    match method {
        Method::Usage | Method::Status | Method::Limitation | Method::Watch | Method::TaskStatus => {
            Duration::from_secs(5)
        }
        _ => Duration::from_secs(30),
    }
}
