//! What a launch has run out of, and what to do: the kernel tells a number only.

use std::error::Error;
use std::io;

use rustix::io::Errno;

/// Explains an error that has an exhausted resource as its cause.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    // The last one is what the kernel said.
    let errno = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()).last()?;
    match Errno::from_raw_os_error(errno) {
        Errno::AGAIN => Some(
            "no more processes or threads can be created; end some, or raise the limit that is reached: `pids.max` of a \
             cgroup that the agent or the container is in (`TasksMax` of its service), `kernel.pid_max`, \
             `kernel.threads-max` or RLIMIT_NPROC",
        ),
        Errno::MFILE => Some(
            "the agent has as many open files as RLIMIT_NOFILE allows; raise its hard limit (`LimitNOFILE` of its service)",
        ),
        Errno::NFILE => Some("the host has as many open files as `fs.file-max` allows; raise that"),
        Errno::NOMEM => Some(
            "there is not enough memory; free some, or raise the memory limit of the cgroup that the agent or the \
             container is in",
        ),
        Errno::NOSPC | Errno::DQUOT => Some(
            "free blocks and inodes (`df`, `df -i`) in the file system that is named above or else in `runtime_dir` and \
             `work_dir`; without a file system, the limit is a number of namespaces (`user.max_*_namespaces`) or of mounts \
             (`fs.mount-max`)",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Failed(#[source] io::Error);

    #[test]
    fn what_is_exhausted_is_found_in_the_causes() {
        for (errno, word) in [
            (libc::EAGAIN, "pids.max"),
            (libc::EMFILE, "LimitNOFILE"),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOMEM, "memory"),
            (libc::ENOSPC, "df -i"),
            (libc::EDQUOT, "df -i"),
        ] {
            let error = Failed(io::Error::from_raw_os_error(errno));
            assert!(explain(&error).unwrap().contains(word), "{errno}");
        }
        assert_eq!(explain(&Failed(io::Error::from_raw_os_error(libc::ENOENT))), None);
        assert_eq!(explain(&Failed(io::Error::other("a word"))), None);
    }
}
