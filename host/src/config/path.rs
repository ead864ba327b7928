//! Normalization of paths.

use std::path::{Component, Path, PathBuf};

/// Removes `.`, and those `..` whose removal does not change the meaning of the path.
pub(super) fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            // After a symbolic link, `..` is the parent of its target.
            Component::ParentDir if !normal.is_symlink() && normal.file_name().is_some() => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
