//! Container engines that ours is compared with: docker with a daemon of its own, and podman. Their sockets, directories,
//! mounts and the journal that they log to are private.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_linux::cgroup::Layout;
use cofferdam_linux::process::{Stat, children_of};
use cofferdam_tests::engine::{Engine, IMAGE, has_engine};
use cofferdam_tests::journal::Journal;
use cofferdam_tests::terminal::Terminal;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::engine::{locate, name_and_version};
use crate::environment::{CGROUP, Environment};
use crate::mount_namespace::MountNamespace;
use crate::report::Report;
use crate::{Options, Outcome, commands, loggers, terminals};

/// Names of their clients, with which the names of their subjects begin.
pub const DOCKER: &str = "docker";
pub const PODMAN: &str = "podman";

/// The image of podman's containers.
const PODMAN_IMAGE: &str = "localhost/cofferdam-bench-busybox:1";

/// How long processes of podman may take to end after the last container was removed.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Measures our command line beside those of the engines.
pub fn measure(environment: &Environment, options: &Options, seed: u32, report: &mut Report) -> Outcome<()> {
    let names = commands::NAMES.iter().chain(&loggers::NAMES).chain(&terminals::NAMES);
    if !names.into_iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let engines = Engines::start(environment, options)?;
    engines.describe(report)?;
    commands::measure(environment, &engines, options, seed, report)?;
    loggers::measure(environment, &engines, options, seed, report)?;
    terminals::measure(environment, &engines, options, seed, report)
}

/// The engines that are installed.
pub struct Engines {
    /// In the order of the tables.
    clients: Vec<Client>,
    /// `None` if there is no program of that name.
    pub journal: Option<Journal>,
    // Dropped after the client of podman, which may need it.
    _docker: Option<Engine>,
}

/// The client of an engine, with which its containers are managed.
pub struct Client {
    pub name: &'static str,
    /// Arguments of each call.
    global: Vec<OsString>,
    /// Further ones of `run`.
    options: Vec<String>,
    image: &'static str,
    /// The daemon, if the engine has one.
    daemon: Option<i32>,
    /// Directory of its files. `None` if they are removed by the engine.
    directory: Option<PathBuf>,
    /// In which all of its processes are.
    namespace: Arc<MountNamespace>,
}

impl Engines {
    fn start(environment: &Environment, options: &Options) -> Outcome<Self> {
        let wants = |engine: &str| {
            let is_of = |wanted: &String| wanted.starts_with(engine) || engine.starts_with(wanted.as_str());
            options.subject.is_empty() || options.subject.iter().any(is_of)
        };
        let mut journal = None;
        if Journal::is_installed() {
            journal.insert(Journal::new()).start();
        } else {
            eprintln!("bench: SKIPPED journald: not installed (Debian package systemd)");
        }
        let socket = journal.as_ref().map(Journal::socket);
        let namespace = Arc::new(namespace(environment, socket)?);
        let mut clients = Vec::new();
        let mut docker = None;
        if wants(DOCKER) && has_engine() {
            let started = namespace.run(|| Ok(Engine::start()))?;
            clients.push(Client::docker(&started, &namespace));
            docker = Some(started);
        }
        if wants(PODMAN) {
            match locate(Path::new(PODMAN)) {
                Some(_) => clients.extend(Client::podman(environment, &namespace)?),
                None => eprintln!("bench: SKIPPED podman: not installed (Debian package podman)"),
            }
        }
        Ok(Self { clients, journal, _docker: docker })
    }

    fn describe(&self, report: &mut Report) -> Outcome<()> {
        for client in &self.clients {
            report.fact(client.name, name_and_version(Path::new(client.name))?);
        }
        if let Some(docker) = self.client(DOCKER) {
            report.fact("engine of docker", docker.call(&["version", "--format", "{{.Server.Version}}"])?);
        }
        if let Some(podman) = self.client(PODMAN) {
            report
                .fact("runtime of podman", podman.call(&["info", "--format", "{{.Host.OCIRuntime.Name}}"])?);
        }
        Ok(())
    }

    /// All of them.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// The one of this name.
    pub fn client(&self, name: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.name == name)
    }
}

