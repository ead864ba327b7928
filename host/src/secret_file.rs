//! Files with secrets, which nobody but their owner may have access to.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

/// Why such a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a regular file.
    #[error("`{path}` is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is another user's.
    #[error("`{path}` is of user {uid}; it must be of root or of user {own}")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// The user of this process.
        own: u32,
    },
    /// Others have access to it.
    #[error("others than its owner have access to `{path}`: its mode is {mode:04o}; run `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Reads at most so many bytes of a file. A symbolic link is followed, and what it leads to is checked.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, SecretFileError> {
    let failed = |source: io::Error| SecretFileError::Read { path: path.to_owned(), source };
    // Opening a pipe would wait for whoever writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty()).map_err(|error| failed(error.into()))?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SecretFileError::NotAFile { path: path.to_owned() });
    }
    let (uid, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if uid != 0 && uid != own {
        return Err(SecretFileError::Owner { path: path.to_owned(), uid, own });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Mode { path: path.to_owned(), mode });
    }
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}
