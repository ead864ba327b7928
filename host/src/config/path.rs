//! Paths.

use std::path::{Component, Path, PathBuf};

/// Removes `.`, and `..` where that does not change the meaning of the path.
pub(super) fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            // The parent of a symbolic link's target is not the parent of the link.
            Component::ParentDir if !normal.is_symlink() && normal.file_name().is_some() => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
