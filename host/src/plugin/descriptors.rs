//! Descriptors that come with a plugin's answer: the one place that takes them over.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

/// Takes over the descriptors of an answer. A number that is not open, or is negative, is dropped here:
/// a plugin that answers it has a bug, and the caller misses a descriptor.
pub fn adopt(numbers: Vec<i32>) -> Vec<OwnedFd> {
    numbers
        .into_iter()
        // SAFETY: F_GETFD reads a flag and has no effect, whatever the number is.
        .filter(|&number| number > 2 && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0)
        // SAFETY: the number is open, and the ABI gives the descriptors of an answer to its receiver; each
        // answer passes here once.
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect()
}
