//! A container in the foreground: copies its output and forwards signals. Returns its exit status.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use crate::cli::failure::Failure;
use crate::cli::follow::{Follower, Log, copy_all};
use crate::cli::{Outcome, output, wait};
use cofferdam_core::model::view;
use cofferdam_core::model::{ContainerId, Request};

use super::NOT_RUN;
use super::connection::{AgentConnection, Ending, Running};

/// Delay before the output is copied by threads. A command that exits earlier does not need them.
const OUTPUT_DELAY: Duration = Duration::from_millis(2);

/// The SIGINT that kills a container instead of being forwarded.
const KILLING_INTERRUPT: usize = 3;

/// Launches a container and waits for its end.
pub(super) async fn run(agent: &AgentConnection, request: Request) -> Outcome {
    // First, so that a signal during the launch is forwarded after it.
    let mut signals = Signals::new().map_err(|failure| failure.with_status(NOT_RUN))?;
    let id = request.id.clone();
    let Running { logs, end } = agent.run(request).await?;

    if logs.stdout.is_none() && logs.stderr.is_none() {
        tracing::warn!("the output of container `{id}` is not written to files and cannot be shown");
    }
    let mut output = Output { logs: Logs::of(logs), followers: None, broken: Arc::default() };
    let ending = wait_and_forward(agent, &id, end, &mut signals, &mut output).await?;
    let finished = output.finish_in_thread()?;
    tokio::select! {
        copied = finished => {
            let stopped = |_| io::Error::other("the thread that copies output panicked");
            copied.map_err(stopped).flatten()?;
        }
        // The output may be endless, or nobody may read it. The process ends without waiting for its threads.
        number = signals.next() => return Ok(128 + u8::try_from(number).unwrap_or_default()),
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
    output: &mut Output,
) -> Result<Ending, Failure> {
    let mut interrupts = 0;
    loop {
        let number = tokio::select! {
            biased;
            ending = &mut end => return ending,
            number = signals.next() => number,
            // Sent as if the command itself had written to the closed pipe.
            () = output.broken.notified() => libc::SIGPIPE,
            () = tokio::time::sleep(OUTPUT_DELAY), if output.followers.is_none() => {
                output.follow()?;
                continue;
            }
        };
        interrupts += usize::from(number == libc::SIGINT);
        let number = if interrupts >= KILLING_INTERRUPT { libc::SIGKILL } else { number };
        // A container that has just ended cannot be signalled.
        if let Err(failure) = agent.kill(id, number).await {
            tracing::debug!(error = %failure.error(), number, "cannot forward a signal");
        }
    }
}

/// The files with the output of a container.
#[derive(Clone)]
struct Logs {
    stdout: Option<Log>,
    stderr: Option<Log>,
}

impl Logs {
    fn of(logs: view::Logs) -> Self {
        let view::Logs { stdout, stderr, stdout_file, stderr_file } = logs;
        Self {
            stdout: stdout.map(|path| Log::new(path, stdout_file)),
            stderr: stderr.map(|path| Log::new(path, stderr_file)),
        }
    }
}

/// The output of the container.
struct Output {
    logs: Logs,
    /// The threads that copy it; `None` until they are started.
    followers: Option<Vec<Follower>>,
    /// Notified when a reader of this program's output has closed it.
    broken: Arc<Notify>,
}

impl Output {
    /// Starts to copy it.
    fn follow(&mut self) -> Result<(), Failure> {
        let mut followers = Vec::new();
        if let Some(log) = &self.logs.stdout {
            followers.push(self.follower(log, io::stdout())?);
        }
        if let Some(log) = &self.logs.stderr {
            followers.push(self.follower(log, io::stderr())?);
        }
        self.followers = Some(followers);
        Ok(())
    }

    fn follower(&self, log: &Log, sink: impl io::Write + Send + 'static) -> Result<Follower, Failure> {
        let failed = |source| Failure::system(format!("cannot follow `{}`", log.path.display()), source);
        let broken = Arc::clone(&self.broken);
        Follower::start(log.clone(), sink, move |_| broken.notify_one()).map_err(failed)
    }

    /// Copies the rest on another thread, so that signals have an effect meanwhile.
    fn finish_in_thread(self) -> Result<oneshot::Receiver<io::Result<()>>, Failure> {
        let (sender, receiver) = oneshot::channel();
        let finish = move || drop(sender.send(self.finish()));
        let spawned = std::thread::Builder::new().name("output".to_owned()).spawn(finish);
        spawned.map_err(|source| Failure::system("cannot start a thread", source))?;
        Ok(receiver)
    }

    /// Copies the rest.
    fn finish(self) -> io::Result<()> {
        let copied: Vec<io::Result<()>> = match self.followers {
            Some(followers) => followers.into_iter().map(Follower::finish).collect(),
            None => {
                let stdout = self.logs.stdout.map(|log| copy_all(&log, &mut io::stdout()));
                let stderr = self.logs.stderr.map(|log| copy_all(&log, &mut io::stderr()));
                stdout.into_iter().chain(stderr).collect()
            }
        };
        copied.into_iter().try_for_each(|copied| match copied {
            // The reader closed the pipe; the container got SIGPIPE.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            copied => copied,
        })
    }
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
