//! Private copies of plugin files, by hash.
//!
//! What is loaded is never the file that operators put down: overwriting a loaded library in place kills
//! the process that has it mapped, and opening a replaced file again silently gives the old code. A copy
//! whose name is its content has neither trouble, and older ones stay for a way back.
//!
//! The copies are in the work directory: `/run` is commonly mounted `noexec`, and a way back must survive
//! a reboot.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::preflight::Candidate;

/// The folder with the copies.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// Why a copy could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep a private copy of plugin `{name}` at `{path}`")]
pub struct StoreError {
    /// The plugin.
    pub name: String,
    /// The copy.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

impl Store {
    /// The store in a folder, which is made when it is needed.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The path of a private copy of a candidate, made if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written.
    pub fn keep(&self, candidate: &Candidate) -> Result<PathBuf, StoreError> {
        let path = self.directory.join(format!("{}.so", candidate.sha256));
        let store_error =
            |source| StoreError { name: candidate.manifest.name.clone(), path: path.clone(), source };
        // The name is the content, and nobody else writes here: what is there, and whole, is right.
        if fs::metadata(&path).is_ok_and(|there| there.len() == candidate.bytes.len() as u64) {
            return Ok(path);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(store_error)?;
        let temporary = self.directory.join(format!(".{}.{}", candidate.sha256, std::process::id()));
        write_once(&temporary, &candidate.bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .inspect_err(|_| drop(fs::remove_file(&temporary)))
            .map_err(store_error)?;
        Ok(path)
    }
}

fn write_once(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // One that is left over from a crash of a process with our number.
    drop(fs::remove_file(path));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o500).open(path)?;
    file.write_all(bytes)?;
    // A way back must survive the machine's death as well.
    file.sync_all()
}
