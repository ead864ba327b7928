//! System calls about the calling thread that have no safe wrapper.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;

const KCMP_FILES: libc::c_int = 2;
const KCMP_FS: libc::c_int = 3;

/// The calling thread and its process. Not asked of the kernel for each check, as they do not change.
#[derive(Clone, Copy)]
pub(super) struct Ids {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl Ids {
    pub(super) fn of_this_thread() -> Self {
        // SAFETY: both have no preconditions.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        Self { process, thread }
    }
}

/// Whether the thread has the directories (working directory, root) and the umask of its process.
pub(super) fn shares_directories(ids: Ids) -> bool {
    is_shared(ids, KCMP_FS).unwrap_or_else(|| {
        let id = |path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        id("/proc/thread-self/cwd") == id("/proc/self/cwd")
            && id("/proc/thread-self/root") == id("/proc/self/root")
    })
}

/// Whether the thread has the descriptors of its process.
pub(super) fn shares_descriptors(ids: Ids) -> bool {
    is_shared(ids, KCMP_FILES).unwrap_or(true)
}

/// Compares the thread with the first one of its process. `None` on kernels without kcmp(2).
fn is_shared(Ids { process, thread }: Ids, kind: libc::c_int) -> Option<bool> {
    // SAFETY: kcmp only compares kernel objects of two tasks; it takes no pointers.
    let compared = unsafe { libc::syscall(libc::SYS_kcmp, process, thread, kind, 0_u64, 0_u64) };
    if compared < 0 { None } else { Some(compared == 0) }
}

/// The user and group id for access to files.
pub(super) fn fs_ids() -> (u32, u32) {
    // SAFETY: with an id that cannot be set, both only return the current one; they have no memory effects.
    let (user, group) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    (user.cast_unsigned(), group.cast_unsigned())
}
