//! Reads the input of this program, and passes it on to a container.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::termios::isatty;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::detach::DetachKeys;
use super::session::InputSink;
use super::terminal::{RawMode, window_size};
use crate::cli::failure::Failure;

/// Bytes that are read at a time.
const CHUNK: usize = 4096;

/// Parts of input that wait to be passed on.
const WAITING: usize = 2;

/// Ctrl-D, which ends the input of a program that reads lines from a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// Input for a container.
pub(in crate::cli) struct Input {
    /// Where it goes.
    sink: InputSink,
    /// Whether the container has a terminal.
    has_terminal: bool,
    /// Whether standard input is read; otherwise only the size of the terminal is passed on.
    reads: bool,
    /// The mode of the terminal, if the container has one.
    pub(super) terminal: Option<Arc<RawMode>>,
    /// What detaches from the container.
    detach: Option<DetachKeys>,
}

/// Why no more input is passed on.
pub(super) enum End {
    /// It has ended.
    Input,
    /// The user has typed the keys for it.
    Detached,
    /// The terminal has gone.
    HungUp,
    /// The agent does not accept it.
    Refused(Failure),
}

/// Whether there may be anything to read from standard input: it is not closed or `/dev/null`.
pub(super) fn is_open() -> bool {
    const NULL: (u32, u32) = (1, 3);
    let stdin = io::stdin();
    let Ok(stat) = fstat(stdin.as_fd()) else { return false };
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != NULL
}

/// Whether standard input is a terminal.
pub(super) fn is_terminal() -> bool {
    isatty(io::stdin().as_fd())
}

/// A task that passes input on, aborted on drop.
pub(super) struct Passing(JoinHandle<End>);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Input {
    /// Input for a container. Enters the raw mode of the terminal at standard input if the container has one.
    pub(in crate::cli) fn new(
        sink: InputSink,
        has_terminal: bool,
        reads: bool,
        detach: Option<DetachKeys>,
    ) -> Result<Self, Failure> {
        let raw = has_terminal && reads && is_terminal();
        let terminal = raw.then(RawMode::enter).transpose()?.map(Arc::new);
        Ok(Self { sink, has_terminal, reads, detach: detach.filter(|_| terminal.is_some()), terminal })
    }

    pub(super) fn start(self) -> Passing {
        Passing(tokio::spawn(self.pass()))
    }

    async fn pass(mut self) -> End {
        let (sender, mut input) = mpsc::channel(WAITING);
        if self.reads {
            // It is left behind when the program ends.
            let reader = thread::Builder::new().name("input".to_owned()).spawn(move || read(&sender));
            if let Err(source) = reader {
                return End::Refused(Failure::system("cannot start a thread", source));
            }
        }
        let watched = |kind| self.terminal.as_ref().and_then(|_| signal(kind).ok());
        let mut resized = watched(SignalKind::window_change());
        let mut stopped = watched(SignalKind::from_raw(libc::SIGTSTP));
        let mut continued = watched(SignalKind::from_raw(libc::SIGCONT));
        if self.terminal.is_some() {
            self.resize().await;
        }
        let mut ended = !self.reads;
        if ended {
            // Has no effect on a terminal.
            self.sink.end().await;
        }
        loop {
            tokio::select! {
                data = input.recv(), if !ended => match data {
                    Some(data) => {
                        let (data, detached) = match &mut self.detach {
                            Some(keys) => keys.filter(&data),
                            None => (data, false),
                        };
                        if !data.is_empty() {
                            self.sink.write(data).await;
                        }
                        if detached {
                            return End::Detached;
                        }
                    }
                    // In raw mode, nothing that is typed ends it.
                    None if self.terminal.is_some() => return End::HungUp,
                    None => {
                        ended = true;
                        if self.has_terminal {
                            // What a user types at the end of input.
                            self.sink.write(vec![END_OF_TRANSMISSION]).await;
                        }
                        self.sink.end().await;
                    }
                },
                () = next(&mut resized) => self.resize().await,
                () = next(&mut stopped) => self.take_terminal(RawMode::stop).await,
                () = next(&mut continued) => self.take_terminal(RawMode::set).await,
                refused = self.sink.refused() => return match refused {
                    Some(failure) => End::Refused(failure),
                    None => End::Input,
                },
            }
        }
    }

    /// Enters the raw mode again, in a terminal that may have got another size meanwhile.
    async fn take_terminal(&mut self, enter: impl FnOnce(&RawMode) -> io::Result<()>) {
        if let Some(terminal) = &self.terminal {
            // Fails if the terminal has gone.
            drop(enter(terminal));
        }
        self.resize().await;
    }

    async fn resize(&mut self) {
        if let Some((rows, columns)) = window_size() {
            self.sink.resize(rows, columns).await;
        }
    }
}

/// Waits until no more input is passed on. Forever if there is none, or its end does not matter.
pub(super) async fn finished(passing: &mut Option<Passing>) -> End {
    let Some(Passing(task)) = passing else { return std::future::pending().await };
    let end = task.await.unwrap_or(End::Input);
    *passing = None;
    end
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Reads standard input up to its end, or as long as somebody wants it.
fn read(sender: &mpsc::Sender<Vec<u8>>) {
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Somebody who shares it has made it so.
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                if wait_for_input().is_err() {
                    return;
                }
                continue;
            }
            Err(_) => return,
        };
        let data = buffer.get(..read).unwrap_or_default().to_vec();
        if sender.blocking_send(data).is_err() {
            return;
        }
    }
}

fn wait_for_input() -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdin = io::stdin();
    let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
    match poll(&mut ready, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
