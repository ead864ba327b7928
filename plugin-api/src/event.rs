//! Descriptors that become readable when an event occurs, for `watch`.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::{Errno, pread};

/// A descriptor that becomes readable when [`Event::signal`] is called, for plugins that monitor containers on a thread
/// of their own: `watch` returns [`Event::descriptor`], the thread calls `signal`, and `limitation` calls [`drain`].
///
/// ```
/// use cofferdam_plugin_api::{Event, event};
///
/// let event = Event::new()?;
/// assert!(!event::drain(&event)?);
/// event.signal()?;
/// assert!(event::drain(&event)?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Creates an event that is not signalled: an eventfd(2), non-blocking and close-on-exec.
    ///
    /// # Errors
    /// If the process has too many descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes all descriptors of this event readable, until one of them is drained. Never blocks.
    ///
    /// # Errors
    /// Those of write(2), except `EAGAIN`: the counter is at its maximum, so the event is readable.
    pub fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Duplicates the descriptor of this event, for a reply to the agent.
    ///
    /// # Errors
    /// If the process has too many descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Event> for OwnedFd {
    fn from(event: Event) -> Self {
        event.0
    }
}

/// Reads a non-blocking descriptor until it is empty, such as that of an [`Event`] or of
/// [`Cgroup::watch`](crate::Cgroup::watch). Returns whether there was anything to read, or, of an open file of a cgroup,
/// whether its content has changed since the last call.
///
/// # Errors
/// Those of read(2).
pub fn drain(descriptor: impl AsFd) -> io::Result<bool> {
    if is_cgroup_file(descriptor.as_fd()) {
        return has_changed(descriptor.as_fd());
    }
    let mut file = File::from(descriptor.as_fd().try_clone_to_owned()?);
    let (mut buffer, mut happened) = ([0; 4096], false);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(happened),
            Ok(_) => happened = true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(happened),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a descriptor is an open file of a v2 cgroup, which polls `POLLPRI` when its content has changed.
pub(crate) fn is_cgroup_file(descriptor: BorrowedFd<'_>) -> bool {
    /// From `linux/magic.h`.
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    let is_file = fstat(descriptor).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    #[expect(clippy::cast_sign_loss, reason = "a magic number")]
    let is_in_cgroup = || fstatfs(descriptor).is_ok_and(|found| found.f_type as u64 == CGROUP2_SUPER_MAGIC);
    is_file && is_in_cgroup()
}

/// Whether the content of a file of a cgroup has changed since the last call, or since it was opened.
fn has_changed(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::PRI)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    // The file was read when this is over.
    match pread(descriptor, &mut [0; 4096], 0) {
        // The cgroup was removed.
        Err(Errno::NODEV) => Ok(true),
        other => Ok(other.map(|_| polled[0].revents().contains(PollFlags::PRI))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_reaches_every_descriptor_and_is_read_once() {
        let event = Event::new().unwrap();
        let given_away = event.descriptor().unwrap();
        assert!(!drain(&given_away).unwrap());
        event.signal().unwrap();
        event.signal().unwrap();
        assert!(drain(&given_away).unwrap());
        assert!(!drain(&event).unwrap());
    }

    #[test]
    fn a_full_counter_is_no_error() {
        let event = Event::new().unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal().unwrap();
        assert!(drain(&event).unwrap());
    }
}
