//! A descriptor table for one thread.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Gives the calling thread a descriptor table of its own, in which only the standard streams and `kept` are open, and
/// blocks all signals, as a handler may use descriptors of the process. Returns the thread's own `kept`. What the thread opens
/// from now on takes no place in the table of the process, and is closed when the thread ends.
///
/// # Safety
/// Nothing on this thread owns or borrows a descriptor, and from now on the thread runs only code that uses none of the process:
/// their numbers mean others here. So it must not log, wake a task, or call a plugin or the agent.
pub unsafe fn enter(kept: RawFd) -> io::Result<OwnedFd> {
    if kept < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream cannot be kept"));
    }
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set, and the old one is not wanted.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut())
    };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    // SAFETY: the caller sees to it that the copies of descriptors are not used.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for (first, last) in [(3, kept - 1), (kept + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: these are copies that nothing refers to.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    // SAFETY: it is open in this table, in which nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(kept) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    #[test]
    fn the_thread_has_only_what_it_keeps_and_the_process_keeps_the_rest() {
        let (file, other) =
            (std::fs::File::open("/dev/null").unwrap(), std::fs::File::open("/dev/zero").unwrap());
        let (kept, other_number) = (file.as_raw_fd(), other.as_raw_fd());
        let open = std::thread::spawn(move || {
            // SAFETY: the thread uses no descriptor of the process.
            let kept = unsafe { super::enter(kept) }.unwrap();
            let entries = std::fs::read_dir("/proc/thread-self/fd").unwrap();
            let open: Vec<i32> =
                entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
            assert!(open.contains(&kept.as_raw_fd()));
            open
        });
        let open = open.join().unwrap();
        // And the one of the listing.
        assert!(open.iter().filter(|&&number| number > 2).count() <= 2, "{open:?}");
        rustix::fs::fstat(&file).unwrap();
        assert_eq!(other.as_raw_fd(), other_number);
        rustix::fs::fstat(&other).unwrap();
    }
}
