//! The fetcher process. It does not outlive its handle.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{self, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::{FetchError, FetchFailure, FetchJob, FetchMessage};

/// Maximum size of a message.
const MAX_MESSAGE: u64 = 64 << 10;

/// Maximum length of a log line; longer lines are truncated.
const MAX_LINE: usize = 4 << 10;

/// How much of the end of standard error is kept for [`FetchError::Died`].
const MAX_STDERR: usize = 1 << 10;

/// Environment variables that are passed on: proxies and certificate authorities.
const VARIABLES: [&str; 10] = [
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];

/// A fetcher process, which is killed when this is dropped.
pub(super) struct Child {
    process: process::Child,
    /// Sends the job. Has standard input afterwards, which is open until the process has ended.
    send: JoinHandle<Option<ChildStdin>>,
    messages: Option<BufReader<ChildStdout>>,
    /// The end of standard error.
    stderr: JoinHandle<String>,
    failure: Option<FetchFailure>,
}

impl Child {
    /// Starts the process, in a process group of its own, and sends it a job. Must be called in a tokio runtime.
    ///
    /// The process changes its user itself: if asked to do that, the standard library would use fork(2) instead of
    /// posix_spawn(3).
    pub(super) fn spawn(program: &Path, arguments: &[PathBuf], job: &FetchJob) -> Result<Self, FetchError> {
        let job = job.to_line().map_err(|source| FetchError::Serialize { source })?;
        let mut process = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| FetchError::Spawn { program: program.to_owned(), source })?;
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        Ok(Self {
            process,
            send: tokio::spawn(send(stdin, job).in_current_span()),
            messages: stdout.map(BufReader::new),
            stderr: tokio::spawn(log(stderr).in_current_span()),
            failure: None,
        })
    }

    /// The next message, but for that of a failure, which [`Self::outcome`] returns. `None` when there is none any more.
    pub(super) async fn next(&mut self) -> Option<FetchMessage> {
        loop {
            let mut line = Vec::new();
            let read = self.messages.as_mut()?.take(MAX_MESSAGE).read_until(b'\n', &mut line).await;
            // An error is the end, as that of a process that was killed.
            if !matches!(read, Ok(count) if count > 0) {
                return None;
            }
            match serde_json::from_slice(&line) {
                Ok(FetchMessage::Failed(failure)) => self.failure = Some(failure),
                Ok(message) => return Some(message),
                Err(error) => tracing::debug!(%error, "the fetcher process reports what is not known"),
            }
        }
    }

    /// Waits for the end of the process.
    pub(super) async fn outcome(&mut self) -> Result<(), FetchError> {
        while self.next().await.is_some() {}
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        let status = self.wait().await?;
        match self.failure.take() {
            _ if status.success() => Ok(()),
            Some(failure) => Err(failure.into()),
            None => Err(FetchError::Died { status, stderr }),
        }
    }

    /// Kills the process group and reaps the process.
    pub(super) async fn end(&mut self) -> Result<(), FetchError> {
        self.kill();
        self.wait().await.map(drop)
    }

    async fn wait(&mut self) -> Result<ExitStatus, FetchError> {
        self.process.wait().await.map_err(|source| FetchError::Wait { source })
    }

    fn kill(&self) {
        // `None` once it is reaped, so the pid cannot have been reused.
        let Some(pid) = self.process.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return };
        if let Err(errno) = kill_process_group(pid, Signal::KILL) {
            tracing::warn!(%errno, ?pid, "cannot kill the fetcher process");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.send.abort();
        self.stderr.abort();
    }
}

/// Sends a job. Returns the stream, so that it stays open.
async fn send(stdin: Option<ChildStdin>, job: Vec<u8>) -> Option<ChildStdin> {
    let mut stdin = stdin?;
    if let Err(error) = stdin.write_all(&job).await {
        // It exited early; its exit status tells more.
        tracing::debug!(%error, "the fetcher process did not read its job");
    }
    Some(stdin)
}

/// Logs the lines of standard error, and returns their end.
async fn log(stderr: Option<impl AsyncRead + Unpin>) -> String {
    let mut tail = String::new();
    let Some(mut stderr) = stderr else { return tail };
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    loop {
        let count = stderr.read(&mut buffer).await.unwrap_or(0);
        let ended = count == 0;
        lines.push(&buffer[..count], ended, |line| {
            tracing::info!("{line}");
            tail.push_str(line);
            tail.push(' ');
            let surplus = tail.len().saturating_sub(MAX_STDERR);
            tail.drain(..tail.ceil_char_boundary(surplus));
        });
        if ended {
            tail.truncate(tail.trim_end().len());
            return tail;
        }
    }
}

/// Splits a stream into lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds bytes and passes each complete line to `each`, truncated to [`MAX_LINE`].
    fn push(&mut self, bytes: &[u8], ended: bool, mut each: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            let space = MAX_LINE - self.partial.len();
            self.partial.extend_from_slice(&text[..text.len().min(space)]);
            if complete {
                self.emit(&mut each);
            }
        }
        if ended {
            self.emit(&mut each);
        }
    }

    fn emit(&mut self, each: &mut impl FnMut(&str)) {
        if !self.partial.is_empty() {
            each(&super::job::escape_control(&String::from_utf8_lossy(&self.partial)));
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_assembled_and_truncated() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for (bytes, ended) in [(&b"on"[..], false), (b"e\n\ntwo\nth", false), (b"ree", true)] {
            lines.push(bytes, ended, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two", "three"]);

        let mut lengths = Vec::new();
        for _ in 0..3 {
            lines.push(&[b'x'; 3000], false, |line| lengths.push(line.len()));
        }
        lines.push(b"\nshort\n", true, |line| lengths.push(line.len()));
        assert_eq!(lengths, [MAX_LINE, 5]);
    }

    #[tokio::test]
    async fn the_end_of_standard_error_is_kept() {
        let text = "ä".repeat(2000) + "\nlast words\n";
        let tail = log(Some(text.as_bytes())).await;
        assert!(tail.ends_with("ää last words"), "{tail}");
        assert!(tail.len() <= MAX_STDERR);
        assert_eq!(log(Some(&b"one\ntwo"[..])).await, "one two");
    }
}
