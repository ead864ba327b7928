//! Processes for tests of plugins.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// A shell process that represents a container's command. It is killed on drop.
///
/// The script must print a line `ready` when the test can continue. The command `read end` waits for [`Shell::end`].
///
/// ```
/// let shell = cofferdam_plugin_api::testing::Shell::spawn("echo ready; read end");
/// assert!(shell.pid() > 0);
/// shell.end();
/// ```
#[derive(Debug)]
pub struct Shell {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Shell {
    /// Runs `sh -c SCRIPT` and waits until it prints `ready`.
    ///
    /// # Panics
    /// If it cannot be started, or its first line is not `ready`.
    #[must_use]
    pub fn spawn(script: &str) -> Self {
        Self::spawn_in(&[], script)
    }

    /// Like [`Shell::spawn`], but the shell first joins these cgroups: directories with a file `cgroup.procs`.
    ///
    /// # Panics
    /// If it cannot be started, or its first line is not `ready`.
    #[must_use]
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn spawn_in(cgroups: &[&Path], script: &str) -> Self {
        let join: String = cgroups
            .iter()
            .map(|directory| format!("echo $$ > '{}/cgroup.procs'; ", directory.display()))
            .collect();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{join}{script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start `sh`");
        let mut output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("cannot read from the shell");
        let shell = Self { child, output };
        assert_eq!(line, "ready\n", "unexpected first line of `{script}`");
        shell
    }

    /// Pid of the shell.
    ///
    /// # Panics
    /// If it does not fit into an `i32`, which pids on Linux always do.
    #[must_use]
    #[expect(clippy::expect_used, reason = "pids on Linux fit")]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid out of range")
    }

    /// Whether the shell is still running.
    ///
    /// # Panics
    /// If waitpid(2) fails.
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("cannot wait for the shell").is_none()
    }

    /// Reads the next line of its standard output, without the line break; empty at the end of the output.
    ///
    /// # Panics
    /// If it cannot be read.
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("cannot read from the shell");
        line.trim_end_matches('\n').to_owned()
    }

    /// Writes a line to its standard input, for the command `read`.
    ///
    /// # Panics
    /// If it cannot be written.
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn write(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("standard input is a pipe");
        writeln!(input, "{line}").expect("cannot write to the shell");
    }

    /// Closes its standard input, waits until it exits, and returns its exit status.
    ///
    /// # Panics
    /// If waitpid(2) fails.
    #[expect(clippy::expect_used, reason = "documented")]
    pub fn end(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().expect("cannot wait for the shell")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // No effect if it has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
