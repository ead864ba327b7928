//! A container in the foreground: its output here, our signals there, its exit status ours.

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
use super::connection::{AgentConnection, Ending};

/// How many times somebody must ask with SIGINT before a container that does not listen is ended.
const TIMEOUT: usize = 3;

/// Launches a container and stays with it to its end.
pub(super) async fn run(agent: &AgentConnection, request: Request) -> Outcome {
    // Asked for first: a signal that comes during the launch is passed on after it.
    let mut signals = Signals::new().map_err(|failure| failure.with_status(NOT_RUN))?;
    let id = request.id.clone();
    agent.launch(request).await?;

    let broken = Arc::new(Notify::new());
    let logs = agent.logs(&id).await?;
    let followers = [
        logs.stdout.map(|path| follow(path, io::stdout(), &broken)).transpose()?,
        logs.stderr.map(|path| follow(path, io::stderr(), &broken)).transpose()?,
    ];
    if followers.iter().all(Option::is_none) {
        tracing::warn!("the output of container `{id}` does not go to files, so none of it is shown here");
    }

    let ending = stay(agent, &id, &mut signals, &broken).await?;
    for follower in followers.into_iter().flatten() {
        match follower.finish() {
            // Whoever read it has left; the container was told.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            finished => finished?,
        }
    }
    if let Some(message) = &ending.message {
        use std::io::Write as _;
        // If nobody reads standard error, nobody misses this.
        drop(writeln!(io::stderr(), "cofferdam: {}", output::escape_control(message)));
    }
    Ok(wait::exit_status(ending.status))
}

/// Waits for the end and passes on what is to be passed on meanwhile.
async fn stay(
    agent: &AgentConnection,
    id: &ContainerId,
    signals: &mut Signals,
    broken: &Notify,
) -> Result<Ending, Failure> {
    let mut end = std::pin::pin!(agent.wait(id));
    let mut interrupts = 0;
    loop {
        let number = tokio::select! {
            biased;
            ending = &mut end => return ending,
            number = signals.next() => number,
            // As if the command itself had written to the reader that left.
            () = broken.notified() => libc::SIGPIPE,
        };
        interrupts += usize::from(number == libc::SIGINT);
        let number = if interrupts >= TIMEOUT { libc::SIGKILL } else { number };
        // A container that has just ended cannot be signalled, which is no news.
        if let Err(failure) = agent.kill(id, number).await {
            tracing::debug!(error = %failure.error(), number, "cannot pass on a signal");
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

/// The signals that are passed on.
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
