//! Registries of commands that pull images.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::config::{Config, Environment};
use cofferdam_core::config::RegistryConfig;

/// The registries of a configuration file, or of the one of the agent if it exists; and the files with credentials, of which
/// the first that exists is used.
pub(super) fn load(
    file: Option<&Path>,
    environment: &Environment,
) -> Result<(RegistryConfig, Vec<PathBuf>), Failure> {
    let mut registry = match file {
        Some(file) => Config::load_registry(file, environment)?,
        None if environment.config_file.exists() => {
            Config::load_registry(&environment.config_file, environment)?
        }
        None => RegistryConfig::default(),
    };
    let credentials = match registry.credentials.take() {
        Some(file) => vec![file],
        None => environment.credentials.clone(),
    };
    Ok((registry, credentials))
}
