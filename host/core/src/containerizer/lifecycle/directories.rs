//! Removal of directories of containers, which nobody is trusted to have left as they were created.
//!
//! How large they are is up to the container. Where there is work for a container anyway, only so much of them is removed as
//! takes no time; the rest is left to threads that nothing else waits for. So as many containers as there are threads
//! cannot delay others by what they have written.

use std::path::Path;

use cofferdam_linux::tree::{self, RemoveError};

/// How many entries of a directory take no time, even on a slow disk.
const FEW: u64 = 256;

/// How much of a directory is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A few entries, on any thread.
    Few,
    /// Everything, on a thread for removals.
    All,
}

/// Removes a directory. A missing one, and one that was never determined, is no error. Blocks.
///
/// # Errors
/// If it is not removed. With [`Extent::Few`], it is unfinished if the directory is large.
pub(crate) fn remove_directory(path: &Path, extent: Extent) -> Result<(), RemoveError> {
    match extent {
        _ if path.as_os_str().is_empty() => Ok(()),
        Extent::Few => tree::remove_at_most(path, FEW),
        Extent::All => tree::remove(path),
    }
}
