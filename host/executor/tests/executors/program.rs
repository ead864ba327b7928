//! An executor's process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use cofferdam_linux::process::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peer::{Peer, TIMEOUT, TOKEN};

/// An executor with its directory, which is its sandbox. It is killed on drop.
pub(crate) struct Program {
    child: Child,
    directory: TempDir,
    pub(crate) peer: Peer,
}

impl Program {
    /// Starts an executor.
    pub(crate) fn start(kind: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_with(kind, environment, |_| {})
    }

    /// Starts an executor with a change of its command.
    pub(crate) fn start_with(
        kind: &str,
        environment: &[(&str, &str)],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let peer = Peer::listen(&socket);
        let mut command = Command::new(env!("CARGO_BIN_EXE_cofferdam-executor"));
        command.arg(kind).current_dir(directory.path()).env_clear().stdin(Stdio::null());
        command.stdout(File::create(directory.path().join("stdout")).unwrap());
        command.stderr(File::create(directory.path().join("stderr")).unwrap());
        let socket = socket.to_str().unwrap();
        command.envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("MESOS_FRAMEWORK_ID", "f"),
            ("MESOS_EXECUTOR_ID", "e"),
            ("MESOS_DOMAIN_SOCKET", socket),
            ("MESOS_EXECUTOR_AUTHENTICATION_TOKEN", TOKEN),
            ("MESOS_CHECKPOINT", "1"),
            ("MESOS_SUBSCRIPTION_BACKOFF_MAX", "50ms"),
        ]);
        command.envs(environment.iter().copied());
        change(&mut command);
        let child = command.spawn().unwrap();
        Self { child, directory, peer }
    }

    /// A path in the sandbox.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The text of a file in the sandbox.
    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Its process.
    pub(crate) fn process(&self) -> Process {
        Process::open_any(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// Waits until it has ended.
    #[track_caller]
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        assert!(self.process().wait(Some(TIMEOUT)).unwrap(), "it does not end: {}", self.text("stderr"));
        let log = self.text("stderr");
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A task that is a line of a shell.
pub(crate) fn shell(line: &str) -> Value {
    json!({"name": "n", "task_id": {"value": "t"}, "agent_id": {"value": "a"}, "command": {"value": line}})
}

/// A pipe with a name in the sandbox, on which a task reports what it does.
pub(crate) struct Fifo(File);

impl Fifo {
    pub(crate) fn new(path: &Path) -> Self {
        let status = Command::new("mkfifo").args(["-m", "666"]).arg(path).status().unwrap();
        assert!(status.success());
        // Open for both, so that neither side waits for the other.
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    /// Waits for a line.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let timeout = Timespec { tv_sec: TIMEOUT.as_secs().try_into().unwrap(), tv_nsec: 0 };
            let found = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)).unwrap();
            assert!(found > 0, "no line");
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        String::from_utf8(line).unwrap().trim().to_owned()
    }

    /// Writes to whoever reads from it.
    pub(crate) fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a line with the pid of a process.
    #[track_caller]
    pub(crate) fn process(&mut self) -> Process {
        Process::open_any(self.line().parse().unwrap()).unwrap()
    }
}
