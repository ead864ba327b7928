//! Runs commands, including test binaries, in a guest (a virtual machine) with a full kernel.
//!
//! The scripts beside this file do the work; this module calls them and parses their results. If this machine cannot
//! run guests, the test fails with `CI=true` and otherwise is skipped, with a message that the test harness does not
//! capture.
#![allow(dead_code, reason = "each test binary that includes this module uses a different part of it")]

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Set to `1` for every command in a guest.
pub const INSIDE: &str = "COFFERDAM_GUEST";

/// Environment variables that a test needs to find its files and for diagnostics. The guest gets no others.
const PASSED_ON: [&str; 4] = ["CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG"];

/// The program that is process 1 of a guest with [`Guest::systemd`].
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Exit status of `prepare` if a package must be installed first.
const EX_UNAVAILABLE: i32 = 69;

/// Exit status of `run` if the guest ended without a status. A command can have the same, but then `run` prints
/// nothing.
const LOST: i32 = 124;

/// What is mounted at `/sys/fs/cgroup` when the command starts. No controller is enabled below the root yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// The unified hierarchy alone, with all controllers.
    V2,
    /// Every hierarchy of version 1, `cpu,cpuacct` and `net_cls,net_prio` together, and no unified one.
    V1,
    /// Nothing.
    None,
}

impl Hierarchy {
    fn as_str(self) -> &'static str {
        match self {
            Hierarchy::V2 => "v2",
            Hierarchy::V1 => "v1",
            Hierarchy::None => "none",
        }
    }
}

/// A guest, booted for each command. CPUs are emulated: starting processes takes about 30 times as long.
#[derive(Clone, Debug)]
pub struct Guest {
    pub cgroup: Hierarchy,
    /// Whether its first program is systemd, with [`Hierarchy::V2`]. The command is a service then.
    pub systemd: bool,
    pub cpus: u32,
    /// In MB, shared with the files that are written in the guest.
    pub memory: u32,
    /// Time after which the guest is killed.
    pub limit: Duration,
}

/// Result of a command in a guest.
#[derive(Debug)]
pub enum GuestOutcome {
    /// The command ended with `status`, 128 + N if signal N ended it. `output` is its standard output and error.
    Ended { status: i32, output: String },
    /// The guest crashed or reached its time limit. `diagnosis` says which, with the end of its console.
    Lost { output: String, diagnosis: String },
    /// This machine cannot run guests; `remedy` says what to do. Never returned with `CI=true`.
    Unavailable { remedy: String },
}

/// Whether this process runs in a guest, in which everything takes longer and no other guest can be booted.
pub fn inside() -> bool {
    env::var_os(INSIDE).is_some_and(|value| value == "1")
}

/// Runs `command` as root in a guest with 2 CPUs and 1 GB, for 10 minutes at most.
pub fn run(cgroup: Hierarchy, command: &[&str]) -> GuestOutcome {
    Guest::new(cgroup).run(command, &[])
}

impl Guest {
    pub fn new(cgroup: Hierarchy) -> Self {
        Self { cgroup, systemd: false, cpus: 2, memory: 1024, limit: Duration::from_secs(600) }
    }

    /// Boots the guest, prepared if necessary, and waits until `command` (program and arguments) has ended. It runs as
    /// root in the current working directory, with the files of this machine; its changes to them are lost.
    ///
    /// # Panics
    /// In a guest; if the scripts cannot be started; with `CI=true` if this machine cannot run guests.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S], env: &[(&str, &str)]) -> GuestOutcome {
        let mut run = match self.command(command, env) {
            Ok(run) => run,
            Err(remedy) => return unavailable(remedy),
        };
        let Output { status, stdout, stderr } = output(&mut run);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (output, diagnosis) = (text(stdout), text(stderr));
        match status.code() {
            Some(LOST) if !diagnosis.is_empty() => GuestOutcome::Lost { output, diagnosis },
            Some(status) => GuestOutcome::Ended { status, output },
            None => {
                GuestOutcome::Lost { output, diagnosis: format!("`run` ended with {status}\n{diagnosis}") }
            }
        }
    }

    /// The program that boots the guest for `command` and ends with its status, as [`Guest::run`]. It writes what
    /// `command` writes to its standard output and error, while it is written, to its standard output.
    ///
    /// # Errors
    /// What must be installed first.
    ///
    /// # Panics
    /// In a guest; if the scripts cannot be started.
    pub fn command<S: AsRef<OsStr>>(&self, command: &[S], env: &[(&str, &str)]) -> Result<Command, String> {
        assert!(
            !inside(),
            "a guest cannot boot another guest: skip this test there, or return if `inside()`"
        );
        prepare()?;
        if self.systemd && !Path::new(SYSTEMD).exists() {
            return Err(format!(
                "there is no {SYSTEMD}\ninstall it: apt-get install --no-install-recommends systemd"
            ));
        }
        let mut run = ending_with_parent(&script("run"));
        run.args(["--cgroup", self.cgroup.as_str()])
            .args(["--cpus", &self.cpus.to_string()])
            .args(["--memory", &self.memory.to_string()])
            .args(["--limit", &self.limit.as_secs().max(1).to_string()])
            .args(["--env", &format!("{INSIDE}=1")]);
        if self.systemd {
            run.arg("--systemd");
        }
        for name in PASSED_ON {
            run.args(["--env", name]);
        }
        for (name, value) in env {
            run.args(["--env", &format!("{name}={value}")]);
        }
        run.arg("--").args(command);
        Ok(run)
    }

    /// Like [`Guest::run`], for test binaries, one after the other in one guest.
    pub fn run_test_binaries(&self, binaries: &[TestBinary], env: &[(&str, &str)]) -> GuestOutcome {
        let mut command: Vec<OsString> = ["sh", "-c", EACH, "sh"].map(OsString::from).into();
        for TestBinary { executable, directory, arguments } in binaries {
            command.extend([directory.into(), executable.into(), arguments.join(" ").into()]);
        }
        self.run(&command, env)
    }
}

