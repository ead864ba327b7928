//! Files of the workspace.

use std::fs;
use std::path::{Path, PathBuf};

/// The root directory of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// All files below a directory of the workspace, except build output and what git keeps.
pub fn files(directory: &str) -> Vec<PathBuf> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() {
                found.push(path);
            } else if path.file_name().is_none_or(|name| name != "target" && name != ".git") {
                collect(&path, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(directory), &mut found);
    assert!(!found.is_empty(), "there are no files in {directory}");
    found.sort();
    found
}

/// All Rust files below a directory of the workspace.
pub fn sources(directory: &str) -> Vec<PathBuf> {
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let found: Vec<_> = files(directory).into_iter().filter(is_rust).collect();
    assert!(!found.is_empty(), "there are no sources in {directory}");
    found
}

pub fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The path relative to the root of the workspace.
pub fn name(path: &Path) -> String {
    path.strip_prefix(root()).expect("a file of the workspace").display().to_string()
}
