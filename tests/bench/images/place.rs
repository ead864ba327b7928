//! Where a program under comparison runs: directories, a cgroup and a mount namespace that no other has.
//!
//! What it mounts is gone with the namespace, and its memory is that of the processes in the cgroup.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_linux::cgroup::Cgroup;

use super::daemon::Daemon;
use crate::Outcome;
use crate::environment::{CGROUP, Environment};
use crate::mount_namespace::MountNamespace;

/// Joins the cgroup `$0`, and becomes the program in the other arguments.
const JOIN: &str = r#"echo 0 >"$0/cgroup.procs" && exec "$@""#;

/// Where a program runs.
pub struct Place {
    directory: PathBuf,
    cgroup: Cgroup,
    containers: String,
    namespace: MountNamespace,
}

impl Place {
    /// Creates one. `name` has no slash.
    pub fn create(environment: &Environment, name: &str) -> Outcome<Self> {
        let directory = environment.directory().join("images").join(name);
        fs::create_dir_all(directory.join("tmp"))?;
        let relative = Path::new(CGROUP).join(format!("images-{name}"));
        let cgroups = &environment.cgroups;
        let cgroup = cgroups.unified(&relative).or_else(|| cgroups.cgroup("freezer", &relative));
        let cgroup = cgroup.ok_or("neither cgroup v2 nor the v1 freezer is mounted")?;
        fs::create_dir_all(cgroup.path())?;
        let namespace = MountNamespace::new(|| Ok(()))?;
        Ok(Self { directory, cgroup, containers: format!("/{CGROUP}/images-{name}-containers"), namespace })
    }

    /// A path that only this program uses.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its cgroup, which daemons and [`Self::joined`] commands run in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The cgroup that its containers are to be below, as a path from the top of every hierarchy.
    pub fn containers(&self) -> &str {
        &self.containers
    }

    /// A command with files of its own, which ignores proxies and the credentials of whoever runs the benchmark.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("TMPDIR", self.path("tmp")).env("NO_PROXY", "*").env("HOME", &self.directory);
        for variable in ["COFFERDAM_SOCKET", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_HOST"] {
            command.env_remove(variable);
        }
        // In its own process group, so that Ctrl-C takes effect between two commands.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command
    }

    /// The same command, in the cgroup from its start on.
    pub fn joined(&self, command: &Command) -> Command {
        let mut shell = self.command("sh");
        shell.args(["-c", JOIN]).arg(self.cgroup.path()).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }

    /// Runs a command until it ends.
    pub fn run(&self, mut command: Command) -> Outcome<Duration> {
        self.namespace.run(move || {
            command.stderr(Stdio::piped());
            let started = Instant::now();
            let output = command.output().map_err(|error| failed(&command, error))?;
            let took = started.elapsed();
            match output.status.success() {
                true => Ok(took),
                false => Err(failed(&command, String::from_utf8_lossy(&output.stderr).trim()).into()),
            }
        })
    }

    /// Runs a command and returns its output.
    pub fn output(&self, mut command: Command) -> Outcome<String> {
        self.namespace.run(move || {
            let output = command.stdout(Stdio::piped()).output().map_err(|error| failed(&command, error))?;
            match output.status.success() {
                true => Ok(String::from_utf8(output.stdout)?),
                false => Err(failed(&command, output.status).into()),
            }
        })
    }

    /// Starts a daemon, and waits until it listens on a socket. What it prints is in the file `log`.
    pub fn start(&self, command: &Command, socket: &Path) -> Outcome<Daemon> {
        let mut command = self.joined(command);
        let log = self.path("log");
        let file = fs::File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        self.namespace.run(|| Daemon::start(command, socket, &log))
    }

    /// Waits until all that was written and removed is on disk, so that it is not written during the next turn.
    pub fn write_back(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.directory)?)?)
    }
}

fn failed(command: &Command, why: impl std::fmt::Display) -> String {
    format!("{command:?}: {why}")
}
