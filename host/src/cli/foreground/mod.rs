//! A container in the foreground: its output is shown, input and signals are passed on to it.
//!
//! ```text
//! session.rs    the connection to a container: of an agent in this process, or of a daemon
//! output.rs     writes output, in a thread
//! input.rs      reads input, in a thread, and passes it on
//! terminal.rs   the terminal of this program, which is restored however it ends
//! ```

mod detach;
mod flags;
mod input;
mod output;
mod session;
mod terminal;

use std::io::{self, Write as _};

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::output::Writer;
use super::failure::Failure;
use super::output::escape_control;
use super::{Outcome, wait};

use self::session::{Ending, Event};

pub(super) use detach::DetachKeys;
pub(super) use flags::{TerminalFlags, can_read_input};
pub(super) use input::Input;
pub(super) use session::{InputSink, NOT_RUN, Session, not_launched, not_run_status, taken};
pub(super) use terminal::{RawMode, restore, window_size};

/// The SIGINT that kills a container instead of being forwarded.
const KILLING_INTERRUPT: usize = 3;

/// What a signal to this program means, and that nobody reads its output any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnSignal {
    /// It is forwarded to the container.
    Forward,
    /// As [`OnSignal::Forward`], but the end of the terminal ends this program only.
    LeaveOnHangup,
    /// It ends this program only.
    Leave,
}

impl OnSignal {
    fn leaves(self, number: i32) -> bool {
        match self {
            Self::Forward => false,
            Self::LeaveOnHangup => [libc::SIGHUP, libc::SIGPIPE].contains(&number),
            Self::Leave => true,
        }
    }
}

/// How the foreground was left.
pub(super) enum Finish {
    /// The container has ended.
    Ended(Ending),
    /// The user has detached; the container goes on.
    Detached,
    /// A signal of this number ended it; the container goes on, or only the rest of its output was missing.
    Interrupted(i32),
}

impl Finish {
    /// The exit status of the program. Shows why the container ended, if there is a message.
    pub(super) fn exit(self, id: &str) -> Outcome {
        match self {
            Self::Ended(Ending { status, message }) => {
                if let Some(message) = message {
                    // Standard error may be closed.
                    drop(writeln!(io::stderr(), "cofferdam: {}", escape_control(&message)));
                }
                Ok(wait::exit_status(status))
            }
            Self::Detached => {
                drop(writeln!(io::stderr(), "cofferdam: detached; `cofferdam attach {id}` attaches again"));
                Ok(0)
            }
            Self::Interrupted(number) => Ok(128 + u8::try_from(number).unwrap_or_default()),
        }
    }
}

/// Shows the output of a container and passes input and signals on, until it ends or the user detaches.
pub(super) async fn run(
    session: Session,
    input: Option<Input>,
    signals: &mut Signals,
    on_signal: OnSignal,
) -> Result<Finish, Failure> {
    let terminal = input.as_ref().and_then(|input| input.terminal.clone());
    let finish = follow(session, input, signals, on_signal).await;
    // Before anything else is shown.
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    finish
}

async fn follow(
    mut session: Session,
    input: Option<Input>,
    signals: &mut Signals,
    on_signal: OnSignal,
) -> Result<Finish, Failure> {
    let mut writer = Writer::start()?;
    let mut input = input.map(Input::start);
    let broken = writer.broken();
    let mut interrupts = 0;
    let ending = loop {
        // Who does not read our output delays the container, as the reader of a pipe.
        let event = async {
            writer.ready().await;
            session.next().await
        };
        let number = tokio::select! {
            biased;
            number = signals.next() => number,
            event = event => match event? {
                Event::Output(output) => {
                    writer.write(output);
                    continue;
                }
                Event::Ended(ending) => break ending,
            },
            // Sent as if the command itself had written to the closed pipe.
            () = broken.notified() => libc::SIGPIPE,
            end = input::finished(&mut input) => match end {
                input::End::Detached => return Ok(Finish::Detached),
                input::End::Refused(error) => return Err(error),
                input::End::Input => continue,
                // The kernel tells only the first process of a session.
                input::End::HungUp => libc::SIGHUP,
            },
        };
        if on_signal.leaves(number) {
            return Ok(Finish::Interrupted(number));
        }
        interrupts += usize::from(number == libc::SIGINT);
        let forwarded = if interrupts >= KILLING_INTERRUPT { libc::SIGKILL } else { number };
        match session.kill(forwarded).await {
            // Its end is behind output that nobody reads.
            Ok(false) if !writer.is_ready() => return Ok(Finish::Interrupted(number)),
            Ok(_) => {}
            Err(failure) => tracing::debug!(error = %failure.error(), number, "cannot forward a signal"),
        }
    };
    drop(input);
    tokio::select! {
        finished = writer.finish() => finished?,
        // Nobody may read it. The process ends without waiting for its threads.
        number = signals.next() => return Ok(Finish::Interrupted(number)),
    }
    Ok(Finish::Ended(ending))
}

/// The signals that are forwarded.
pub(super) struct Signals([(i32, Signal); 4]);

impl Signals {
    /// Handles them from now on.
    pub(super) fn new() -> Result<Self, Failure> {
        let handled = |kind: SignalKind| {
            let failed = |source| Failure::system("cannot handle signals", source);
            Ok::<_, Failure>((kind.as_raw_value(), signal(kind).map_err(failed)?))
        };
        Ok(Self([
            handled(SignalKind::interrupt())?,
            handled(SignalKind::terminate())?,
            handled(SignalKind::hangup())?,
            handled(SignalKind::quit())?,
        ]))
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> i32 {
        let [(int, interrupt), (term, terminate), (hup, hangup), (quit, exit)] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => *int,
            _ = terminate.recv() => *term,
            _ = hangup.recv() => *hup,
            _ = exit.recv() => *quit,
        }
    }
}
