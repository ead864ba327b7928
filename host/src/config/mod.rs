//! What the agent was told to be.
//!
//! `raw` is what was written in the file; `resolve` makes of it what was meant, the one place that
//! touches the world, and reports everything it finds wrong at once. The rest of the house only ever sees
//! the types of this module.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_model::Method;
use serde_json::Value as Json;

/// What the agent was told to be, with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// What lives as long as the machine runs: ledger, loaded plugins, socket.
    pub runtime_dir: PathBuf,
    /// What outlives a reboot: sandboxes.
    pub work_dir: PathBuf,
    /// The socket of the API.
    pub socket: PathBuf,
    /// Where plugins are looked for by name.
    pub plugin_dir: PathBuf,
    /// Who makes and ends processes.
    pub launcher: LauncherKind,
    /// The control group below which all containers of this machine's agents are, relative to each
    /// hierarchy's mount point.
    pub cgroup_root: PathBuf,
    /// The isolators, in the order of the chain.
    pub isolators: Vec<PluginConfig>,
    /// The container logger; `None` sends all output to `/dev/null`.
    pub logger: Option<PluginConfig>,
    /// How long a container's processes may take to die before the destroy is reported as stuck.
    pub destroy_timeout: Duration,
    /// Limits of the API.
    pub api: ApiLimits,
    /// What is logged, in the syntax of `tracing`: `info,cofferdam::chain=debug`.
    pub log: String,
    /// Log lines as JSON.
    pub log_json: bool,
}

/// Who makes and ends processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LauncherKind {
    /// Namespaces and control groups; needs root.
    Linux,
    /// Plain processes; works for any user.
    Posix,
}

/// A plugin in the chain.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    /// Its name.
    pub name: String,
    /// Its file, if it is not to be found by name.
    pub path: Option<PathBuf>,
    /// The SHA-256 its file must have.
    pub sha256: Option<String>,
    /// Whether a launch fails when it does.
    pub policy: FailPolicy,
    /// How long its methods may take, where that differs from the default.
    pub deadlines: BTreeMap<Method, Duration>,
    /// Its own table.
    pub table: Json,
    /// Where it was written, for errors that are found later.
    pub place: Place,
}

/// Whether a launch fails when a plugin does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FailPolicy {
    /// It does.
    #[default]
    Required,
    /// The container runs without it, and says so.
    Optional,
}

/// A place in a configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The file; `None` for what was given otherwise.
    pub file: Option<PathBuf>,
    /// Its line, from 1; 0 for unknown.
    pub line: usize,
}

/// Limits of the API.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// The largest request body, in bytes.
    pub body: usize,
    /// How long a client may take to send a request, and a connection may be idle.
    pub idle: Duration,
}

impl PluginConfig {
    /// How long a method may take.
    #[must_use]
    pub fn deadline(&self, method: Method) -> Duration {
        self.deadlines.get(&method).copied().unwrap_or_else(|| default_deadline(method))
    }
}

/// How long a method may take if nothing else was said: short where somebody waits for an answer, long
/// where real work is done.
#[must_use]
pub fn default_deadline(method: Method) -> Duration {
    match method {
        Method::Usage | Method::Status | Method::Limitation | Method::Watch => Duration::from_secs(5),
        _ => Duration::from_secs(30),
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.file, self.line) {
            (Some(file), 0) => write!(f, "{}", file.display()),
            (Some(file), line) => write!(f, "{}:{line}", file.display()),
            (None, _) => f.write_str("the command line"),
        }
    }
}
