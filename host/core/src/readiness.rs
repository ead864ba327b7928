//! Registers descriptors with the tokio reactor; the only module that does.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cofferdam_linux::process::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often a descriptor is looked at that the kernel does not watch.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// A descriptor on which something can happen: it becomes readable, or, if it is an open file of a cgroup, changes.
#[derive(Debug)]
pub(crate) struct Awaitable(Place);

#[derive(Debug)]
enum Place {
    Watched {
        descriptor: AsyncFd<OwnedFd>,
        interest: Interest,
    },
    /// The user of the agent has as many watches as the kernel permits, of which containers of the same user may have taken
    /// any number.
    Unwatched(OwnedFd),
}

impl Awaitable {
    /// Registers a descriptor. Needs a tokio runtime.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let interest = if is_file(descriptor.as_fd()) { Interest::PRIORITY } else { Interest::READABLE };
        // SAFETY: an `OwnedFd` is open, always returns the same number, and is neither closed nor replaced before the
        // `AsyncFd` that owns it is dropped.
        match unsafe { AsyncFd::register_with_interest(descriptor, interest) } {
            Ok(descriptor) => Ok(Self(Place::Watched { descriptor, interest })),
            Err(refused) => match refused.into_parts() {
                (descriptor, error) if is_exhausted(&error) => {
                    tracing::warn!(
                        "the kernel watches no more descriptors for this user (fs.epoll.max_user_watches), checking one \
                         periodically instead"
                    );
                    Ok(Self(Place::Unwatched(descriptor)))
                }
                (_, error) => Err(error),
            },
        }
    }

    /// Waits until something happens. Fails when the runtime shuts down.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        match &self.0 {
            Place::Watched { descriptor, interest } => descriptor.ready(*interest).await?.clear_ready(),
            // Something may have happened that nobody has read, so not without a pause.
            Place::Unwatched(descriptor) => loop {
                tokio::time::sleep(INTERVAL).await;
                if has_happened(descriptor.as_fd()) {
                    break;
                }
            },
        }
        Ok(())
    }
}

impl AsFd for Awaitable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Place::Watched { descriptor, .. } => descriptor.get_ref().as_fd(),
            Place::Unwatched(descriptor) => descriptor.as_fd(),
        }
    }
}

/// Whether the kernel refuses to watch a descriptor only for now.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory)
}

/// Whether something has happened on a descriptor: see [`Awaitable`]. Needs no watch.
pub(crate) fn has_happened(descriptor: BorrowedFd<'_>) -> bool {
    let flags = if is_file(descriptor) { PollFlags::PRI } else { PollFlags::IN };
    let mut polled = [PollFd::from_borrowed_fd(descriptor, flags)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
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
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }
}
