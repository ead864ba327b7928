//! Plugin files on this machine.

use std::path::Path;

use cofferdam_plugin_model::Manifest;

use crate::config::{AvailablePlugin, PluginIndex, Unusable};
use cofferdam_core::plugin;

/// Reads the manifests of plugin files without loading them.
pub(super) struct Files;

impl PluginIndex for Files {
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin> {
        // The configuration reports a missing directory.
        let found = plugin::find(directory).unwrap_or_default().into_iter();
        found.map(|(file, manifest)| (file, manifest.map_err(Into::into))).collect()
    }

    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable> {
        plugin::inspect_file(file).map_err(Into::into)
    }
}
