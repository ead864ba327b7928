//! Descriptors that come with a plugin's answer: the one place that takes them over.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

/// Takes over the descriptors of an answer, all of them or none.
///
/// # Errors
/// What is wrong with the first that cannot be one.
pub fn adopt(numbers: &[i32]) -> Result<Vec<OwnedFd>, String> {
    let wrong = numbers.iter().find_map(|&number| match number {
        0..=2 => Some(format!("descriptor {number} is the agent's own")),
        // SAFETY: F_GETFD reads a flag and has no effect, whatever the number is.
        _ if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 => {
            Some(format!("descriptor {number} is not open"))
        }
        _ => None,
    });
    // A plugin that answers such a number has lost count; to close its other ones might close ours.
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    // SAFETY: the numbers are open, and the ABI gives the descriptors of an answer to its receiver; each
    // answer passes here once.
    Ok(numbers.iter().map(|&number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}
