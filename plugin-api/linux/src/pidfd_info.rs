//! The `PIDFD_GET_INFO` request: how a process ended, for others than its parent.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The first version of the kernel's `struct pidfd_info`.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// `_IOWR(0xff, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b;
/// The exit code is wanted, and was written.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// What the kernel tells of the end of a process.
pub(crate) enum WaitStatus {
    /// It has been reaped, and this is its wait status.
    Known(i32),
    /// It has not been reaped, or the kernel is older than Linux 6.15.
    NotYet,
    /// The kernel is older, or it was reaped before it was opened.
    Unknown,
}

/// How a process ended.
pub(crate) fn wait_status(pidfd: BorrowedFd<'_>) -> io::Result<WaitStatus> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel reads and writes one `struct pidfd_info` of the size that the request encodes.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if result == 0 {
        let known = info.mask & PIDFD_INFO_EXIT != 0;
        return Ok(if known { WaitStatus::Known(info.exit_code) } else { WaitStatus::NotYet });
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH)) => {
            Ok(WaitStatus::Unknown)
        }
        error => Err(error),
    }
}
