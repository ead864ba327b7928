//! Credential helpers: programs that keep credentials, as those of Docker.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use super::error::{PullError, Result};
use super::secret::Secret;

/// How long a helper may take. It may ask a cloud.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum length of what it prints.
const MAX_LENGTH: u64 = 64 << 10;

/// What helpers print if they have nothing, with a status other than 0.
const NOT_FOUND: &str = "credentials not found";

/// The user name that stands for a token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-NAME` for the credentials of a registry.
pub(super) fn ask(name: &str, server: &str) -> Result<Option<Secret>> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| PullError::Helper { program: program.clone(), reason };
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        let reason = "has a name with other characters than letters, digits, `.`, `_` and `-`".to_owned();
        return Err(PullError::Helper { program: program.escape_debug().to_string(), reason });
    }
    let run = |source| PullError::RunHelper { program: program.clone(), source };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(run)?;
    let answered = answer(&mut child, server);
    // It may not have ended. It is in the process group of this program, which a terminal or the agent ends as a whole.
    // An error means that it has.
    drop(child.kill());
    let status = child.wait().map_err(run)?;
    let Some(text) = answered.map_err(run)? else {
        return Err(failed(format!("did not answer within {TIMEOUT:?}")));
    };
    if text.len() as u64 > MAX_LENGTH {
        return Err(failed(format!("prints more than {MAX_LENGTH} bytes")));
    }
    if !status.success() {
        return match String::from_utf8_lossy(&text).contains(NOT_FOUND) {
            true => Ok(None),
            // What it prints may be a secret.
            false => Err(failed(format!("has failed with {status}"))),
        };
    }
    let Ok(Answer { username, secret }) = serde_json::from_slice(&text) else {
        return Err(failed("prints no JSON with `Username` and `Secret`".to_owned()));
    };
    Ok(Some(match username == TOKEN {
        true => Secret::RefreshToken(secret),
        false => Secret::Password { username, password: secret },
    }))
}

/// What the helper prints until its end; `None` if that takes too long.
fn answer(child: &mut Child, server: &str) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + TIMEOUT;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()) {
            // It answers without having read it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let pid = Pid::from_child(child);
    let exit = pidfd_open(pid, PidfdFlags::empty())?;
    let Some(stdout) = child.stdout.take() else { return Ok(Some(Vec::new())) };
    rustix::io::ioctl_fionbio(&stdout, true)?;
    let mut stdout = File::from(std::os::fd::OwnedFd::from(stdout)).take(MAX_LENGTH + 1);
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut events = [PollFd::new(stdout.get_ref(), PollFlags::IN), PollFd::new(&exit, PollFlags::IN)];
        match poll(&mut events, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return Ok(None),
            polled => {
                polled?;
            }
        }
        let has_ended = !events[1].revents().is_empty();
        match stdout.read_to_end(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It goes on, but has closed its output.
            read => {
                read?;
                let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
                let mut ended = [PollFd::new(&exit, PollFlags::IN)];
                let is_long = text.len() as u64 > MAX_LENGTH;
                return Ok((is_long || poll(&mut ended, Some(&timeout))? > 0).then_some(text));
            }
        }
        if has_ended {
            return Ok(Some(text));
        }
    }
}
