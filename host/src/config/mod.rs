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
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use cofferdam_core::config::AgentConfig;
use cofferdam_plugin_model::Manifest;

pub use defaults::{SCHEMA, socket as default_socket, text as default_text};
pub use diagnostic::{Finding, Findings};
pub use schema::expected;
pub use surroundings::{AvailablePlugin, Environment, PluginIndex, Unusable};

/// The isolators of an agent that was told of none, as far as they are there: for root.
const CHAIN_OF_ROOT: [&str; 6] =
    ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem"];

/// The isolators of an agent that was told of none, as far as they are there: for other users.
const CHAIN_OF_OTHERS: [&str; 2] = ["posix/cpu", "posix/mem"];

/// The logger of an agent that was told of none.
const LOGGER: &str = "sandbox";

/// Configuration of the `cofferdam agent` daemon, with every default filled in.
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
    /// What is logged, in the syntax of `tracing`: `info,cofferdam_core::chain=debug`.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

/// What the command line says instead of the file: each field overrides the key of its name.
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
        environment: &Environment,
        index: &dyn PluginIndex,
    ) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(file).map_err(|source| ConfigError::Read { path: file.to_owned(), source })?;
        resolve::resolve(Some(file), &text, overrides, environment, index)
    }

    /// What an agent is that was given no file: the defaults, and the usual plugins as far as they are
    /// there. The logger must be there.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn embedded(
        overrides: &Overrides,
        environment: &Environment,
        index: &dyn PluginIndex,
    ) -> Result<Self, ConfigError> {
        let directory = overrides.plugin_dir.as_ref().unwrap_or(&environment.plugins);
        let available = index.in_directory(&environment.cwd.join(directory));
        let is_there = |name: &&str| available.iter().flat_map(|(_, entry)| entry).any(|m| m.name == **name);
        let chain: &[&str] = if environment.is_root() { &CHAIN_OF_ROOT } else { &CHAIN_OF_OTHERS };
        let chain =
            chain.iter().copied().filter(is_there).map(|name| format!("[[isolator]]\nname = {name:?}\n"));
        let text = chain.chain([format!("[logger]\nname = {LOGGER:?}\n")]).collect::<String>();
        let scanned = Scanned { available: Cell::new(Some(available)), index };
        resolve::resolve(None, &text, overrides, environment, &scanned)
    }
}

/// A folder that was scanned already: reading every plugin in it is the dearest part of a start.
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
