//! Registers descriptors with the tokio reactor; the only module that does.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cofferdam_linux::process::Process;
use rustix::fs::{FileType, fstat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor on which something can happen: it becomes readable, or, if it is an open file of a cgroup, changes.
#[derive(Debug)]
pub(crate) struct Awaitable {
    descriptor: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl Awaitable {
    /// Registers a descriptor. Needs a tokio runtime.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let interest = if is_file(descriptor.as_fd()) { Interest::PRIORITY } else { Interest::READABLE };
        // SAFETY: an `OwnedFd` is open, always returns the same number, and is neither closed nor replaced before the
        // `AsyncFd` that owns it is dropped.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, interest) }?;
        Ok(Self { descriptor, interest })
    }

    /// Waits until something happens. Fails when the runtime shuts down.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        self.descriptor.ready(self.interest).await?.clear_ready();
        Ok(())
    }
}

impl AsFd for Awaitable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.get_ref().as_fd()
    }
}

/// Whether a descriptor is an open file, which is always readable. Those of cgroups, and no others, can be polled: they
/// have "urgent data" when their content has changed.
pub(crate) fn is_file(descriptor: BorrowedFd<'_>) -> bool {
    fstat(descriptor).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}

/// Waits until a process has exited.
pub(crate) async fn exited(process: &Process) {
    match process.as_fd().try_clone_to_owned().and_then(Awaitable::new) {
        Ok(pidfd) => drop(pidfd.ready().await),
        Err(error) => {
            tracing::error!(
                pid = process.pid(),
                "cannot poll a pidfd, checking periodically instead: {error}"
            );
            while !process.has_ended().unwrap_or(true) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
