//! System calls about the calling thread that have no safe wrapper.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;

const KCMP_FILES: libc::c_int = 2;
const KCMP_FS: libc::c_int = 3;

/// Whether the thread has the directories (working directory, root) and the umask of its process.
pub(super) fn shares_directories() -> bool {
    is_shared(KCMP_FS).unwrap_or_else(|| {
        let id = |path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        id("/proc/thread-self/cwd") == id("/proc/self/cwd")
            && id("/proc/thread-self/root") == id("/proc/self/root")
    })
}

/// Whether the thread has the descriptors of its process.
pub(super) fn shares_descriptors() -> bool {
    is_shared(KCMP_FILES).unwrap_or(true)
}

/// Compares the thread with the first one of its process. `None` on kernels without kcmp(2).
fn is_shared(kind: libc::c_int) -> Option<bool> {
    // SAFETY: kcmp only compares kernel objects of two tasks; it takes no pointers.
    let compared =
        unsafe { libc::syscall(libc::SYS_kcmp, libc::getpid(), libc::gettid(), kind, 0_u64, 0_u64) };
    if compared < 0 { None } else { Some(compared == 0) }
}

/// The user and group id for access to files.
pub(super) fn fs_ids() -> (u32, u32) {
    // SAFETY: with an id that cannot be set, both only return the current one; they have no memory effects.
    let (user, group) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    (user.cast_unsigned(), group.cast_unsigned())
}
