//! The fetcher process. It does not outlive its handle.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{self, ChildStderr, ChildStdin, ChildStdout, Command};

use super::{FetchError, FetchFailure};

/// Maximum size of a reported failure.
const MAX_FAILURE: u64 = 64 << 10;

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
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Child {
    /// Starts the process in a process group of its own.
    ///
    /// The process changes its user itself: if asked to do that, the standard library would use fork(2) instead of
    /// posix_spawn(3).
    pub(super) fn spawn(program: &Path, arguments: &[PathBuf]) -> Result<Self, FetchError> {
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
        Ok(Self { process, stdin, stdout, stderr })
    }

    /// Sends the job and waits for the result.
    pub(super) async fn run(&mut self, job: &[u8]) -> Result<(), FetchError> {
        let send = async {
            if let Some(stdin) = &mut self.stdin
                && let Err(error) = stdin.write_all(job).await
            {
                // It exited early; its exit status tells more.
                tracing::debug!(%error, "the fetcher process did not read its job");
            }
        };
        let ((), failure, stderr) =
            tokio::join!(send, read_failure(self.stdout.take()), log(self.stderr.take()));
        let status = self.wait().await?;
        match serde_json::from_slice::<FetchFailure>(&failure) {
            _ if status.success() => Ok(()),
            Ok(failure) => Err(failure.into()),
            Err(_) => Err(FetchError::Died { status, stderr }),
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
    }
}

/// Reads the reported failure.
async fn read_failure(stdout: Option<ChildStdout>) -> Vec<u8> {
    let mut failure = Vec::new();
    let Some(mut stdout) = stdout else { return failure };
    if let Err(error) = (&mut stdout).take(MAX_FAILURE).read_to_end(&mut failure).await {
        tracing::debug!(%error, "cannot read the standard output of the fetcher process");
    }
    failure
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
