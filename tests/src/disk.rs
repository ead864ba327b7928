//! File systems that are full.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What a file system can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Space for data.
    Blocks,
    /// Space for files.
    Inodes,
}

/// Uses up a resource of a file system, until this is dropped.
#[derive(Debug)]
pub struct Full(Vec<PathBuf>);

impl Full {
    /// Creates files in a directory until there is nothing left of a resource.
    ///
    /// # Panics
    /// If it fails for another reason.
    #[must_use]
    pub fn make(directory: &Path, resource: Resource) -> Self {
        Self::fill(directory, resource, ".fill")
    }

    /// Uses up what has become free since [`Full::make`].
    ///
    /// # Panics
    /// If it fails for another reason.
    #[must_use]
    pub fn make_more(directory: &Path, resource: Resource) -> Self {
        Self::fill(directory, resource, ".more")
    }

    fn fill(directory: &Path, resource: Resource, name: &str) -> Self {
        let mut files = Vec::new();
        loop {
            let path = directory.join(format!("{name}-{}", files.len()));
            let mut file = match File::create(&path) {
                Err(error) if error.kind() == ErrorKind::StorageFull && resource == Resource::Inodes => {
                    return Self(files);
                }
                file => file.expect("a file"),
            };
            files.push(path);
            if resource == Resource::Blocks {
                // The last bytes too.
                for chunk in [1 << 16, 1] {
                    while file.write_all(&vec![b'x'; chunk]).is_ok() {}
                }
                return Self(files);
            }
        }
    }
}

impl Full {
    /// Removes some of the files.
    ///
    /// # Panics
    /// If there are not as many, or they cannot be removed.
    pub fn free(&mut self, count: usize) {
        let kept = self.0.len().checked_sub(count).expect("as many files");
        self.0.drain(kept..).for_each(|path| fs::remove_file(path).expect("a file"));
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}
