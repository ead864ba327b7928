//! The configuration file of the daemon.
//!
//! ```text
//! text ─▶ schema   structure and types of all values; reports what does not match
//!    └──▶ raw      the values that match, each with its position
//!           └────▶ resolve, chain   defaults, paths, environment and plugins ─▶ Config
//! ```
//!
//! All problems of a file are reported at once, each at its position (`diagnostic`).

mod chain;
mod defaults;
mod diagnostic;
mod environment;
mod path;
mod raw;
mod resolve;
#[cfg(test)]
mod samples;
mod schema;
mod suggest;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use cofferdam_core::config::AgentConfig;
use cofferdam_plugin_model::Manifest;

pub use defaults::{SCHEMA, socket as default_socket, text as default_text};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use environment::{AvailablePlugin, Environment, PluginIndex, Unusable};
pub use schema::expected;

/// Default isolators for root, of which only available ones are used.
const DEFAULT_CHAIN_ROOT: [&str; 6] =
    ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem"];

/// Default isolators for other users, of which only available ones are used.
const DEFAULT_CHAIN_USER: [&str; 2] = ["posix/cpu", "posix/mem"];

/// Default logger.
const DEFAULT_LOGGER: &str = "sandbox";

/// Configuration of the `cofferdam agent` daemon, with all defaults filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// Configuration of the agent itself.
    pub agent: AgentConfig,
    /// Socket of the API.
    pub socket: PathBuf,
    /// Limits of the API.
    pub api: ApiLimits,
    /// Log filter, in the syntax of `tracing`: `info,cofferdam_core::chain=debug`.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

/// Settings of the command line. Each overrides the setting of the same name in the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// See [`AgentConfig::runtime_dir`].
    pub runtime_dir: Option<PathBuf>,
    /// See [`AgentConfig::work_dir`].
    pub work_dir: Option<PathBuf>,
    /// See [`Config::socket`].
    pub socket: Option<PathBuf>,
    /// See [`AgentConfig::plugin_dir`].
    pub plugin_dir: Option<PathBuf>,
    /// See [`AgentConfig::cgroup_root`].
    pub cgroup_root: Option<PathBuf>,
    /// See [`Config::log`].
    pub log: Option<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is invalid. The text has several lines.
    #[error(transparent)]
    Invalid(#[from] Diagnostics),
}

/// Limits of the API.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// Maximum size of a request body, in bytes.
    pub max_body: usize,
    /// Timeout for receiving a request, and for idle connections.
    pub idle_timeout: Duration,
}

impl Config {
    /// Reads and validates a file, including the settings of its plugins. Does not load plugins.
    ///
    /// # Errors
    /// [`ConfigError`], with all problems of the file.
    pub fn load(
        file: &Path,
        overrides: &Overrides,
        environment: &Environment,
        index: &dyn PluginIndex,
    ) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(file).map_err(|source| ConfigError::Read { path: file.to_owned(), source })?;
        resolve::resolve(Some(file), &text, overrides, environment, index)
    }

    /// The configuration without a file: the defaults, with those default isolators that are available and the
    /// default logger, which is required.
    ///
    /// # Errors
    /// [`ConfigError`], with all problems.
    pub fn embedded(
        overrides: &Overrides,
        environment: &Environment,
        index: &dyn PluginIndex,
    ) -> Result<Self, ConfigError> {
        let directory = overrides.plugin_dir.as_ref().unwrap_or(&environment.plugin_dir);
        let available = index.in_directory(&environment.cwd.join(directory));
        let is_available =
            |name: &&str| available.iter().flat_map(|(_, entry)| entry).any(|found| found.name == **name);
        let isolators: &[&str] =
            if environment.is_root() { &DEFAULT_CHAIN_ROOT } else { &DEFAULT_CHAIN_USER };
        let isolators = isolators.iter().copied().filter(is_available);
        let isolators = isolators.map(|name| format!("[[isolator]]\nname = {name:?}\n"));
        let logger = format!("[logger]\nname = {DEFAULT_LOGGER:?}\n");
        let text = isolators.chain([logger]).collect::<String>();
        let scanned = Scanned { available: Cell::new(Some(available)), index };
        resolve::resolve(None, &text, overrides, environment, &scanned)
    }
}

/// An index that returns the result of the first scan once, because scanning the plugin directory is the slowest part
/// of a start.
struct Scanned<'a> {
    available: Cell<Option<Vec<AvailablePlugin>>>,
    index: &'a dyn PluginIndex,
}

impl PluginIndex for Scanned<'_> {
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin> {
        self.available.take().unwrap_or_else(|| self.index.in_directory(directory))
    }

    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable> {
        self.index.at(file)
    }
}
