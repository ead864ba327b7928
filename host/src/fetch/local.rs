//! Files of this machine.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

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

/// Time in which a file can be changed twice with the same times: that between two ticks of the kernel's clock.
const TICK: Duration = Duration::from_millis(20);

/// Waits until a change of the file will be seen by its times. There is nothing to wait for but for files that were changed
/// just now.
pub(super) fn settle(metadata: &Metadata) {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    std::thread::sleep(settles_in(metadata.ctime(), metadata.ctime_nsec(), since_epoch));
}

fn settles_in(seconds: i64, nanos: i64, since_epoch: Duration) -> Duration {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return Duration::ZERO;
    };
    // Some file systems have seconds only.
    let tick = if nanos == 0 { Duration::from_secs(1) + TICK } else { TICK };
    // A time that is yet to come is not that of a change from now on.
    match since_epoch.checked_sub(Duration::new(seconds, nanos)) {
        Some(age) => tick.saturating_sub(age),
        None => Duration::ZERO,
    }
}

/// What tells later whether a file has changed.
pub(super) fn version(metadata: &Metadata) -> Version {
    Version::Local {
        file: (metadata.dev(), metadata.ino()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_were_changed_just_now_settle() {
        let millis = Duration::from_millis;
        let now = Duration::new(1000, 10_000_000);
        assert_eq!(settles_in(1000, 1, now), millis(10) + Duration::from_nanos(1));
        assert_eq!(settles_in(999, 990_000_000, now), Duration::ZERO);
        assert_eq!(settles_in(999, 0, now), millis(10), "of a file system that has seconds");
        assert_eq!(settles_in(1000, 20_000_000, now), Duration::ZERO, "in the future");
        assert_eq!(settles_in(-1, 0, now), Duration::ZERO);
    }
}
