//! Plugin files on this machine.

use std::path::Path;
use std::sync::Arc;

use cofferdam_plugin_model::Manifest;

use crate::config::{AvailablePlugin, PluginIndex, Unusable};
use cofferdam_core::plugin::{self, Store, Trust};

/// Plugin files, inspected without running them.
pub(super) enum Files {
    /// Every file is read.
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

    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable> {
        match self {
            Self::Read => Ok(plugin::inspect_file(file)?),
            Self::Indexed(store) => {
                let candidate = store.examine(file, Trust::Index)?;
                let sha256 = candidate.sha256().to_owned();
                Ok((candidate.manifest, sha256))
            }
        }
    }
}
