//! What the agent was told to be.
//!
//! `raw` is what was written in the file; `resolve` makes of it what was meant, the one place that
//! touches the world, and reports everything it finds wrong at once. The rest of the house only ever sees
//! the types of this module.

mod chain;
mod defaults;
mod diagnostic;
mod raw;
mod resolve;
#[cfg(test)]
mod samples;
mod schema;
mod surroundings;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use cofferdam_plugin_model::{Manifest, Method};
use serde_json::Value as Json;

pub use defaults::{SCHEMA, socket as default_socket, text as default_text};
pub use diagnostic::{Finding, Findings};
pub use schema::expected;
pub use surroundings::{Catalogue, Offer, Surroundings, Unusable};

/// The isolators of an agent that was told of none, as far as they are there: for root.
const CHAIN_OF_ROOT: [&str; 6] =
    ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem"];

/// The isolators of an agent that was told of none, as far as they are there: for other users.
const CHAIN_OF_OTHERS: [&str; 2] = ["posix/cpu", "posix/mem"];

/// The logger of an agent that was told of none.
const LOGGER: &str = "sandbox";

/// What the agent was told to be, with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// What lives as long as the machine runs: ledger, loaded plugins, socket.
    pub runtime_dir: PathBuf,
    /// What outlives a reboot: sandboxes.
    pub work_dir: PathBuf,
    /// Where private copies of plugins are kept, if not in the work directory. Agents that live for one command
    /// share theirs.
    pub plugin_store: Option<PathBuf>,
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

/// What the command line says instead of the file: each field overrides the key of its name.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// See [`Config::runtime_dir`].
    pub runtime_dir: Option<PathBuf>,
    /// See [`Config::work_dir`].
    pub work_dir: Option<PathBuf>,
    /// See [`Config::socket`].
    pub socket: Option<PathBuf>,
    /// See [`Config::plugin_dir`].
    pub plugin_dir: Option<PathBuf>,
    /// See [`Config::cgroup_root`].
    pub cgroup_root: Option<PathBuf>,
    /// See [`Config::log`].
    pub log: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It makes no sense. Shown as a whole, over many lines.
    #[error(transparent)]
    Findings(#[from] Findings),
}

/// Who makes and ends processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LauncherKind {
    /// Namespaces and control groups; needs root.
    Linux,
    /// Plain processes; works for any user.
    Posix,
}

impl LauncherKind {
    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Posix => "posix",
        }
    }
}

/// A plugin in the chain.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    /// Its name.
    pub name: String,
    /// Its file. A configuration that was resolved always has it; `None` looks in [`Config::plugin_dir`].
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

impl Config {
    /// Reads a file and makes sense of it, plugins and their tables included. Nothing is loaded or made.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(
        file: &Path,
        overrides: &Overrides,
        around: &Surroundings,
        catalogue: &dyn Catalogue,
    ) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(file).map_err(|source| ConfigError::Read { path: file.to_owned(), source })?;
        resolve::resolve(Some(file), &text, overrides, around, catalogue)
    }

    /// What an agent is that was given no file: the defaults, and the usual plugins as far as they are
    /// there. The logger must be there.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn embedded(
        overrides: &Overrides,
        around: &Surroundings,
        catalogue: &dyn Catalogue,
    ) -> Result<Self, ConfigError> {
        let folder = overrides.plugin_dir.as_ref().unwrap_or(&around.plugins);
        let offered = catalogue.in_folder(&around.cwd.join(folder));
        let is_there = |name: &&str| offered.iter().flat_map(|(_, entry)| entry).any(|m| m.name == **name);
        let chain: &[&str] = if around.is_root() { &CHAIN_OF_ROOT } else { &CHAIN_OF_OTHERS };
        let chain =
            chain.iter().copied().filter(is_there).map(|name| format!("[[isolator]]\nname = {name:?}\n"));
        let text = chain.chain([format!("[logger]\nname = {LOGGER:?}\n")]).collect::<String>();
        let scanned = Scanned { offered: Cell::new(Some(offered)), catalogue };
        resolve::resolve(None, &text, overrides, around, &scanned)
    }
}

/// A folder that was scanned already: reading every plugin in it is the dearest part of a start.
struct Scanned<'a> {
    offered: Cell<Option<Vec<Offer>>>,
    catalogue: &'a dyn Catalogue,
}

impl Catalogue for Scanned<'_> {
    fn in_folder(&self, folder: &Path) -> Vec<Offer> {
        self.offered.take().unwrap_or_else(|| self.catalogue.in_folder(folder))
    }

    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable> {
        self.catalogue.at(file)
    }
}

impl PluginConfig {
    /// How long a method may take.
    #[must_use]
    pub fn deadline(&self, method: Method) -> Duration {
        self.deadlines.get(&method).copied().unwrap_or_else(|| default_deadline(method))
    }
}

/// How long a method may take in a [`PluginConfig`] that was made by hand: short where somebody waits for an
/// answer, long where real work is done. A resolved one has every deadline, from the file of defaults.
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
