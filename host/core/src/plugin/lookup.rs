//! The plugin files among which configured plugins are looked up.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::store::Store;
use crate::config::PluginConfig;
use crate::error_chain;

/// Plugin files of a directory, by plugin name.
pub struct PluginIndex<'a> {
    directory: &'a Path,
    files: BTreeMap<String, Vec<PathBuf>>,
}

/// Why there is no file for a configured plugin.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The plugin directory cannot be read.
    #[error("cannot look for plugins in `{path}`; set `plugin_dir`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No file contains the plugin.
    #[error(
        "there is no plugin `{name}` in `{directory}` ({origin}); put its `.so` there, or set its `path`"
    )]
    Missing {
        /// The plugin.
        name: String,
        /// The plugin directory.
        directory: PathBuf,
        /// Where it is configured.
        origin: String,
    },
    /// Several files contain it.
    #[error(
        "there are several files with plugin `{name}`: {}; remove all but one, or set `path` ({origin})",
        .files.iter().map(|file| format!("`{}`", file.display())).collect::<Vec<_>>().join(", ")
    )]
    Ambiguous {
        /// The plugin.
        name: String,
        /// The files.
        files: Vec<PathBuf>,
        /// Where it is configured.
        origin: String,
    },
}

impl<'a> PluginIndex<'a> {
    /// Reads the manifests in a plugin directory, if any of the plugins is looked up by name. Unsuitable files are
    /// skipped here; they are an error when a plugin's `path` names them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read<'c>(
        store: &Store,
        directory: &'a Path,
        mut plugins: impl Iterator<Item = &'c PluginConfig>,
    ) -> Result<Self, LookupError> {
        let mut files = BTreeMap::<String, Vec<PathBuf>>::new();
        if plugins.any(|plugin| plugin.path.is_none()) {
            let found = store
                .find(directory)
                .map_err(|source| LookupError::Directory { path: directory.to_owned(), source })?;
            for (path, manifest) in found {
                match manifest {
                    Ok(manifest) => files.entry(manifest.name).or_default().push(path),
                    Err(error) => tracing::warn!("plugin file skipped: {}", error_chain::describe(&error)),
                }
            }
        }
        Ok(Self { directory, files })
    }

    /// The file of a configured plugin.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn locate(&self, plugin: &PluginConfig) -> Result<PathBuf, LookupError> {
        if let Some(path) = &plugin.path {
            return Ok(self.directory.join(path));
        }
        let (name, origin) = (plugin.name.clone(), plugin.origin.clone());
        match self.files.get(&plugin.name).map(Vec::as_slice) {
            Some([file]) => Ok(file.clone()),
            Some(files) if !files.is_empty() => {
                Err(LookupError::Ambiguous { name, files: files.to_vec(), origin })
            }
            _ => Err(LookupError::Missing { name, directory: self.directory.to_owned(), origin }),
        }
    }
}
