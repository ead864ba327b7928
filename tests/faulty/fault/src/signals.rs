//! Dispositions of signals.
#![allow(unsafe_code)]

use nix::sys::signal::{SigHandler, Signal, signal};

/// Ignores the signals that stop an agent.
pub fn ignore() -> nix::Result<()> {
    for stopping in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: no handler is set that could be called.
        unsafe { signal(stopping, SigHandler::SigIgn) }?;
    }
    Ok(())
}
