//! `cofferdam run`, with and without a daemon.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam::config::Isolation;
use cofferdam_tests::paths;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::predefined;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use serde_json::json;

use crate::Outcome;
use crate::embedded::{CPUS, MEM};
use crate::environment::{CGROUP, Environment, is_memory};
use crate::launch::{Reference, Subject};
use crate::mount_namespace::MountNamespace;

/// Rows of the table.
pub const DAEMON: &str = "cofferdam run, daemon";
pub const PRIVILEGED_DAEMON: &str = "cofferdam run, daemon, isolation mesos";
pub const PRIVILEGED_ALONE: &str = "cofferdam run, no daemon, isolation mesos";
pub const ALONE: &str = "cofferdam run, no daemon";
pub const MANY: &str = "cofferdam run, no daemon, 25 plugins";

/// Isolators and the logger of the longer chain.
const MANY_PLUGINS: usize = 25;

/// Parent of the runtime directories of agents that run in `cofferdam run`.
const RUNTIME: &str = "/run/cofferdam-run";

/// Parent of their work directories, and its parent.
const WORK: [&str; 2] = ["/var/lib/cofferdam-run", "/var/lib"];

/// How long a daemon may take to be ready.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What containers have as their root file system.
#[derive(Clone, Copy)]
pub enum Root<'a> {
    /// The directory of all other runtimes.
    Directory,
    /// An image in a store.
    Image { store: &'a Path, name: &'a str },
}

impl Root<'_> {
    /// Name of the directories of an agent.
    fn directory(self, name: &str) -> String {
        match self {
            Self::Directory => name.to_owned(),
            Self::Image { .. } => format!("image-{name}"),
        }
    }
}

/// `cofferdam run`: one process for each container.
pub struct Cli {
    name: &'static str,
    program: PathBuf,
    /// Those that say which agent it is.
    options: Vec<String>,
    arguments: Vec<String>,
    /// In which its runtime directory is in memory, and its work directory not on an overlay, where that is not so.
    namespace: Option<MountNamespace>,
    _daemon: Option<Daemon>,
}

struct Daemon {
    child: Child,
    /// Socket for its notifications, open until it ends.
    listening: UnixDatagram,
}

impl Cli {
    /// With a daemon.
    pub fn daemon(environment: &Environment, root: Root<'_>, isolation: Isolation) -> Outcome<Self> {
        let (name, directory) = match isolation {
            Isolation::Mesos => (PRIVILEGED_DAEMON, "daemon-mesos"),
            _ => (DAEMON, "daemon"),
        };
        let config = configure(environment, directory, root, &paths::build(), isolation, &[])?;
        let program = program();
        let ready = environment.state().join(root.directory(&format!("{directory}-ready")));
        // Of an earlier one.
        drop(fs::remove_file(&ready));
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
        Ok(Self {
            name,
            program,
            arguments: arguments(environment, root, &options),
            options: options.into(),
            namespace: None,
            _daemon: Some(daemon),
        })
    }

    /// Without a daemon.
    pub fn alone(environment: &Environment, root: Root<'_>, isolation: Isolation) -> Outcome<Self> {
        let (name, directory) = match isolation {
            Isolation::Mesos => (PRIVILEGED_ALONE, "alone-mesos"),
            _ => (ALONE, "alone"),
        };
        let config = configure(environment, directory, root, &paths::build(), isolation, &[])?;
        Self::with_config(name, environment, root, config)
    }

    /// Without a daemon, with a longer chain: the shipped plugins and plugins that do nothing.
    pub fn many(environment: &Environment) -> Outcome<Self> {
        let directory = environment.directory().join("plugins");
        fs::create_dir(&directory)?;
        for entry in fs::read_dir(paths::build())? {
            let (path, name) = {
                let entry = entry?;
                (entry.path(), entry.file_name())
            };
            if name.to_string_lossy().starts_with("libcofferdam_")
                && path.extension().is_some_and(|end| end == "so")
            {
                fs::copy(&path, directory.join(name))?;
            }
        }
        let noop = fs::read(paths::build().join("libbench_noop.so"))?;
        let shipped = predefined(Isolation::Docker).len() + 1;
        let extra: Vec<String> = (shipped..MANY_PLUGINS).map(|n| format!("bench/n{n:03}")).collect();
        for name in &extra {
            let file = format!("lib{}.so", name.replace('/', "_"));
            fs::write(directory.join(file), renamed(&noop, "bench/noop", name)?)?;
        }
        let config = configure(environment, "many", Root::Directory, &directory, Isolation::Docker, &extra)?;
        Self::with_config(MANY, environment, Root::Directory, config)
    }

