//! A daemon that runs as long as it is needed.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;

/// How long it may take to listen.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A process that is asked to end when this is dropped, and is waited for.
pub struct Daemon(Child);

impl Daemon {
    /// Starts it, and waits until it listens on its socket.
    pub fn start(mut command: Command, socket: &Path, log: &Path) -> Outcome<Self> {
        let mut daemon = Self(command.spawn()?);
        let started = Instant::now();
        let failed = |why: String| {
            let log = fs::read_to_string(log).unwrap_or_default();
            format!("{command:?}: {why}: {}", log.lines().next_back().unwrap_or_default())
        };
        // None of them reports that it listens.
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = daemon.0.try_wait()? {
                return Err(failed(format!("it ended with {status}")).into());
            }
            if started.elapsed() > TIMEOUT {
                return Err(failed(format!("it does not listen on `{}`", socket.display())).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let asked = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        if let Err(error) = asked.map_err(Into::into).and_then(|()| self.0.wait()) {
            eprintln!("bench: a daemon did not end: {error}");
        }
    }
}
