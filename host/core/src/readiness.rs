//! Registers descriptors with the tokio reactor; the only module that does.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cofferdam_linux::process::Process;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the readability of a descriptor awaitable.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always returns the same number, and is neither closed nor replaced before the
    // `AsyncFd` that owns it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(registered?)
}

/// Waits until a process has exited.
pub(crate) async fn exited(process: &Process) {
    let pidfd = process.as_fd().try_clone_to_owned().and_then(readable);
    match pidfd {
        // Readable once the process has exited, and from then on.
        Ok(pidfd) => drop(pidfd.readable().await),
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
