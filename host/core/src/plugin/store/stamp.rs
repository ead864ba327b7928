//! Detects whether a file has changed, without reading it.
//!
//! The kernel sets a file's change time (`ctime`) to its own clock at every change of content or attributes, and no
//! system call sets it to anything else. So a file whose device, inode, size, mtime and ctime are the same as when it
//! was read still has the same content, provided that [`Stamp::is_reliable`] held at that time.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::lease::{Writers, writers};
use rustix::fs::fstatfs;
use serde::{Deserialize, Serialize};

/// A file changed less than this long ago may be changed again without getting another ctime: the kernel takes ctime
/// from a clock that advances every 1 to 10 ms.
const MIN_AGE_SECONDS: i64 = 1;

/// File systems (`f_type` of statfs) whose ctime is set by this kernel. Network and user-space file systems are not in
/// the list: their servers set it, with their own clocks.
const LOCAL: [u64; 8] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x0102_1994, // tmpfs
    0x794c_7630, // overlay
];

/// Metadata of a file that changes whenever its content changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    pub size: u64,
    modified: Time,
    changed: Time,
}

/// Time since the Unix epoch, by the system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Time {
    seconds: i64,
    nanos: i64,
}

impl Time {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos().into(),
        }
    }
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: Time { seconds: metadata.mtime(), nanos: metadata.mtime_nsec() },
            changed: Time { seconds: metadata.ctime(), nanos: metadata.ctime_nsec() },
        }
    }

    /// Whether every later change of the file changes its stamp. `now` is the time before the file was read.
    pub(super) fn is_reliable(&self, file: &File, now: Time) -> io::Result<bool> {
        // A time in whole seconds comes from a file system with a coarse clock, or from an image with normalized times,
        // as in reproducible builds. The next version of such a file may have the same times.
        let precise = self.changed.nanos != 0;
        // A time in the future means that the clock has been set back.
        let settled = (MIN_AGE_SECONDS..).contains(&now.seconds.saturating_sub(self.changed.seconds + 1));
        if !precise || !settled {
            return Ok(false);
        }
        #[expect(clippy::cast_sign_loss, reason = "a bit pattern")]
        let local = LOCAL.contains(&(fstatfs(file)?.f_type as u64 & 0xffff_ffff));
        // Later writes to a page that a process has mapped and already written to do not update the times.
        Ok(local && writers(file)? != Writers::Present)
    }
}
