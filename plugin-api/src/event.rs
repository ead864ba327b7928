//! Descriptors that become readable when an event occurs, for `watch`.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

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
/// [`Cgroup::watch`](crate::Cgroup::watch). Returns whether there was anything to read.
///
/// # Errors
/// Those of read(2).
pub fn drain(descriptor: impl AsFd) -> io::Result<bool> {
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
