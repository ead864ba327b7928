//! The signals that stop an agent, read from a descriptor.
//!
//! A handler would be lost when a plugin in this process changes the disposition of the signal. One that is blocked in
//! all threads is delivered to the descriptor, whatever its disposition is. Threads inherit that from the first one; the
//! keeper and processes that the standard library starts begin with an empty mask.

use std::io;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::oneshot;

/// The first SIGTERM or SIGINT of the process.
pub(super) struct StopSignals(oneshot::Receiver<io::Result<&'static str>>);

impl StopSignals {
    /// Blocks them in this thread and those that it starts from now on, and starts one that waits. Called before there
    /// are other threads.
    pub(super) fn block() -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block()?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let (sender, receiver) = oneshot::channel();
        let wait = move || drop(sender.send(read(&descriptor)));
        thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
        Ok(Self(receiver))
    }

    /// Waits for the first one, which is not lost if it was sent before. Returns its name.
    pub(super) async fn first(self) -> io::Result<&'static str> {
        self.0.await.map_err(io::Error::other)?
    }
}

fn read(descriptor: &SignalFd) -> io::Result<&'static str> {
    loop {
        match descriptor.read_signal() {
            Ok(Some(signal)) => {
                let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
                return Ok(Signal::try_from(number).map_or("a signal", Signal::as_str));
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
