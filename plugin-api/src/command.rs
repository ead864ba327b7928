//! Programs of the host that a plugin runs to their end: with a timeout, with bounded output, and without code of this
//! process between fork and exec.
//!
//! ```no_run
//! # use cofferdam_plugin_api::prelude::*;
//! # use cofferdam_plugin_api::command::Program;
//! # use std::time::Duration;
//! # fn example() -> Result<()> {
//! let output = Program::new("/usr/sbin/ip").arguments(["-j", "link"]).run(Duration::from_secs(5))?;
//! if !output.status.success() {
//!     return Err(Error::new(String::from_utf8_lossy(&output.stderr)));
//! }
//! # Ok(())
//! # }
//! ```

mod users;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

pub use users::kill_users;

/// Most of standard output by default.
const OUTPUT_LIMIT: usize = 1 << 20;

/// What is kept of standard error, its beginning.
const ERROR_LIMIT: usize = 16 << 10;

/// How long to wait until a killed process has ended. One that waits in the kernel, for instance for a file system of the
/// network, takes longer; it is reaped by a thread.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A program of the host.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Option<File>,
    output_limit: usize,
}

/// How a program ended, and what it has written.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error, at most 16 KiB.
    pub stderr: Vec<u8>,
}

/// Why there is no output. The process and its process group have been killed, if they were started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The program could not be started.
    #[error("cannot start `{}`", program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("`{}` did not end within {timeout:?} and was killed", program.display())]
    Timeout {
        /// Its path.
        program: PathBuf,
        /// The timeout.
        timeout: Duration,
    },
    /// It has written more to its standard output than allowed.
    #[error("`{}` has written more than {limit} bytes and was killed", program.display())]
    TooLong {
        /// Its path.
        program: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A system call failed.
    #[error("cannot wait for `{}`", program.display())]
    Wait {
        /// Its path.
        program: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Program {
    /// A program at an absolute path. It has no arguments, an empty environment and input, and the working directory `/`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: None,
            output_limit: OUTPUT_LIMIT,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the standard input. A file needs no other process to write to it, and a lock on it lasts as long as the
    /// program and its descendants, also when the agent is killed; a later agent ends them with [`kill_users`].
    #[must_use]
    pub fn input(mut self, input: File) -> Self {
        self.input = Some(input);
        self
    }

    /// Sets the most that it may write to its standard output; 1 MiB by default.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Runs it to its end, in a process group of its own. When the timeout passes, or if it writes too much, the group is
    /// killed. Output of descendants that outlive it is not waited for.
    ///
    /// # Errors
    /// [`CommandError`]. That it exits with a status other than 0 is none.
    pub fn run(self, timeout: Duration) -> Result<Output, CommandError> {
        let Self { path, arguments, environment, input, output_limit } = self;
        let spawned = Command::new(&path)
            .args(arguments)
            .env_clear()
            .envs(environment)
            .current_dir("/")
            .stdin(input.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let child = spawned.map_err(|source| CommandError::Start { program: path.clone(), source })?;
        Running { child, ended: false }.collect(&path, output_limit, timeout)
    }
}

/// A started process, which is killed and reaped when this is dropped.
struct Running {
    child: Child,
    ended: bool,
}

impl Running {
    fn collect(mut self, path: &Path, limit: usize, timeout: Duration) -> Result<Output, CommandError> {
        let failed = |source: io::Error| CommandError::Wait { program: path.to_owned(), source };
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let mut stdout = Stream::new(self.child.stdout.take().map(Into::into), limit).map_err(failed)?;
        let mut stderr =
            Stream::new(self.child.stderr.take().map(Into::into), ERROR_LIMIT).map_err(failed)?;
        let end = Instant::now().checked_add(timeout);
        loop {
            let exited = wait(&pidfd, &stdout, &stderr, end).map_err(failed)?;
            stdout.read().map_err(failed)?;
            stderr.read().map_err(failed)?;
            if stdout.too_long {
                return Err(CommandError::TooLong { program: path.to_owned(), limit });
            }
            match exited {
                Some(true) => break,
                Some(false) => {}
                None => return Err(CommandError::Timeout { program: path.to_owned(), timeout }),
            }
        }
        let status = self.child.wait().map_err(failed)?;
        self.ended = true;
        Ok(Output { status, stdout: stdout.content, stderr: stderr.content })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It has not been reaped, so its number is that of no other group.
        let pid = Pid::from_child(&self.child);
        if let Err(errno) = kill_process_group(pid, Signal::KILL) {
            tracing::warn!(%errno, ?pid, "cannot kill a program that is not waited for any longer");
        }
        let ended = pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|pidfd| {
            let timeout = Timespec::try_from(KILL_TIMEOUT).ok();
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) == Ok(1)
        });
        if ended {
            let _ = self.child.wait();
        } else {
            reap_later(pid);
        }
    }
}

/// Reaps a killed process when it ends.
fn reap_later(pid: Pid) {
    let thread = std::thread::Builder::new().name("reap".to_owned());
    let reap = move || {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    };
    if let Err(error) = thread.spawn(reap) {
        tracing::warn!(%error, ?pid, "a killed program is not reaped");
    }
}

/// An output of the process.
struct Stream {
    /// `None` after the end of file.
    source: Option<File>,
    content: Vec<u8>,
    limit: usize,
    too_long: bool,
}

impl Stream {
    fn new(source: Option<OwnedFd>, limit: usize) -> io::Result<Self> {
        if let Some(source) = &source {
            ioctl_fionbio(source, true)?;
        }
        Ok(Self { source: source.map(File::from), content: Vec::new(), limit, too_long: false })
    }

    /// Reads what there is. What is beyond the limit is dropped.
    fn read(&mut self) -> io::Result<()> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let mut buffer = [0; 8192];
        // No more at a time than a pipe holds, so that one who writes without end is noticed.
        for _ in 0..16 {
            match source.read(&mut buffer) {
                Ok(0) => {
                    self.source = None;
                    return Ok(());
                }
                Ok(length) => {
                    let space = self.limit - self.content.len();
                    self.too_long |= length > space;
                    self.content.extend_from_slice(&buffer[..length.min(space)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Waits until the process has exited (`Some(true)`), there is output (`Some(false)`), or the time is over (`None`).
fn wait(pidfd: &OwnedFd, stdout: &Stream, stderr: &Stream, end: Option<Instant>) -> io::Result<Option<bool>> {
    let mut descriptors = vec![PollFd::new(pidfd, PollFlags::IN)];
    let streams = [stdout, stderr].into_iter().filter_map(|stream| stream.source.as_ref());
    descriptors.extend(streams.map(|source| PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)));
    loop {
        let remaining = end.map(|end| end.saturating_duration_since(Instant::now()));
        if remaining.is_some_and(|remaining| remaining.is_zero()) {
            return Ok(None);
        }
        let timeout = remaining.and_then(|remaining| Timespec::try_from(remaining).ok());
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(!descriptors[0].revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Program {
        Program::new("/bin/sh").arguments(["-c", script])
    }

    #[test]
    fn a_program_gets_its_input_and_environment_and_nothing_else() {
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(b"question\n").unwrap();
        input.rewind().unwrap();
        let output = shell("read line; echo $line $A; pwd; echo problem >&2; env | wc -l; exit 3")
            .environment("A", "1")
            .environment("PATH", "/usr/bin:/bin")
            .input(input)
            .run(MINUTE)
            .unwrap();
        // `A` and `PATH`, and `PWD` and `_` of the shell.
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(["question 1\n/\n3\n", "question 1\n/\n4\n"].contains(&&*stdout), "{stdout}");
        assert_eq!((output.stderr.as_slice(), output.status.code()), (b"problem\n".as_slice(), Some(3)));
    }

    #[test]
    fn what_does_not_end_in_time_is_killed_with_its_descendants() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        // Both keep the FIFO open for writing.
        let script = format!("exec 3> {}; /bin/sleep 1000 & wait", fifo.display());
        let reader = std::thread::spawn(move || std::fs::read(&fifo).unwrap());
        let error = shell(&script).run(Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("did not end within 200ms and was killed"), "{error}");
        // The end of file comes when nobody has it open.
        assert!(reader.join().unwrap().is_empty());
    }

    #[test]
    fn output_is_bounded() {
        let error =
            shell("cat /dev/zero").environment("PATH", "/bin").output_limit(5000).run(MINUTE).unwrap_err();
        assert!(error.to_string().contains("more than 5000 bytes"), "{error}");
        let output = shell("head -c 100000 /dev/zero >&2; echo done")
            .environment("PATH", "/usr/bin:/bin")
            .run(MINUTE)
            .unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.len()), (b"done\n".as_slice(), ERROR_LIMIT));
    }

    #[test]
    fn descendants_that_keep_the_output_open_are_not_waited_for() {
        let output = shell("/bin/sleep 1000 & echo $!").run(MINUTE).unwrap();
        let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    /// As if this was a later agent: all that it has is the file.
    #[test]
    fn what_has_a_lock_on_its_input_is_killed_with_its_process_group_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let [input, fifo] = ["input", "fifo"].map(|name| directory.path().join(name));
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let file = File::create_new(&input).unwrap();
        file.lock().unwrap();
        // It has the file without the lock, as a child of an agent has that is about to be executed.
        let mut other =
            Command::new("/bin/sleep").arg("1000").stdin(File::open(&input).unwrap()).spawn().unwrap();
        // One of the group does not have the file; the FIFO has readers until all have ended.
        let script = format!("exec 4< {}; /bin/sleep 1000 < /dev/null & wait", fifo.display());
        let mut program =
            Command::new("/bin/sh").args(["-c", &script]).stdin(file).process_group(0).spawn().unwrap();
        let mut writer = File::options().write(true).open(&fifo).unwrap();
        let file = File::open(&input).unwrap();
        assert!(file.try_lock().is_err());
        let mut killed = 0;
        while file.try_lock().is_err() {
            killed += kill_users(&file).unwrap();
        }
        assert!(killed > 0);
        program.wait().unwrap();
        // Fails when nobody reads any more.
        while writer.write_all(b"x").is_ok() {}
        assert_eq!(kill_users(&file).unwrap(), 0);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = Program::new("/nowhere/x").run(MINUTE).unwrap_err();
        assert!(matches!(&error, CommandError::Start { .. }) && error.to_string().contains("/nowhere/x"));
    }
}
