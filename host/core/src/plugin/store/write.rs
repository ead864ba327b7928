//! Atomic replacement of files in the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Prefix of the names of files that are being written.
const TEMPORARY: &str = ".new-";

/// Minimum age of abandoned files. Writing takes much less time, so older files were left by killed processes.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Writes a file with this name and mode. Readers get either the old file or the new one, even after a power failure.
pub(super) fn replace(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    remove_abandoned(directory);
    // The name is unique within a pid namespace. If a process of another one uses it, the next number is tried.
    let (temporary, mut file) = loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = directory.join(format!("{TEMPORARY}{}-{count}", process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(file) => break (temporary, file),
        }
    };
    write_synced(&mut file, bytes)
        .and_then(|()| fs::rename(&temporary, directory.join(name)))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn write_synced(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_old = || entry.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY)
            && is_old().is_ok_and(|age| age > ABANDONED)
        {
            drop(fs::remove_file(entry.path()));
        }
    }
}
