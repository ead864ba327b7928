//! Descriptors of a plugin's reply: the one place that takes ownership of them.
//!
//! A plugin in this process can close or return any descriptor of the agent. What is refused here are mistakes that
//! can be recognised: standard streams, descriptors that are not open, the same one twice, and one that was only lent
//! to the call. That another number belongs to the plugin cannot be checked.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::FdFlags;

use crate::plugin::limits::MAX_DESCRIPTORS;

/// Takes ownership of the descriptors of a reply, all of them or none, and has no program inherit them. `lent` are
/// the descriptors of the request.
///
/// # Errors
/// What is wrong with the first that is refused. None is closed then: a plugin that lost count may have returned one
/// of the agent.
pub fn adopt(numbers: &[i32], lent: &[i32]) -> Result<Vec<OwnedFd>, String> {
    if numbers.len() > MAX_DESCRIPTORS {
        return Err(format!("{} descriptors; the limit is {MAX_DESCRIPTORS}", numbers.len()));
    }
    let wrong = numbers.iter().enumerate().find_map(|(index, &number)| match number {
        0..=2 => Some(format!("descriptor {number} is the agent's own")),
        _ if lent.contains(&number) => Some(format!("descriptor {number} was lent to the call")),
        _ if numbers[..index].contains(&number) => Some(format!("descriptor {number} is returned twice")),
        // SAFETY: F_GETFD reads a flag and has no effect, whatever the number is.
        _ if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 => {
            Some(format!("descriptor {number} is not open"))
        }
        _ => None,
    });
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let adopted: Vec<OwnedFd> = numbers
        .iter()
        // SAFETY: the numbers are open and different, and the ABI transfers the descriptors of a reply to its
        // receiver; each reply passes here once.
        .map(|&number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect();
    for descriptor in &adopted {
        rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC).map_err(|error| error.to_string())?;
    }
    Ok(adopted)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    fn open() -> i32 {
        File::open("/dev/null").unwrap().into_raw_fd()
    }

    #[test]
    fn the_descriptors_of_a_reply_are_not_inherited_by_programs() {
        let number = open();
        // SAFETY: the number was opened above, and is not used elsewhere.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }, 0);
        let adopted = adopt(&[number], &[]).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&adopted[0]).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn descriptors_that_cannot_be_the_replys_own_are_refused() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        assert_eq!(
            adopt(&[number, number], &[]).unwrap_err(),
            format!("descriptor {number} is returned twice")
        );
        assert_eq!(
            adopt(&[number], &[number]).unwrap_err(),
            format!("descriptor {number} was lent to the call")
        );
        assert_eq!(adopt(&[1], &[]).unwrap_err(), "descriptor 1 is the agent's own");
        assert_eq!(adopt(&[-1], &[]).unwrap_err(), "descriptor -1 is not open");
        assert_eq!(adopt(&[1_000_000], &[]).unwrap_err(), "descriptor 1000000 is not open");
        assert_eq!(adopt(&[number; 65], &[]).unwrap_err(), "65 descriptors; the limit is 64");
        // It is still open.
        file.metadata().unwrap();
    }
}
