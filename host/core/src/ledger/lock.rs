//! What keeps a second agent out of a directory.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::LedgerError;

/// A directory that no other agent uses, for as long as this lives. The death of the agent ends it as well.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

impl Lock {
    /// Takes a directory, which must be there.
    ///
    /// # Errors
    /// [`LedgerError::InUse`] when another agent has it.
    pub fn take(directory: &Path) -> Result<Self, LedgerError> {
        let directory_error = |source| LedgerError::Directory { path: directory.to_owned(), source };
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("agent.lock"))
            .map_err(directory_error)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(LedgerError::InUse { path: directory.to_owned() }),
            Err((_, errno)) => Err(directory_error(errno.into())),
        }
    }
}
