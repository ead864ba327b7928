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

/// The wait status of a process that has been reaped, since Linux 6.15. `None` if the kernel cannot tell.
pub(crate) fn wait_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel reads and writes one `struct pidfd_info` of the size that the request encodes.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if result == 0 {
        return Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code));
    }
    match io::Error::last_os_error() {
        // The kernel is older, or the process has not been reaped.
        error if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH)) => Ok(None),
        error => Err(error),
    }
}
