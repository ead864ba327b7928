//! Files of this machine.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cofferdam_core::fetcher::Version;
use cofferdam_linux::foreign::{self, OpenError};
use rustix::fs::{Mode, OFlags};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalError {
    #[error("cannot open it")]
    Open { source: io::Error },
    #[error("it is not a regular file")]
    NotRegular,
}

/// Opens a file of this machine. A pipe or a device is not opened, which could block or have an effect.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), LocalError> {
    let failed = |source| LocalError::Open { source };
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = found.map_err(|errno| failed(errno.into()))?;
    let file = foreign::open_regular(&found).map_err(|error| match error {
        OpenError::System(source) => failed(source),
        _ => LocalError::NotRegular,
    })?;
    let metadata = file.metadata().map_err(failed)?;
    Ok((file, metadata))
}

/// What tells later whether a file has changed.
pub(super) fn version(metadata: &Metadata) -> Version {
    Version::Local {
        file: (metadata.dev(), metadata.ino()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}