    fn with_config(
        name: &'static str,
        environment: &Environment,
        root: Root<'_>,
        config: Configured,
    ) -> Outcome<Self> {
        let options = ["--config".to_owned(), config.file];
        fs::create_dir_all(RUNTIME)?;
        let mut in_memory = Vec::new();
        if !is_memory(Path::new(RUNTIME)) {
            in_memory.push(RUNTIME);
        }
        // As in the virtual machine. Containers have overlays, and these cannot have an upper layer on another one.
        let [work, parent] = WORK;
        if statfs(parent)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
            fs::create_dir_all(work)?;
            in_memory.push(work);
        }
        let mounts = || {
            for directory in &in_memory {
                mount(Some("tmpfs"), *directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0711"))?;
            }
            Ok(())
        };
        let namespace = if in_memory.is_empty() { None } else { Some(MountNamespace::new(mounts)?) };
        let arguments = arguments(environment, root, &options);
        Ok(Self { name, program: program(), options: options.into(), arguments, namespace, _daemon: None })
    }

    /// Runs a container at a terminal. `command` are further options, and the command.
    pub fn at_terminal(&self, command: &[&str]) -> Outcome<Terminal> {
        let options = self.options.iter().map(String::as_str);
        let arguments: Vec<&str> =
            ["run", "-it"].into_iter().chain(options).chain(command.iter().copied()).collect();
        let start = || Ok(Terminal::run(&self.program, &arguments, &[]));
        match &self.namespace {
            Some(namespace) => namespace.run(start),
            None => start(),
        }
    }

    fn run(&self) -> Outcome<Duration> {
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

/// A plugin's file with another name of the same length in its manifest.
fn renamed(file: &[u8], from: &str, to: &str) -> Outcome<Vec<u8>> {
    let mut bytes = file.to_owned();
    let places: Vec<usize> =
        (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    if places.is_empty() || from.len() != to.len() {
        return Err(format!("plugin `{from}` cannot be renamed to `{to}`").into());
    }
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    Ok(bytes)
}

fn program() -> PathBuf {
    paths::build().join("cofferdam")
}

struct Configured {
    file: String,
    socket: String,
}

/// Writes a configuration.
fn configure(
    environment: &Environment,
    name: &str,
    root: Root<'_>,
    plugin_dir: &Path,
    isolation: Isolation,
    extra: &[String],
) -> Outcome<Configured> {
    let name = root.directory(name);
    let state = environment.state().join(&name);
    let socket = state.join("agent.sock");
    let mut text = String::new();
    for (key, value) in [
        ("runtime_dir", json!(state)),
        ("work_dir", json!(environment.directory().join(&name))),
        ("socket", json!(socket)),
        ("plugin_dir", json!(plugin_dir)),
        ("cgroup_root", json!(CGROUP)),
        ("launcher", json!("linux")),
    ] {
        // A JSON string is a valid TOML string.
        text += &format!("{key} = {value}\n");
    }
    if let Root::Image { store, .. } = root {
        text += &format!("image_store = {}\n", json!(store));
    }
    text += isolation.text();
    for isolator in extra {
        text += &format!("[[isolator]]\nname = \"{isolator}\"\n");
    }
    let file = environment.directory().join(format!("{name}.toml"));
    fs::write(&file, text)?;
    Ok(Configured { file: file.display().to_string(), socket: socket.display().to_string() })
}

fn arguments(environment: &Environment, root: Root<'_>, options: &[String]) -> Vec<String> {
    let mut arguments = vec!["run".to_owned()];
    arguments.extend_from_slice(options);
    arguments.extend(["--cpus".into(), CPUS.to_string(), "--memory".into(), format!("{MEM}m")]);
    match root {
        Root::Directory => {
            arguments.extend(["--rootfs".into(), environment.rootfs().display().to_string()]);
        }
        Root::Image { name, .. } => arguments.extend(["--image".into(), name.to_owned()]),
    }
    arguments.extend(["--", "/bin/busybox", "true"].map(str::to_owned));
    arguments
}

impl Subject for Cli {
    fn name(&self) -> &str {
        self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        match &self.namespace {
            Some(namespace) => namespace.run(|| self.run()),
            None => self.run(),
        }
    }

    fn compared_to(&self) -> Vec<Reference> {
        vec![Reference::Runtimes]
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
