//! A named pipe, which plugins and programs wait for.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

/// A named pipe that a plugin reads until it is dropped.
pub struct Pipe(PathBuf);

impl Pipe {
    /// Creates it.
    ///
    /// # Panics
    /// If it cannot be created.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a named pipe");
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pipe {
    /// Unblocks all readers: opening a pipe for reading and writing does not block, and closing it is an end of file. Later ones
    /// find an empty file.
    fn drop(&mut self) {
        let opened = OpenOptions::new().read(true).write(true).open(&self.0);
        let empty = self.0.with_extension("empty");
        drop(fs::write(&empty, "").and_then(|()| fs::rename(&empty, &self.0)));
        drop(opened);
    }
}
