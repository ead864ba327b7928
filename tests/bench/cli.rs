//! `cofferdam run`, with and without a daemon.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_tests::paths;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::Outcome;
use crate::embedded::{CPUS, MEM};
use crate::environment::{CGROUP, Environment};
use crate::launch::Subject;

/// Rows of the table.
pub const DAEMON: &str = "cofferdam run, daemon";
pub const ALONE: &str = "cofferdam run, no daemon";

/// How long a daemon may take to be ready.
const TIMEOUT: Duration = Duration::from_secs(20);

/// `cofferdam run`: one process for each container.
pub struct Cli {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    _daemon: Option<Daemon>,
}

struct Daemon {
    child: Child,
    /// Socket for its notifications, open until it ends.
    listening: UnixDatagram,
}

impl Cli {
    /// With a daemon.
    pub fn daemon(environment: &Environment) -> Outcome<Self> {
        let config = configure(environment, "daemon")?;
        let program = program();
        let ready = environment.state().join("ready");
        let listening = UnixDatagram::bind(&ready)?;
        listening.set_read_timeout(Some(TIMEOUT))?;
        let mut command = Command::new(&program);
        command.args(["agent", "--log", "warn", "--config"]).arg(&config.file).env("NOTIFY_SOCKET", &ready);
        // In its own process group, so that Ctrl-C does not end it before the benchmark does.
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let daemon = Daemon { child, listening };
        let mut message = [0; 64];
        let length =
            daemon.listening.recv(&mut message).map_err(|error| format!("`cofferdam agent`: {error}"))?;
        if !message[..length].starts_with(b"READY=1") {
            return Err("`cofferdam agent` is not ready".into());
        }
        let options = ["--rm".to_owned(), "--socket".to_owned(), config.socket];
        Ok(Self { name: DAEMON, program, arguments: arguments(environment, &options), _daemon: Some(daemon) })
    }

    /// Without a daemon.
    pub fn alone(environment: &Environment) -> Outcome<Self> {
        let config = configure(environment, "alone")?;
        let options = ["--config".to_owned(), config.file];
        Ok(Self {
            name: ALONE,
            program: program(),
            arguments: arguments(environment, &options),
            _daemon: None,
        })
    }
}

fn program() -> PathBuf {
    paths::build().join("cofferdam")
}

struct Configured {
    file: String,
    socket: String,
}

/// Writes the configuration of the shipped chain.
fn configure(environment: &Environment, name: &str) -> Outcome<Configured> {
    let state = environment.state().join(name);
    let socket = state.join("agent.sock");
    let isolators =
        ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem"];
    let mut text = String::new();
    for (key, value) in [
        ("runtime_dir", json!(state)),
        ("work_dir", json!(environment.directory().join(name))),
        ("socket", json!(socket)),
        ("plugin_dir", json!(paths::build())),
        ("cgroup_root", json!(CGROUP)),
        ("launcher", json!("linux")),
    ] {
        // A JSON string is a valid TOML string.
        text += &format!("{key} = {value}\n");
    }
    for isolator in isolators {
        text += &format!("[[isolator]]\nname = \"{isolator}\"\n");
    }
    text += "[logger]\nname = \"sandbox\"\n";
    let file = environment.directory().join(format!("{name}.toml"));
    fs::write(&file, text)?;
    Ok(Configured { file: file.display().to_string(), socket: socket.display().to_string() })
}

fn arguments(environment: &Environment, options: &[String]) -> Vec<String> {
    let mut arguments = vec!["run".to_owned()];
    arguments.extend_from_slice(options);
    arguments.extend(["--cpus".into(), CPUS.to_string(), "--memory".into(), format!("{MEM}m")]);
    arguments.extend(["--rootfs".into(), environment.rootfs().display().to_string()]);
    arguments.extend(["--", "/bin/busybox", "true"].map(str::to_owned));
    arguments
}

impl Subject for Cli {
    fn name(&self) -> &str {
        self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let mut command = Command::new(&self.program);
        // In its own process group, so that Ctrl-C takes effect between two containers.
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let started = Instant::now();
        let output = command.stderr(Stdio::piped()).output()?;
        let took = started.elapsed();
        match output.status.success() {
            true => Ok(took),
            false => Err(format!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim()).into()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let asked = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        if let Err(error) = asked.map_err(Into::into).and_then(|()| self.child.wait()) {
            eprintln!("bench: the daemon did not end: {error}");
        }
    }
}
