//! Directories of containers.

use std::fs;
use std::io;
use std::path::Path;

use super::RecoverError;
use crate::model::ContainerId;

/// Whether there is a directory. A link to one is none.
pub(super) fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// The containers that have a directory in a directory, which may be missing. Everything else is ignored.
pub(super) fn ids_in(directory: &Path) -> Result<Vec<ContainerId>, RecoverError> {
    let directory_error = |source| RecoverError::Directory { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(directory_error)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(directory_error)?;
        let name = entry.file_name();
        // Created by the file system, and no id.
        if name == "lost+found" {
            continue;
        }
        let id = name.to_str().and_then(|name| ContainerId::parse(name).ok());
        match id.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            Some(id) => ids.push(id),
            None => tracing::warn!("ignored `{}`: it is not of a container", entry.path().display()),
        }
    }
    Ok(ids)
}