/// The mount namespace of all engines: with state of their own in memory, the private journal, and, on a host that also has
/// v1, without v2, as that is what crun needs there.
fn namespace(environment: &Environment, journal: Option<PathBuf>) -> Outcome<MountNamespace> {
    let unified = environment.cgroups.unified.as_ref().map(|unified| unified.mount.clone());
    let hidden = unified.filter(|_| environment.cgroups.layout() == Layout::Hybrid);
    MountNamespace::new(move || {
        for directory in ["/run", "/dev/shm"] {
            mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
        }
        if let Some(journal) = journal {
            const SOCKET: &str = "/run/systemd/journal/socket";
            fs::create_dir_all("/run/systemd/journal")?;
            fs::write(SOCKET, "")?;
            mount(Some(&journal), SOCKET, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        if let Some(hidden) = hidden {
            umount2(&hidden, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    })
}

impl Client {
    fn docker(engine: &Engine, namespace: &Arc<MountNamespace>) -> Self {
        let host = format!("unix://{}", engine.socket().display());
        Self {
            name: DOCKER,
            global: vec!["--host".into(), host.into()],
            options: Vec::new(),
            image: IMAGE,
            daemon: Some(engine.pid()),
            directory: None,
            namespace: Arc::clone(namespace),
        }
    }

    /// `None`, with a message, if it does not work on this machine.
    fn podman(environment: &Environment, namespace: &Arc<MountNamespace>) -> Outcome<Option<Self>> {
        let directory = environment.directory().join(PODMAN);
        fs::create_dir(&directory)?;
        let mut global: Vec<OsString> = vec!["--root".into(), directory.join("root").into()];
        global.extend(
            [
                ["--runroot", "/run/podman-root"],
                ["--tmpdir", "/run/podman-tmp"],
                ["--storage-driver", "overlay"],
                ["--cgroup-manager", "cgroupfs"],
                ["--events-backend", "file"],
            ]
            .concat()
            .into_iter()
            .map(OsString::from),
        );
        // Its default limits are higher than a machine may permit.
        let options = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--cgroup-parent"];
        let mut options = options.map(str::to_owned).to_vec();
        options.push(format!("/{CGROUP}/{PODMAN}"));
        let podman = Self {
            name: PODMAN,
            global,
            options,
            image: PODMAN_IMAGE,
            daemon: None,
            directory: Some(directory.clone()),
            namespace: Arc::clone(namespace),
        };
        let tar = directory.join("rootfs.tar");
        let packed =
            Command::new("tar").arg("-C").arg(environment.rootfs()).arg("-cf").arg(&tar).arg(".").status()?;
        if !packed.success() {
            return Err(format!("`tar` of a root file system: {packed}").into());
        }
        let tried = podman.call(&["import", &tar.display().to_string(), PODMAN_IMAGE]).and_then(|_| {
            podman.call(&podman.run(&["--rm", "--network", "host"], &["/bin/busybox", "true"]))
        });
        match tried {
            Ok(_) => Ok(Some(podman)),
            Err(error) => {
                eprintln!("bench: SKIPPED {error}");
                Ok(None)
            }
        }
    }

    /// The arguments that run a container of the image.
    pub fn run<'a>(&'a self, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let own = self.options.iter().map(String::as_str);
        ["run"]
            .into_iter()
            .chain(own)
            .chain(options.iter().copied())
            .chain([self.image])
            .chain(command.iter().copied())
            .collect()
    }

    /// Calls it. Returns what it prints.
    pub fn call(&self, arguments: &[&str]) -> Outcome<String> {
        Ok(self.timed_call(arguments)?.0)
    }

    /// Calls it. Returns how long that took.
    pub fn timed(&self, arguments: &[&str]) -> Outcome<Duration> {
        Ok(self.timed_call(arguments)?.1)
    }

    fn timed_call(&self, arguments: &[&str]) -> Outcome<(String, Duration)> {
        self.namespace.run(|| {
            let mut command = Command::new(self.name);
            // In its own process group, so that Ctrl-C takes effect between two calls.
            command.args(&self.global).args(arguments).stdin(Stdio::null()).process_group(0);
            let started = Instant::now();
            let output = command.output()?;
            let took = started.elapsed();
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr);
                let what = arguments.first().unwrap_or(&"");
                return Err(format!("{} {what}: {}: {}", self.name, output.status, why.trim()).into());
            }
            Ok((String::from_utf8_lossy(&output.stdout).trim().to_owned(), took))
        })
    }

    /// Runs it at a terminal.
    pub fn at_terminal(&self, arguments: &[&str]) -> Outcome<Terminal> {
        let global: Vec<String> =
            self.global.iter().map(|argument| argument.to_string_lossy().into()).collect();
        let all: Vec<&str> = global.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.namespace.run(|| Ok(Terminal::run(Path::new(self.name), &all, &[])))
    }

    /// A value that `inspect` has of a container, by a template.
    pub fn inspect(&self, container: &str, template: &str) -> Outcome<String> {
        self.call(&["inspect", "--type", "container", "--format", template, container])
    }

    /// The first process of a running container.
    pub fn first_process(&self, container: &str) -> Outcome<i32> {
        Ok(self.inspect(container, "{{.State.Pid}}")?.parse()?)
    }

    /// The process that holds the streams of a container and waits for its end, by its first process.
    pub fn monitor(&self, first: i32) -> Outcome<i32> {
        Ok(Stat::read(first)?.parent)
    }

    /// The processes that serve all containers.
    pub fn daemons(&self) -> Outcome<Vec<i32>> {
        let Some(daemon) = self.daemon else { return Ok(Vec::new()) };
        Ok([daemon].into_iter().chain(children_of(daemon)?).collect())
    }

    /// Ends and removes a container.
    pub fn remove(&self, container: &str) -> Outcome<()> {
        self.call(&["rm", "--force", container]).map(drop)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Some(directory) = &self.directory else { return };
        if let Err(error) = self.call(&["rm", "--force", "--all"]) {
            eprintln!("bench: containers may be left: {error}");
        }
        // What follows the end of a container may not have ended yet.
        let deadline = Instant::now() + TIMEOUT;
        while is_used(directory) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether a directory is named in the command line of a process.
fn is_used(directory: &Path) -> bool {
    let wanted = directory.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.windows(wanted.len()).any(|part| part == wanted))
}
