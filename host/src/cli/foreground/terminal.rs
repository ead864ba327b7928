//! The terminal of this program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::signal::{SigSet, Signal};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::failure::Failure;

/// Name of the command of the process that restores the terminal.
const RESTORE: &str = "restore-terminal";

/// Rows and columns of the terminal at standard input; `None` if there is none.
pub(super) fn window_size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin().as_fd()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// The terminal at standard input passes on what is typed as it is, until this is dropped or restored.
pub(super) struct RawMode {
    saved: Termios,
    /// Restores the terminal if this process is killed. `None` if that has been done.
    guard: Mutex<Option<Child>>,
}

impl RawMode {
    pub(super) fn enter() -> Result<Self, Failure> {
        let failed = |source| Failure::system("cannot change the mode of the terminal", source);
        let saved = tcgetattr(io::stdin().as_fd()).map_err(|errno| failed(errno.into()))?;
        // It knows the mode before that is changed.
        let guard = start_guard().map_err(|source| {
            Failure::system("cannot start the process that restores the terminal", source)
        })?;
        let this = Self { saved, guard: Mutex::new(Some(guard)) };
        this.set().map_err(failed)?;
        Ok(this)
    }

    /// Sets the mode again, after a shell has changed it.
    pub(super) fn set(&self) -> io::Result<()> {
        if self.guard().is_none() {
            return Ok(());
        }
        let mut raw = self.saved.clone();
        raw.make_raw();
        Ok(tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &raw)?)
    }

    /// Restores the mode of before.
    pub(super) fn restore(&self) {
        if let Some(mut guard) = self.guard().take() {
            // Fails if the terminal has gone.
            let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.saved);
            drop(guard.kill().and_then(|()| guard.wait()));
        }
    }

    fn guard(&self) -> MutexGuard<'_, Option<Child>> {
        self.guard.lock()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.restore();
    }
}

fn start_guard() -> io::Result<Child> {
    let mut guard = Command::new("/proc/self/exe")
        .arg(RESTORE)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A signal to the group of this process does not end it.
        .process_group(0)
        .spawn()?;
    let mut ready = [0];
    let read = guard.stdout.as_mut().map_or(Ok(()), |stdout| stdout.read_exact(&mut ready));
    read.inspect_err(|_| drop(guard.kill().and_then(|()| guard.wait())))?;
    Ok(guard)
}

/// The process that restores the terminal at standard input when standard output is closed, as when the process that has
/// started it is killed.
pub(in crate::cli) fn restore() -> ExitCode {
    let restore = || -> io::Result<()> {
        // It is not in the foreground.
        let signals: SigSet =
            [Signal::SIGTTOU, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        signals.thread_block()?;
        let saved = tcgetattr(io::stdin().as_fd())?;
        let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        stdout.write_all(&[0])?;
        loop {
            let mut closed = [PollFd::new(&stdout, PollFlags::empty())];
            match poll(&mut closed, None) {
                Ok(_) if !closed[0].revents().is_empty() => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &saved)?)
    };
    if restore().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