/// A test binary to run in a guest.
#[derive(Debug, Clone)]
pub struct TestBinary {
    pub executable: PathBuf,
    /// Of its package, in which it runs.
    pub directory: PathBuf,
    /// For libtest, without spaces.
    pub arguments: Vec<String>,
}

/// Runs test binaries one after the other, each given by three arguments. One that fails does not hide others.
const EACH: &str = r#"
failed=0
while [ $# -gt 0 ]; do
    printf '\n== %s %s\n' "$2" "$3"
    # The third is several words.
    (cd "$1" && CARGO_MANIFEST_DIR=$1 exec "$2" $3) || failed=1
    shift 3
done
exit $failed
"#;

impl TestBinary {
    /// The one that runs.
    pub fn current(arguments: &[&str]) -> Self {
        Self {
            executable: env::current_exe().expect("a test binary has a path"),
            directory: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            arguments: arguments.iter().map(ToString::to_string).collect(),
        }
    }
}

impl GuestOutcome {
    /// The output of a successful command; `None` if no guest could be booted.
    ///
    /// # Panics
    /// If the command failed, or the guest crashed or timed out.
    pub fn success(self) -> Option<String> {
        match self {
            GuestOutcome::Ended { status: 0, output } => Some(output),
            GuestOutcome::Ended { status, output } => {
                panic!("the command ended with status {status} in its guest; it wrote:\n{output}")
            }
            GuestOutcome::Lost { output, diagnosis } => {
                panic!("the guest crashed or timed out: {diagnosis}\noutput of its command:\n{output}")
            }
            GuestOutcome::Unavailable { .. } => None,
        }
    }

    /// How many tests of each test binary passed; `None` if no guest could be booted.
    ///
    /// # Panics
    /// If a test failed, the guest crashed or timed out, or no test ran: a filter without matches is not a success.
    pub fn tests_passed(self) -> Option<Vec<usize>> {
        let output = self.success()?;
        let counts = passed(&output);
        assert!(!counts.is_empty() && !counts.contains(&0), "no test passed in the guest:\n{output}");
        Some(counts)
    }
}

/// Parses the last line of each libtest, such as `test result: ok. 3 passed; 0 failed; …`.
fn passed(output: &str) -> Vec<usize> {
    let results = output.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|result| result.split_once(" passed;")?.0.parse().ok()).collect()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest").join(name)
}

/// Prepares guests. The error says what must be installed or fetched first.
fn prepare() -> Result<(), String> {
    let Output { status, stderr, .. } = output(&mut ending_with_parent(&script("prepare")));
    let message = String::from_utf8_lossy(&stderr).into_owned();
    match status.code() {
        Some(0) => Ok(()),
        Some(EX_UNAVAILABLE) => Err(message),
        _ => panic!("`prepare` ended with {status}:\n{message}"),
    }
}

/// A command that gets SIGTERM when the thread that starts it ends, so that a killed test leaves no guest behind.
fn ending_with_parent(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program).stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

fn unavailable(remedy: String) -> GuestOutcome {
    if env::var_os("CI").is_some_and(|value| value == "true") {
        panic!("this test needs a guest, which cannot be booted on this machine:\n{remedy}");
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Unlike `eprintln!`, this is not captured when the test passes. An error cannot be reported.
    writeln!(
        std::io::stderr(),
        "\nSKIPPED: {test} needs a guest, which cannot be booted on this machine:\n{remedy}"
    )
    .ok();
    GuestOutcome::Unavailable { remedy }
}

#[cfg(test)]
mod tests {
    #[allow(unused_imports, reason = "a benchmark that includes this module has no test harness")]
    use super::*;

    #[test]
    fn counts_only_tests_that_passed() {
        let two = "test a ... ok\n\ntest result: ok. 12 passed; 0 failed; 1 ignored;\n\ntest result: ok. 3 passed; 0 failed;\n";
        assert_eq!(passed(two), [12, 3]);
        assert!(passed("test result: FAILED. 1 passed; 1 failed;").is_empty());
        assert!(passed("killed").is_empty());
    }

    #[test]
    fn status_and_output_are_returned() {
        if inside() {
            return;
        }
        let script = "echo out; echo err >&2; cat /sys/fs/cgroup/cgroup.controllers; exit 124";
        match run(Hierarchy::V2, &["sh", "-c", script]) {
            GuestOutcome::Ended { status: 124, output } => {
                let lines: Vec<&str> = output.lines().collect();
                let [out, err, controllers] = lines[..] else { panic!("expected three lines: {output}") };
                assert_eq!((out, err), ("out", "err"));
                for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
                    assert!(
                        controllers.split(' ').any(|had| had == controller),
                        "no `{controller}` in {controllers}"
                    );
                }
            }
            GuestOutcome::Unavailable { .. } => {}
            other => panic!("expected status 124: {other:?}"),
        }
    }

    #[test]
    fn a_crash_differs_from_a_status() {
        if inside() {
            return;
        }
        match run(Hierarchy::None, &["sh", "-c", "echo c >/proc/sysrq-trigger"]) {
            GuestOutcome::Lost { diagnosis, .. } => {
                assert!(diagnosis.contains("Kernel panic"), "{diagnosis}");
            }
            GuestOutcome::Unavailable { .. } => {}
            other => panic!("expected a crash: {other:?}"),
        }
    }
}
