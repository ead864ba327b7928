//! The system's clock as one process sees it, which a test sets. That of the machine stays as it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::compiled_library;

/// A clock that is ahead of that of the machine.
#[derive(Debug)]
pub struct Clock {
    path: PathBuf,
    file: File,
}

impl Clock {
    /// One that shows the time of the machine.
    ///
    /// # Panics
    /// If its file cannot be created.
    pub fn new(directory: &Path) -> Self {
        let path = directory.join("clock");
        let file = File::create(&path).expect("a file");
        let clock = Self { path, file };
        clock.set(0);
        clock
    }

    /// Makes a command see it, whose program is linked with the C library.
    pub fn show(&self, command: &mut Command) {
        command.env("LD_PRELOAD", compiled_library("clock", include_str!("clock.c")));
        command.env("TEST_CLOCK", &self.path);
    }

    /// Sets it, so many seconds ahead of that of the machine.
    ///
    /// # Panics
    /// If its file cannot be written.
    pub fn set(&self, ahead: i64) {
        self.file.write_all_at(&ahead.to_ne_bytes(), 0).expect("space for a number");
    }
}
