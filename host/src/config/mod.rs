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
mod isolation;
mod path;
mod raw;
mod resolve;
#[cfg(test)]
mod samples;
mod schema;
mod suggest;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;
use std::time::Duration;
use std::{fs, io};

use cofferdam_core::config::{AgentConfig, RegistryConfig};
use serde_json::Value as Json;

pub use defaults::{SCHEMA, socket as default_socket, text as default_text};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use environment::{AvailablePlugin, Environment, PluginIndex, Unusable};
pub use isolation::Isolation;
pub use schema::expected;
pub use suggest::{list, nearest_names};

/// Configuration of the `cofferdam agent` daemon, with all defaults filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// Configuration of the agent itself.
    pub agent: AgentConfig,
    /// Socket of the API.
    pub socket: PathBuf,
    /// Who may connect to it.
    pub socket_access: SocketAccess,
    /// Where the API is served over TCP as well.
    pub tcp: Option<TcpConfig>,
    /// Limits of the API.
    pub api: ApiLimits,
    /// Container of executors and tasks that have none: `ContainerInfo`, in the JSON of the API.
    pub default_container_info: Option<Json>,
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
    /// The predefined chain.
    pub isolation: Option<Isolation>,
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

/// Who may connect to the socket of the API, besides root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// Mode of its file: what its owner and its group may do. Others never have access.
    pub mode: u32,
    /// Group of its file; that of the agent if `None`.
    pub group: Option<u32>,
}

impl SocketAccess {
    /// The user of the agent.
    pub const PRIVATE: Self = Self { mode: 0o600, group: None };
}

/// The API over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConfig {
    /// A loopback address.
    pub address: SocketAddr,
    /// File with the token of the operator API.
    pub token_file: PathBuf,
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
        let text = read(file)?;
        resolve::resolve(Some(file), &text, overrides, environment, index)
    }

    /// Reads and validates only the registries of a file.
    ///
    /// # Errors
    /// [`ConfigError`], with all problems of that part, and of the types of all values.
    pub fn load_registry(file: &Path, environment: &Environment) -> Result<RegistryConfig, ConfigError> {
        let text = read(file)?;
        resolve::resolve_registry(Some(file), &text, environment)
    }

    /// The configuration without a file: the defaults, with a predefined chain.
    ///
    /// # Errors
    /// [`ConfigError`], with all problems.
    pub fn embedded(
        overrides: &Overrides,
        environment: &Environment,
        index: &dyn PluginIndex,
    ) -> Result<Self, ConfigError> {
        resolve::resolve(None, "", overrides, environment, index)
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let bytes = fs::read(file).map_err(|source| ConfigError::Read { path: file.to_owned(), source })?;
    Ok(String::from_utf8(bytes).map_err(|error| not_text(file, &error))?)
}

/// The first byte that is not UTF-8, in its line.
fn not_text(file: &Path, error: &FromUtf8Error) -> Diagnostics {
    let (at, byte) = (error.utf8_error().valid_up_to(), error.as_bytes());
    let value = byte.get(at).copied().unwrap_or_default();
    let message = format!("byte {} of the file, {value:#04x}, is not UTF-8", at + 1);
    let text = String::from_utf8_lossy(byte);
    let shown = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
    let diagnostic = Diagnostic::at(shown, message, "here").help("save the file in UTF-8");
    Diagnostics::new(Some(file), &text, vec![diagnostic])
}
