//! Parts of blobs of a registry. They stay when a download is interrupted, so that it can be resumed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::error::{Result, StoreError};

/// The part of a blob that was downloaded, which nobody else changes. Whether it is what its name says is not known before
/// all of it was read: it is not synchronized to disk.
#[derive(Debug)]
pub struct PartialBlob {
    path: PathBuf,
    file: Flock<File>,
}

impl PartialBlob {
    pub(super) fn lock(path: PathBuf, wait: impl FnOnce()) -> Result<Self> {
        let failed = |source| StoreError::Path { path: path.clone(), source };
        let open = || options().create(true).truncate(false).open(&path);
        let mut wait = Some(wait);
        loop {
            let file = match Flock::lock(open().map_err(failed)?, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                    if let Some(wait) = wait.take() {
                        wait();
                    }
                    let locked = Flock::lock(file, FlockArg::LockExclusive);
                    locked.map_err(|(_, errno)| failed(errno.into()))?
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // Whoever had it before has removed it when it was complete.
            if is_at(&file, &path).map_err(failed)? {
                return Ok(Self { path, file });
            }
        }
    }

    /// One that exists and that nobody else has.
    pub(super) fn try_lock(path: PathBuf) -> Result<Option<Self>> {
        let failed = |source| StoreError::Path { path: path.clone(), source };
        let file = match options().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) if is_at(&file, &path).map_err(failed)? => Ok(Some(Self { path, file })),
            Ok(_) | Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// How many bytes there are.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn len(&self) -> Result<u64> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|source| self.error(source))
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|source| self.error(source))
    }

    /// Reads bytes at an offset. Returns how many.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// Discards what is there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn clear(&self) -> Result<()> {
        self.file.set_len(0).map_err(|source| self.error(source))
    }

    /// Removes it, as it is not needed any more.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> StoreError {
        StoreError::Path { path: self.path.clone(), source }
    }
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Whether a file is still the one with this path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    let file = file.metadata()?;
    Ok((found.dev(), found.ino()) == (file.dev(), file.ino()))
}
