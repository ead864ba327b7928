//! Descriptors that come with a call: the one place that turns numbers into borrowed descriptors.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

/// The descriptors of a call, borrowed for its length.
pub(crate) fn borrow<'a>(numbers: &'a [i32]) -> Vec<BorrowedFd<'a>> {
    numbers
        .iter()
        .filter(|&&number| number >= 0)
        // SAFETY: the ABI lends the descriptors for the length of the call, which `'a` does not outlive,
        // and a negative number, the one value that is never valid, was filtered out.
        .map(|&number| unsafe { BorrowedFd::borrow_raw(number) })
        .collect()
}
