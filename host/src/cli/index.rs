//! Plugin files on this machine.

use std::path::Path;
use std::sync::Arc;

use cofferdam_plugin_model::Manifest;

use crate::config::{AvailablePlugin, PluginIndex, Unusable};
use cofferdam_core::plugin::{self, Store, Trust};

/// Plugin files, inspected without running them.
pub(super) enum Files {
    /// Of every file, what the answer depends on is read.
    Read,
    /// Files that are in the index of a plugin store are not read.
    Indexed(Arc<Store>),
}

impl PluginIndex for Files {
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin> {
        let found = match self {
            Self::Read => plugin::find(directory),
            Self::Indexed(store) => store.find(directory),
        };
        // A directory that cannot be read is treated as empty. A missing one is reported by the configuration.
        let found = found.unwrap_or_default().into_iter();
        found.map(|(file, manifest)| (file, manifest.map_err(Into::into))).collect()
    }

    fn manifest(&self, file: &Path) -> Result<Manifest, Unusable> {
        Ok(match self {
            Self::Read => plugin::read_manifest(file)?,
            Self::Indexed(store) => store.examine(file, Trust::Index)?.manifest,
        })
    }

    fn sha256(&self, file: &Path) -> Result<String, Unusable> {
        Ok(match self {
            Self::Read => plugin::inspect_file(file)?.1,
            Self::Indexed(store) => store.examine(file, Trust::Index)?.sha256().to_owned(),
        })
    }
}
