//! A container in the foreground: copies its output and forwards signals. Returns its exit status.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::cli::failure::Failure;
use crate::cli::follow::Follower;
use crate::cli::{Outcome, output, wait};
use cofferdam_core::model::{ContainerId, Request};

use super::NOT_RUN;
use super::connection::{AgentConnection, Ending, Running};

/// The SIGINT that kills a container instead of being forwarded.
const KILLING_INTERRUPT: usize = 3;

/// Launches a container and waits for its end.
pub(super) async fn run(agent: &AgentConnection, request: Request) -> Outcome {
    // First, so that a signal during the launch is forwarded after it.
    let mut signals = Signals::new().map_err(|failure| failure.with_status(NOT_RUN))?;
    let id = request.id.clone();
    let Running { logs, end } = agent.run(request).await?;

    let broken = Arc::new(Notify::new());
    let followers = [
        logs.stdout.map(|path| follow(path, io::stdout(), &broken)).transpose()?,
        logs.stderr.map(|path| follow(path, io::stderr(), &broken)).transpose()?,
    ];
    if followers.iter().all(Option::is_none) {
        tracing::warn!("the output of container `{id}` is not written to files and cannot be shown");
    }

    let ending = wait_and_forward(agent, &id, end, &mut signals, &broken).await?;
    for follower in followers.into_iter().flatten() {
        match follower.finish() {
            // The reader closed the pipe; the container got SIGPIPE.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            finished => finished?,
        }
    }
    if let Some(message) = &ending.message {
        use std::io::Write as _;
        // Standard error may be closed.
        drop(writeln!(io::stderr(), "cofferdam: {}", output::escape_control(message)));
    }
    Ok(wait::exit_status(ending.status))
}

/// Waits for the end and forwards signals until then.
async fn wait_and_forward(
    agent: &AgentConnection,
    id: &ContainerId,
    mut end: impl Future<Output = Result<Ending, Failure>> + Unpin,
    signals: &mut Signals,
    broken: &Notify,
) -> Result<Ending, Failure> {
    let mut interrupts = 0;
    loop {
        let number = tokio::select! {
            biased;
            ending = &mut end => return ending,
            number = signals.next() => number,
            // Sent as if the command itself had written to the closed pipe.
            () = broken.notified() => libc::SIGPIPE,
        };
        interrupts += usize::from(number == libc::SIGINT);
        let number = if interrupts >= KILLING_INTERRUPT { libc::SIGKILL } else { number };
        // A container that has just ended cannot be signalled.
        if let Err(failure) = agent.kill(id, number).await {
            tracing::debug!(error = %failure.error(), number, "cannot forward a signal");
        }
    }
}

fn follow(
    path: PathBuf,
    sink: impl io::Write + Send + 'static,
    broken: &Arc<Notify>,
) -> Result<Follower, Failure> {
    let failed = |source| Failure::system(format!("cannot follow `{}`", path.display()), source);
    let broken = Arc::clone(broken);
    Follower::start(path.clone(), sink, move |_| broken.notify_one()).map_err(failed)
}

/// The signals that are forwarded.
struct Signals([(i32, Signal); 4]);

impl Signals {
    fn new() -> Result<Self, Failure> {
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

    async fn next(&mut self) -> i32 {
        let [(int, interrupt), (term, terminate), (hup, hangup), (quit, exit)] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => *int,
            _ = terminate.recv() => *term,
            _ = hangup.recv() => *hup,
            _ = exit.recv() => *quit,
        }
    }
}
