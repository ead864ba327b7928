//! The terminal of this program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::signal::{SigSet, Signal, raise};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcdrain, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

use crate::cli::failure::Failure;

/// Name of the command of the process that restores the terminal.
const RESTORE: &str = "restore-terminal";

/// Option of it, for a program that fills the screen.
const SCREEN: &str = "--screen";

/// Selects the screen for programs that fill it, and hides the cursor.
const ENTER_SCREEN: &[u8] = b"\x1b[?1049h\x1b[?25l";

/// Shows the cursor, and selects the screen of before.
const LEAVE_SCREEN: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// Rows and columns of the terminal at standard input; `None` if there is none.
pub(in crate::cli) fn window_size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin().as_fd()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Whether this program is not in the background of the terminal at standard input. One that is not the controlling terminal of
/// its session has no background.
pub(super) fn is_in_foreground() -> bool {
    match tcgetpgrp(io::stdin().as_fd()) {
        Ok(group) => group == rustix::process::getpgrp(),
        Err(errno) => errno == Errno::NOTTY,
    }
}

/// Waits until this program is in the foreground of the terminal at standard input. In the background the kernel stops it, as any
/// program that changes the terminal: a shell says that the job is stopped, and continues it with `fg`.
///
/// # Errors
/// If nothing could continue it.
pub(super) fn wait_for_foreground() -> io::Result<()> {
    loop {
        // Changes nothing, and has the checks of what does.
        match tcdrain(io::stdin().as_fd()) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// The terminal at standard input passes on what is typed as it is, until this is dropped or restored.
pub(in crate::cli) struct RawMode {
    saved: Termios,
    /// Whether the screen is filled.
    has_screen: bool,
    /// Restores the terminal if this process is killed. `None` if that has been done.
    guard: Mutex<Option<Child>>,
}

impl RawMode {
    pub(super) fn enter() -> Result<Self, Failure> {
        Self::enter_with(false)
    }

    /// As [`Self::enter`], and what is written fills a screen of its own.
    pub(in crate::cli) fn enter_screen() -> Result<Self, Failure> {
        let this = Self::enter_with(true)?;
        write_screen(&mut io::stdout(), ENTER_SCREEN)
            .map_err(|source| Failure::system("cannot write to the terminal", source))?;
        Ok(this)
    }

    fn enter_with(has_screen: bool) -> Result<Self, Failure> {
        let failed = |source| Failure::system("cannot change the mode of the terminal", source);
        // The modes of now may be those of a shell that reads a line.
        wait_for_foreground().map_err(failed)?;
        let saved = tcgetattr(io::stdin().as_fd()).map_err(|errno| failed(errno.into()))?;
        // It knows the mode before that is changed.
        let guard = start_guard(has_screen).map_err(|source| {
            Failure::system("cannot start the process that restores the terminal", source)
        })?;
        let this = Self { saved, has_screen, guard: Mutex::new(Some(guard)) };
        this.set().map_err(failed)?;
        Ok(this)
    }

    /// Sets the mode again, after a shell has changed it, as soon as this program is in the foreground.
    pub(super) fn set(&self) -> io::Result<()> {
        if self.guard().is_none() {
            return Ok(());
        }
        wait_for_foreground()?;
        let mut raw = self.saved.clone();
        raw.make_raw();
        Ok(tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &raw)?)
    }

    /// Stops this program, as the signal for that does without a handler, with the terminal as it was before. Returns when it
    /// is in the foreground again, or at once if nothing could continue it.
    pub(super) fn stop(&self) -> io::Result<()> {
        if self.guard().is_some() && is_in_foreground() {
            tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.saved)?;
        }
        // There is a handler for SIGTSTP.
        raise(Signal::SIGTTOU)?;
        self.set()
    }

    /// Restores the mode of before.
    pub(in crate::cli) fn restore(&self) {
        if let Some(mut guard) = self.guard().take() {
            if self.has_screen {
                drop(write_screen(&mut io::stdout(), LEAVE_SCREEN));
            }
            if is_in_foreground() {
                // Fails if the terminal has gone.
                let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.saved);
                drop(guard.kill());
            } else {
                // This would stop here, where that process does not: it ends after it has restored the terminal.
                drop(guard.stdout.take());
            }
            drop(guard.wait());
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

fn write_screen(terminal: &mut impl Write, sequence: &[u8]) -> io::Result<()> {
    terminal.write_all(sequence)?;
    terminal.flush()
}

fn start_guard(has_screen: bool) -> io::Result<Child> {
    let mut guard = Command::new("/proc/self/exe")
        .arg(RESTORE)
        .args(has_screen.then_some(SCREEN))
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
pub(in crate::cli) fn restore(has_screen: bool) -> ExitCode {
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
        if has_screen {
            // It is open for writing as well, unless it was redirected.
            drop(write_screen(&mut File::from(io::stdin().as_fd().try_clone_to_owned()?), LEAVE_SCREEN));
        }
        Ok(tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &saved)?)
    };
    if restore().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
