//! A real systemd-journald of a test's own: with its socket, configuration and files in a temporary directory, in a mount
//! namespace.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::daemon::TIMEOUT;
use crate::watch;

const PROGRAM: &str = "/lib/systemd/systemd-journald";

/// Any id: the journal's directory is named by it.
const MACHINE: &str = "0123456789abcdef0123456789abcdef";

/// Starts the program with the socket that it is given as its standard input, as systemd passes it. Nothing but its process
/// sees these mounts. It writes its own messages to the kernel's log otherwise.
const START: &str = r#"
set -e
mount --bind "$1/etc" /etc
mount --bind "$1/run" /run
mount --bind /dev/null /dev/kmsg 2>/dev/null || true
exec 3<&0 </dev/null
exec env -i LISTEN_PID=$$ LISTEN_FDS=1 RUNTIME_DIRECTORY="$1/journal" "$2"
"#;

/// The journal. Its socket outlives the process, as systemd keeps it.
#[derive(Debug)]
pub struct Journal {
    directory: TempDir,
    socket: UnixDatagram,
    process: Option<Child>,
}

impl Journal {
    /// Whether the program is installed.
    #[must_use]
    pub fn is_installed() -> bool {
        Path::new(PROGRAM).exists()
    }

    /// Creates the socket and the files, without starting the program.
    ///
    /// # Panics
    /// If that fails, or the program is not installed.
    #[must_use]
    pub fn new() -> Self {
        assert!(Self::is_installed(), "there is no `{PROGRAM}` (package systemd)");
        let directory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().expect("a directory");
        // Companions connect as the user of their container.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("a mode");
        for name in ["etc/systemd", "run", "journal"] {
            fs::create_dir_all(directory.path().join(name)).expect("a directory");
        }
        let files = directory.path().join("run/log/journal").join(MACHINE);
        fs::create_dir_all(&files).expect("a directory");
        fs::write(directory.path().join("etc/machine-id"), format!("{MACHINE}\n")).expect("a file");
        // All of a user's entries in one file, and none refused or removed.
        let config = "[Journal]\nStorage=volatile\nSplitMode=none\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\n\
                      ForwardToSyslog=no\nForwardToWall=no\nRuntimeMaxUse=1G\nRuntimeKeepFree=1M\n";
        fs::write(directory.path().join("etc/systemd/journald.conf"), config).expect("a file");
        let path = directory.path().join("journal/socket");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("a mode");
        Self { directory, socket, process: None }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("journal/socket")
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("run/log/journal").join(MACHINE)
    }

    /// Starts the program, and waits until it writes.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&mut self) {
        let socket = OwnedFd::from(self.socket.try_clone().expect("a descriptor"));
        let log = fs::File::create(self.directory.path().join("log")).expect("a file");
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"])
            .arg(self.directory.path())
            .arg(PROGRAM)
            .stdin(Stdio::from(socket))
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("unshare (package util-linux)");
        self.process = Some(process);
        let files = self.files();
        let written = watch::until(&files, TIMEOUT, || files.join("system.journal").exists());
        let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        assert!(written, "the journal does not start: {}", log());
    }

    /// Pid of the program.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("a process").id().cast_signed()
    }

    /// Sends a signal to the program, such as `SIGSTOP` and `SIGCONT`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("a signal");
    }

    /// Ends the program as systemd does before it starts it again: it writes what it has received. A kill could lose the entry
    /// that it is writing.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        if let Some(mut process) = self.process.take() {
            process.wait().expect("a child");
        }
    }

    /// What is in the journal with this field, and what is added, with the program `journalctl`.
    ///
    /// # Panics
    /// If the program does not start.
    #[must_use]
    pub fn follow(&self, field: &str) -> Entries {
        Entries::follow(field, |journalctl| journalctl.arg("--directory").arg(self.files()))
    }

    /// The last message with this field; empty if there is none.
    ///
    /// # Panics
    /// If the program `journalctl` does not start.
    #[must_use]
    pub fn last_message(&self, field: &str) -> String {
        let output = Command::new("journalctl")
            .args(["--lines=1", "--all", "--output=cat", "--quiet", field, "--directory"])
            .arg(self.files())
            .output()
            .expect("journalctl (package systemd)");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// Entries of a journal, in its order.
#[derive(Debug)]
pub struct Entries {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Entries {
    /// What is in the journal of this machine with this field, and what is added, with the program `journalctl`.
    ///
    /// # Panics
    /// If the program does not start.
    #[must_use]
    pub fn of_machine(field: &str) -> Self {
        Self::follow(field, |journalctl| journalctl)
    }

    fn follow(field: &str, of: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        // Without `--merge`, following means the entries of the current boot, and ends if there are none yet.
        let mut journalctl = Command::new("journalctl");
        journalctl.args(["--follow", "--merge", "--no-tail", "--all", "--output=json", "--quiet", field]);
        let mut process = of(&mut journalctl)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("journalctl (package systemd)");
        let lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Self { process, lines }
    }
}

impl Iterator for Entries {
    type Item = Json;

    /// Waits for the next one.
    fn next(&mut self) -> Option<Json> {
        let line = self.lines.next()?.expect("a line");
        Some(serde_json::from_str(&line).expect("an object"))
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
