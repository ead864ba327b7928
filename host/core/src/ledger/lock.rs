//! Locks a directory against other agents.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::LedgerError;

/// An exclusive lock on a directory. Released on drop, and by the kernel when the agent ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

impl Lock {
    /// Locks an existing directory.
    ///
    /// # Errors
    /// [`LedgerError::InUse`] if another agent has locked it.
    pub(crate) fn take(directory: &Path) -> Result<Self, LedgerError> {
        let directory_error = |source| LedgerError::Directory { path: directory.to_owned(), source };
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // Not a named pipe, which has no reader.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(directory.join("agent.lock"))
            .map_err(directory_error)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(LedgerError::InUse { path: directory.to_owned() }),
            Err((_, errno)) => Err(directory_error(errno.into())),
        }
    }
}
