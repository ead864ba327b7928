//! Signals as a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that an executor handles, which are blocked.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

/// The signals that an executor handles.
const MAX_PENDING: usize = 2;

/// Signals that have come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// A child may have ended.
    pub(crate) child: bool,
    /// The executor is asked to end.
    pub(crate) terminate: bool,
}

impl Signals {
    pub(crate) fn block() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.add(Signal::SIGTERM);
        mask.thread_block()?;
        Ok(Self(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Those that have come since the last call.
    pub(crate) fn read(&self) -> io::Result<Received> {
        let mut received = Received::default();
        // Each is pending once at most; whoever sends more is answered with the next call.
        for _ in 0..MAX_PENDING {
            let Some(signal) = self.0.read_signal()? else { break };
            received.child |= signal.ssi_signo == Signal::SIGCHLD as u32;
            received.terminate |= signal.ssi_signo == Signal::SIGTERM as u32;
        }
        Ok(received)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
