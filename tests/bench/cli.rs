//! Our side as people use it: `cofferdam run`, with a daemon and without.

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
use crate::launch::Subject;
use crate::ours::{CPUS, MEM};
use crate::scene::{CGROUP, Scene};

/// Rows of the table.
pub const DAEMON: &str = "cofferdam run, daemon";
pub const ALONE: &str = "cofferdam run, no daemon";

/// How long a daemon may take to be ready.
const TIMEOUT: Duration = Duration::from_secs(20);

/// `cofferdam run`, which is one process for each container.
pub struct Cli {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    _daemon: Option<Daemon>,
}

struct Daemon {
    child: Child,
    /// Where it says how it is, to its end.
    listening: UnixDatagram,
}

impl Cli {
    /// Asks a daemon over its socket.
    pub fn daemon(scene: &Scene) -> Outcome<Self> {
        let config = configure(scene, "daemon")?;
        let program = program();
        let ready = scene.state().join("ready");
        let listening = UnixDatagram::bind(&ready)?;
        listening.set_read_timeout(Some(TIMEOUT))?;
        let mut command = Command::new(&program);
        command.args(["agent", "--log", "warn", "--config"]).arg(&config.file).env("NOTIFY_SOCKET", &ready);
        // Of a process group of its own, so that it outlives a Ctrl-C until we end it.
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let daemon = Daemon { child, listening };
        let mut said = [0; 64];
        let length =
            daemon.listening.recv(&mut said).map_err(|error| format!("`cofferdam agent`: {error}"))?;
        if !said[..length].starts_with(b"READY=1") {
            return Err("`cofferdam agent` does not get ready".into());
        }
        let door = ["--rm".to_owned(), "--socket".to_owned(), config.socket];
        Ok(Self { name: DAEMON, program, arguments: arguments(scene, &door), _daemon: Some(daemon) })
    }

    /// Is its own agent.
    pub fn alone(scene: &Scene) -> Outcome<Self> {
        let config = configure(scene, "alone")?;
        let door = ["--config".to_owned(), config.file];
        Ok(Self { name: ALONE, program: program(), arguments: arguments(scene, &door), _daemon: None })
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
fn configure(scene: &Scene, name: &str) -> Outcome<Configured> {
    let state = scene.state().join(name);
    let socket = state.join("agent.sock");
    let isolators =
        ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem"];
    let mut text = String::new();
    for (key, value) in [
        ("runtime_dir", json!(state)),
        ("work_dir", json!(scene.directory().join(name))),
        ("socket", json!(socket)),
        ("plugin_dir", json!(paths::build())),
        ("cgroup_root", json!(CGROUP)),
        ("launcher", json!("linux")),
    ] {
        // What JSON quotes, TOML reads.
        text += &format!("{key} = {value}\n");
    }
    for isolator in isolators {
        text += &format!("[[isolator]]\nname = \"{isolator}\"\n");
    }
    text += "[logger]\nname = \"sandbox\"\n";
    let file = scene.directory().join(format!("{name}.toml"));
    fs::write(&file, text)?;
    Ok(Configured { file: file.display().to_string(), socket: socket.display().to_string() })
}

fn arguments(scene: &Scene, door: &[String]) -> Vec<String> {
    let mut arguments = vec!["run".to_owned()];
    arguments.extend_from_slice(door);
    arguments.extend(["--cpus".into(), CPUS.to_string(), "--memory".into(), format!("{MEM}m")]);
    arguments.extend(["--rootfs".into(), scene.rootfs().display().to_string()]);
    arguments.extend(["--", "/bin/busybox", "true"].map(str::to_owned));
    arguments
}

impl Subject for Cli {
    fn name(&self) -> &str {
        self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let mut command = Command::new(&self.program);
        // Of a process group of its own, so that Ctrl-C reaches it through us, between two containers.
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
