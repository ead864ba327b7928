//! A world of its own for a test: directories, a root file system, an embedded agent's configuration, and
//! a look at what is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::agent::{Agent, StartError};
use cofferdam::config::{ApiLimits, Config, FailPolicy, LauncherKind, Place, PluginConfig};
use cofferdam::container::{ContainerId, Request};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::paths;

/// Directories of a test's own, and the configuration of an agent in them.
pub struct World {
    directory: TempDir,
    /// What the agent is to be.
    pub config: Config,
}

impl World {
    /// A world in which an agent with the `linux` launcher and an empty chain would live.
    #[expect(clippy::new_without_default, reason = "it makes directories")]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let config = Config {
            file: None,
            runtime_dir: at("run"),
            work_dir: at("work"),
            socket: at("run/agent.sock"),
            plugin_dir: paths::build(),
            launcher: LauncherKind::Linux,
            cgroup_root: "cofferdam-test".into(),
            isolators: Vec::new(),
            logger: None,
            destroy_timeout: Duration::from_secs(30),
            api: ApiLimits { body: 1 << 20, idle: Duration::from_secs(60) },
            log: "info".into(),
            log_json: false,
        };
        Self { directory, config }
    }

    /// The shipped chain: what `examples/agent.toml` has, without the third party.
    pub fn shipped() -> Self {
        let mut world = Self::new();
        for name in
            ["filesystem/linux", "namespaces/pid", "cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem"]
        {
            world.add(name, json!({}));
        }
        world.config.logger = Some(entry("sandbox", json!({})));
        world
    }

    /// Adds an isolator to the end of the chain; its file is found by name.
    pub fn add(&mut self, name: &str, table: Json) -> &mut PluginConfig {
        self.config.isolators.push(entry(name, table));
        self.config.isolators.last_mut().expect("it was added a moment ago")
    }

    /// The test's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts an agent in this process.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn start(&self) -> Result<Agent, StartError> {
        Agent::start(self.config.clone()).await
    }

    /// A root file system of busybox and its links, as a folder of this world.
    pub fn rootfs(&self) -> PathBuf {
        let rootfs = self.directory.path().join("rootfs");
        if rootfs.exists() {
            return rootfs;
        }
        let bin = rootfs.join("bin");
        fs::create_dir_all(&bin).expect("a folder");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("/bin/busybox (package busybox-static)");
        for tool in [
            "sh", "true", "false", "cat", "echo", "ls", "sleep", "id", "kill", "dd", "ps", "touch", "grep",
            "head", "wc", "cut",
        ] {
            symlink("busybox", bin.join(tool)).expect("a link");
        }
        fs::create_dir_all(rootfs.join("etc")).expect("a folder");
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1234:1234::/:/bin/sh\n")
            .expect("a file");
        rootfs
    }

    /// What is left of containers in the kernel's tables and on the disk; empty after everything ended and
    /// was removed.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(self.cgroups().iter().map(|path| format!("cgroup: {}", path.display())));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let here = self.directory.path().display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&here)).map(|line| format!("mount: {line}")));
        for folder in ["run/containers", "work/containers", "work/scratch/containers"] {
            let listing = fs::read_dir(self.directory.path().join(folder));
            let entries = listing.into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("file: {}", entry.path().display())));
        }
        found
    }

    /// The control groups of this world's containers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_directories("/sys/fs/cgroup", &self.instance())
            .into_iter()
            .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// The name that keeps this agent's control groups apart from others'.
    fn instance(&self) -> String {
        cofferdam::agent::instance_of(&self.config.runtime_dir)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The agent's own, empty directories in each hierarchy.
        for path in cgroup_directories("/sys/fs/cgroup", &self.instance()) {
            drop(fs::remove_dir(path));
        }
    }
}

/// An entry of the chain.
pub fn entry(name: &str, table: Json) -> PluginConfig {
    PluginConfig {
        name: name.to_owned(),
        path: None,
        sha256: None,
        policy: FailPolicy::Required,
        deadlines: Default::default(),
        table,
        place: Place::default(),
    }
}

fn cgroup_directories(root: &str, instance: &str) -> Vec<PathBuf> {
    let Ok(hierarchies) = fs::read_dir(root) else { return Vec::new() };
    let mut roots: Vec<PathBuf> = hierarchies.flatten().map(|entry| entry.path()).collect();
    roots.push(PathBuf::from(root));
    roots
        .into_iter()
        .map(|hierarchy| hierarchy.join("cofferdam-test").join(instance))
        .filter(|path| path.is_dir())
        .collect()
}

/// A container id.
///
/// # Panics
/// When it is none.
pub fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).expect("a container id")
}

/// Runs a container to its end and answers its standard output.
///
/// # Panics
/// When it cannot be launched.
pub async fn run(agent: &Agent, request: Request) -> String {
    let id = request.id.clone();
    if let Err(error) = agent.launch(request).await {
        panic!("{}", cofferdam::report::chain(&error));
    }
    agent.wait(&id).await.expect("it was launched");
    let logs = agent.inspect(&id).expect("it was launched").logs;
    crate::text(&logs.stdout.expect("a log file"))
}
