//! Processes for tests of plugins.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// A shell that stands for a container's command; killed with the value.
///
/// Its script prints `ready` on a line of its own when the test may go on; `read end` waits for [`Shell::end`].
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
    /// If it cannot be started, or prints anything else.
    #[must_use]
    pub fn spawn(script: &str) -> Self {
        Self::spawn_in(&[], script)
    }

    /// Like [`Shell::spawn`], in cgroups that it joins before the script begins: directories with a `cgroup.procs`.
    ///
    /// # Panics
    /// If it cannot be started, or prints anything but `ready`.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the test cannot go on")]
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
            .expect("a shell");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its first line");
        let shell = Self { child, output };
        assert_eq!(line, "ready\n", "the first line of `{script}`");
        shell
    }

    /// Its pid.
    ///
    /// # Panics
    /// If it is not a positive number of 32 bits, which the kernel rules out.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the kernel rules it out")]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Whether it is still running.
    ///
    /// # Panics
    /// If the kernel cannot tell.
    #[expect(clippy::expect_used, reason = "the test cannot go on")]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }

    /// The next line that it prints, without the line break; empty at the end of its output.
    ///
    /// # Panics
    /// If it cannot be read.
    #[expect(clippy::expect_used, reason = "the test cannot go on")]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line of the shell");
        line.trim_end_matches('\n').to_owned()
    }

    /// Closes its input, waits until it exits, and returns how.
    ///
    /// # Panics
    /// If it cannot be waited for.
    #[expect(clippy::expect_used, reason = "the test cannot go on")]
    pub fn end(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().expect("its status")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Without effect after `end`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
