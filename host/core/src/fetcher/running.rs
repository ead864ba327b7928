//! The process that fetches, as the agent sees it: one that never outlives the wish for it.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::{FetchError, FetchFailure};

/// More than any failure takes.
const LONGEST_FAILURE: u64 = 64 << 10;

/// Where a line is cut.
const LONGEST_LINE: usize = 4 << 10;

/// How much of the last lines is kept, for the case that it ends without a word.
const LAST_WORDS: usize = 1 << 10;

/// The agent's variables that the process gets: where the network's proxies are, and whom to trust.
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

/// A process that fetches; it is killed when this goes away.
pub(super) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Running {
    /// Starts it, in a process group of its own.
    ///
    /// It changes its user by itself: asked to do that, the standard library would fork the whole agent.
    pub(super) fn spawn(program: &Path, arguments: &[PathBuf]) -> Result<Self, FetchError> {
        let mut child = Command::new(program)
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
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok(Self { child, stdin, stdout, stderr })
    }

    /// Hands over the job and waits for its end.
    pub(super) async fn outcome(&mut self, job: &[u8]) -> Result<(), FetchError> {
        let hand_over = async {
            if let Some(stdin) = &mut self.stdin
                && let Err(error) = stdin.write_all(job).await
            {
                // It ended before it had read everything; how, its exit status says.
                tracing::debug!("the job was not taken: {error}");
            }
        };
        let ((), failure, words) =
            tokio::join!(hand_over, failure(self.stdout.take()), forward(self.stderr.take()));
        let status = self.wait().await?;
        match serde_json::from_slice::<FetchFailure>(&failure) {
            _ if status.success() => Ok(()),
            Ok(failure) => Err(failure.into()),
            Err(_) => Err(FetchError::Died { status, words }),
        }
    }

    /// Kills it and waits until it is gone.
    pub(super) async fn end(&mut self) -> Result<(), FetchError> {
        self.kill();
        self.wait().await.map(drop)
    }

    async fn wait(&mut self) -> Result<ExitStatus, FetchError> {
        self.child.wait().await.map_err(|source| FetchError::Wait { source })
    }

    fn kill(&self) {
        // There is a number only until it is reaped, so it cannot be somebody else's.
        let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return };
        if let Err(errno) = kill_process_group(pid, Signal::KILL) {
            tracing::warn!("the process `{pid:?}` that fetches files cannot be killed: {errno}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads what it says about its failure, as far as that makes sense.
async fn failure(stdout: Option<ChildStdout>) -> Vec<u8> {
    let mut failure = Vec::new();
    let Some(mut stdout) = stdout else { return failure };
    if let Err(error) = (&mut stdout).take(LONGEST_FAILURE).read_to_end(&mut failure).await {
        tracing::debug!("the standard output of the process that fetches files broke off: {error}");
    }
    failure
}

/// Passes its lines on to the log, and returns the end of them.
async fn forward(stderr: Option<impl AsyncRead + Unpin>) -> String {
    let mut words = String::new();
    let Some(mut stderr) = stderr else { return words };
    let mut lines = Lines::default();
    let mut buffer = [0; 4096];
    loop {
        let count = stderr.read(&mut buffer).await.unwrap_or(0);
        let ended = count == 0;
        lines.take(&buffer[..count], ended, |line| {
            tracing::info!("{line}");
            words.push_str(line);
            words.push(' ');
            let surplus = words.len().saturating_sub(LAST_WORDS);
            words.drain(..words.ceil_char_boundary(surplus));
        });
        if ended {
            words.truncate(words.trim_end().len());
            return words;
        }
    }
}

/// Bytes on their way to becoming lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and gives each line that is complete to `each`, cut where it is too long.
    fn take(&mut self, bytes: &[u8], ended: bool, mut each: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            let room = LONGEST_LINE - self.partial.len();
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if complete {
                self.give(&mut each);
            }
        }
        if ended {
            self.give(&mut each);
        }
    }

    fn give(&mut self, each: &mut impl FnMut(&str)) {
        if !self.partial.is_empty() {
            each(&super::job::printable(&String::from_utf8_lossy(&self.partial)));
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_and_cut() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for (bytes, ended) in [(&b"on"[..], false), (b"e\n\ntwo\nth", false), (b"ree", true)] {
            lines.take(bytes, ended, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two", "three"]);

        let mut lengths = Vec::new();
        for _ in 0..3 {
            lines.take(&[b'x'; 3000], false, |line| lengths.push(line.len()));
        }
        lines.take(b"\nshort\n", true, |line| lengths.push(line.len()));
        assert_eq!(lengths, [LONGEST_LINE, 5]);
    }

    #[tokio::test]
    async fn the_end_of_its_lines_is_kept() {
        let text = "ä".repeat(2000) + "\nlast words\n";
        let words = forward(Some(text.as_bytes())).await;
        assert!(words.ends_with("ää last words"), "{words}");
        assert!(words.len() <= LAST_WORDS);
        assert_eq!(forward(Some(&b"one\ntwo"[..])).await, "one two");
    }
}
