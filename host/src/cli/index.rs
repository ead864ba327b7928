//! The plugin files of this machine, as the configuration asks about them.

use std::path::Path;

use cofferdam_plugin_model::Manifest;

use crate::config::{AvailablePlugin, PluginIndex, Unusable};
use cofferdam_core::plugin;

/// Plugin files, looked at without running them.
pub(super) struct Files;

impl PluginIndex for Files {
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin> {
        // A folder that cannot be read offers nothing; the configuration reports one that is missing.
        let found = plugin::find(directory).unwrap_or_default().into_iter();
        found.map(|(file, manifest)| (file, manifest.map_err(Into::into))).collect()
    }

    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable> {
        plugin::inspect_file(file).map_err(Into::into)
    }
}
