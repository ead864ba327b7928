//! The agent's side of a pull.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use async_trait::async_trait;
use cofferdam_core::config::RegistryConfig;
use cofferdam_core::model::PullProgress;
use cofferdam_core::provisioner::{Cancelled, Pull, PullError, PullSource, Puller};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{self, Command};

use super::{Job, JobSource, Message};

/// The command that this program pulls with.
const COMMAND: &str = "pull-for-agent";

/// Maximum length of a line of the process. Longer ones are cut off.
const MAX_LINE: u64 = 64 << 10;

/// Pulls images, each in a process of its own.
#[derive(Debug)]
pub(crate) struct PullProcess {
    /// This program.
    program: PathBuf,
    registry: RegistryConfig,
    /// Files with credentials, of which the first that exists is used.
    credentials: Vec<PathBuf>,
}

impl PullProcess {
    pub(crate) fn new(program: PathBuf, registry: RegistryConfig, credentials: Vec<PathBuf>) -> Self {
        Self { program, registry, credentials }
    }

    fn job(&self, pull: &Pull) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Job {
            store: pull.store.clone(),
            source: match &pull.source {
                PullSource::Registry(name) => JobSource::Registry(name.to_string()),
                PullSource::Local { path, permitted } => {
                    JobSource::Local { path: path.clone(), permitted: permitted.clone() }
                }
            },
            registry: self.registry.clone(),
            credentials: self.credentials.clone(),
            own_credentials: pull.credentials.clone(),
        })?;
        line.push(b'\n');
        Ok(line)
    }
}

#[async_trait]
impl Puller for PullProcess {
    async fn pull(
        &self,
        pull: &Pull,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
        cancelled: Cancelled,
    ) -> Result<(), PullError> {
        let job = self.job(pull).map_err(|error| failed("cannot describe the pull", &error))?;
        let mut child = Child::spawn(&self.program).map_err(|error| {
            failed(&format!("cannot start `{}`, which pulls images", self.program.display()), &error)
        })?;
        tokio::select! {
            biased;
            () = cancelled => {
                child.end().await;
                Err(PullError::Cancelled)
            }
            outcome = child.run(&job, progress) => outcome,
        }
    }
}

/// A process that pulls. It is killed, with the helpers that it has started, when this is dropped.
struct Child(process::Child);

impl Child {
    /// Starts the process in a process group of its own. It has the environment of the agent, as credential helpers need it.
    fn spawn(program: &PathBuf) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg(COMMAND).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map(Self)
    }

    async fn run(
        &mut self,
        job: &[u8],
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), PullError> {
        // Open until the process has ended: it exits when this is closed.
        let mut stdin = self.0.stdin.take();
        let (stdout, stderr) = (self.0.stdout.take(), self.0.stderr.take());
        let send = async {
            if let Some(stdin) = &mut stdin
                && let Err(error) = stdin.write_all(job).await
            {
                // It exited early; its exit status tells more.
                tracing::debug!(%error, "the process that pulls did not read its job");
            }
        };
        let ((), failure, ()) = tokio::join!(send, receive(stdout, progress), log(stderr));
        let status =
            self.0.wait().await.map_err(|error| failed("cannot wait for the process that pulls", &error))?;
        drop(stdin);
        outcome(status, failure)
    }

    /// Kills the process and waits for its end.
    async fn end(&mut self) {
        self.kill();
        if let Err(error) = self.0.wait().await {
            tracing::warn!(%error, "cannot wait for the end of a cancelled pull");
        }
    }

    fn kill(&self) {
        // `None` once it is reaped, so the pid cannot have been reused.
        let Some(pid) = self.0.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return };
        if let Err(errno) = kill_process_group(pid, Signal::KILL) {
            tracing::warn!(%errno, ?pid, "cannot kill the process that pulls");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn outcome(status: ExitStatus, failure: Option<PullError>) -> Result<(), PullError> {
    match failure {
        _ if status.success() => Ok(()),
        Some(failure) => Err(failure),
        None => {
            let reason = format!("the process that pulls ended with {status}, without a reason");
            Err(PullError::Failed { reason, is_invalid: false })
        }
    }
}

/// Passes on the progress. Returns the failure.
async fn receive(
    stdout: Option<impl AsyncRead + Unpin>,
    progress: &(dyn Fn(PullProgress) + Send + Sync),
) -> Option<PullError> {
    let mut failure = None;
    let mut lines = Lines::new(stdout?);
    while let Some(line) = lines.next().await {
        match serde_json::from_slice(&line) {
            Ok(Message::Progress(current)) => progress(current),
            Ok(Message::Failed { reason, is_invalid }) => {
                failure = Some(PullError::Failed { reason, is_invalid });
            }
            Err(error) => tracing::warn!("the process that pulls reports what is not known: {error}"),
        }
    }
    failure
}

/// Logs what the process says of requests that it repeats.
async fn log(stderr: Option<impl AsyncRead + Unpin>) {
    let Some(stderr) = stderr else { return };
    let mut lines = Lines::new(stderr);
    while let Some(line) = lines.next().await {
        let line = String::from_utf8_lossy(&line);
        tracing::info!("{}", cofferdam_core::fetcher::escape_control(line.trim_end()));
    }
}

/// Lines of limited length.
struct Lines<R>(BufReader<R>);

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: R) -> Self {
        Self(BufReader::new(stream))
    }

    /// The next line, or a part of one that is too long. An error is the end, as that of a process that was killed.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(MAX_LINE).read_until(b'\n', &mut line).await;
        matches!(read, Ok(count) if count > 0).then_some(line)
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> PullError {
    let reason = format!("{what}: {}", cofferdam_core::error_chain::describe(error));
    PullError::Failed { reason, is_invalid: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_progress_is_passed_on() {
        let long = "x".repeat(100_000);
        let text = format!(
            "{long}\n{}\n{}",
            r#"{"progress": {"layers": 2, "pulled_layers": 1, "bytes": 10, "received": 5}}"#,
            r#"{"failed": {"reason": "no tag", "is_invalid": true}}"#
        );
        let seen = parking_lot::Mutex::new(Vec::new());
        let failure = receive(Some(text.as_bytes()), &|progress| seen.lock().push(progress.received)).await;
        assert_eq!(failure, Some(PullError::Failed { reason: "no tag".to_owned(), is_invalid: true }));
        assert_eq!(*seen.lock(), [5]);
    }
}
