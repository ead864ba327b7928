//! The environment of a test: directories, a root file system, the configuration of an agent, and a check for
//! leftovers.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use cofferdam::config::Isolation;
use cofferdam_core::agent::{Agent, StartError};
use cofferdam_core::config::{AgentConfig, ContainerizerConfig, FailPolicy, LauncherKind, PluginConfig};
use cofferdam_core::containerizer::NativeRecord;
use cofferdam_core::error_chain::describe;
use cofferdam_core::ledger::nested_directory;
use cofferdam_core::model::Record;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_init::client::Statuses;
use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_linux::process::Process;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::paths;

/// The token of the API over TCP, if `config.executors.endpoint` is set.
pub const TOKEN: &str = "dGhlIHRva2VuIG9mIHRoZSBvcGVyYXRvciBBUEkgaW4gdGVzdHM=";

/// Directories of one test, and the configuration of an agent in them.
pub struct World {
    directory: TempDir,
    /// Kept for as long as an agent may use it.
    plugin_store: Option<Arc<TempDir>>,
    /// Configuration of the agent.
    pub config: AgentConfig,
    /// A configuration file whose chain agents use that run as a program, instead of that of `config`.
    pub chain: Option<String>,
    /// `api.max_body`; the default if `None`.
    pub max_body: Option<String>,
    /// `default_container_info` of agents that run as a program.
    pub default_container_info: Option<Json>,
    /// `socket_group` and `socket_mode`; the defaults if `None`.
    pub socket_access: Option<(String, String)>,
}

impl World {
    /// With the `linux` launcher and an empty chain.
    #[expect(clippy::new_without_default, reason = "it creates directories")]
    pub fn new() -> Self {
        let directory = temporary_directory();
        let config = AgentConfig {
            plugin_dir: paths::build(),
            cgroup_root: "cofferdam-test".into(),
            destroy_timeout: Duration::from_secs(30),
            fetcher: Some(vec![paths::program(), "fetch".into()]),
            ..AgentConfig::new(directory.path(), LauncherKind::Linux)
        };
        Self {
            directory,
            plugin_store: None,
            config,
            chain: None,
            max_body: None,
            default_container_info: None,
            socket_access: None,
        }
    }

    /// With the chain of agents for root that are not told another one.
    pub fn shipped() -> Self {
        Self::with_isolation(Isolation::Docker)
    }

    /// With a chain in which root in a container has the privileges of root on the host.
    pub fn privileged() -> Self {
        Self::with_isolation(Isolation::Mesos)
    }

    fn with_isolation(isolation: Isolation) -> Self {
        let mut world = Self::new();
        world.config.isolators = predefined(isolation);
        world.config.logger = Some(sandbox_logger());
        world.share_plugin_store();
        world
    }

    /// Shares the private copies of plugin files with other worlds of this process. A copy that was loaded takes memory
    /// until the process ends, which on a virtual machine is short if every world has copies of its own.
    pub fn share_plugin_store(&mut self) {
        static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().expect("no panic while it is locked");
        let store = shared.upgrade().unwrap_or_else(|| Arc::new(temporary_directory()));
        *shared = Arc::downgrade(&store);
        self.config.plugin_store = Some(store.path().to_owned());
        self.plugin_store = Some(store);
    }

    /// Adds an isolator to the end of the chain; its file is found by name.
    pub fn add(&mut self, name: &str, table: Json) -> &mut PluginConfig {
        self.config.isolators.push(entry(name, table));
        self.config.isolators.last_mut().expect("it was just added")
    }

    /// The test's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The socket of an agent that is started from the written configuration.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }

    /// Starts an agent in this process.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&self) -> Result<Agent, StartError> {
        Agent::start(self.config.clone()).await
    }

    /// With the `posix` launcher and the chain for users without privileges.
    pub fn posix() -> Self {
        let mut world = Self::new();
        world.config.launcher = LauncherKind::Posix;
        world.add("posix/cpu", json!({}));
        world.add("posix/mem", json!({}));
        world.config.logger = Some(entry("sandbox", json!({})));
        world.share_plugin_store();
        world
    }

    /// Writes the configuration to a file, as an operator would.
    pub fn write_config(&self) -> PathBuf {
        let config = &self.config;
        let plugin = |plugin: &PluginConfig| {
            let mut table = json!({ "name": plugin.name, "config": plugin.table });
            if let Some(path) = &plugin.path {
                table["path"] = json!(path);
            }
            if plugin.policy == FailPolicy::Optional {
                table["policy"] = json!("optional");
            }
            if !plugin.timeouts.is_empty() {
                let timeouts = plugin.timeouts.iter();
                table["timeout"] = timeouts
                    .map(|(method, timeout)| {
                        (method.to_string(), json!(format!("{}ms", timeout.as_millis())))
                    })
                    .collect::<serde_json::Map<_, _>>()
                    .into();
            }
            table
        };
        let mut text = json!({
            "runtime_dir": config.runtime_dir,
            "work_dir": config.work_dir,
            "socket": self.socket(),
            "plugin_dir": config.plugin_dir,
            "launcher": match config.launcher {
                LauncherKind::Linux => "linux",
                LauncherKind::Posix => "posix",
            },
            "cgroup_root": config.cgroup_root,
            "cgroup_max_descendants": config.cgroup_max_descendants,
            "cgroup_max_depth": config.cgroup_max_depth,
            "launch_timeout": format!("{}ms", config.launch_timeout.as_millis()),
            "destroy_timeout": format!("{}ms", config.destroy_timeout.as_millis()),
            "image_store": config.image_store.clone().unwrap_or_else(|| config.work_dir.join("images")),
            "local_images": config.local_images,
            "image_backend": config.image_backend.name(),
            "image_gc": {
                "headroom_percent": config.image_gc.headroom_percent,
                "check_interval": format!("{}ms", config.image_gc.check_interval.as_millis()),
                "excluded_images": config.image_gc.excluded.iter().map(ToString::to_string).collect::<Vec<_>>(),
            },
            "registry": { "insecure": config.registry.insecure },
            "log": "info",
            "isolator": config.isolators.iter().map(plugin).collect::<Vec<_>>(),
        });
        if let Some(file) = &config.registry.credentials {
            text["registry"]["credentials"] = json!(file);
        }
        if let Some(logger) = &config.logger {
            text["logger"] = plugin(logger);
            if !config.log_targets.is_empty() {
                text["logger"]["to"] = config.log_targets.iter().map(plugin).collect();
            }
        }
        if !config.hooks.is_empty() {
            text["hook"] = config.hooks.iter().map(plugin).collect();
        }
        let names = config.containerizers.iter().map(ContainerizerConfig::name);
        text["containerizers"] = names.collect::<Vec<_>>().into();
        for containerizer in &config.containerizers {
            let ContainerizerConfig::Docker(docker) = containerizer else { continue };
            let millis = |duration: Duration| format!("{}ms", duration.as_millis());
            text["docker"] = json!({
                "socket": docker.engine.socket(),
                "remove_delay": millis(docker.remove_delay),
                "kill_orphans": docker.kill_orphans,
                "timeout": millis(docker.timeouts.call),
            });
            if let Some(image) = &docker.mesos_image {
                text["docker"]["mesos_image"] = json!(image);
            }
        }
        let executors = &config.executors;
        if let Some(directory) = &executors.launcher_dir {
            text["launcher_dir"] = json!(directory);
        }
        let millis = |duration: Duration| json!(format!("{}ms", duration.as_millis()));
        text["executor_registration_timeout"] = millis(executors.registration_timeout);
        text["executor_reregistration_timeout"] = millis(executors.reregistration_timeout);
        text["executor_shutdown_grace_period"] = millis(executors.shutdown_grace_period);
        text["recovery_timeout"] = millis(executors.recovery_timeout);
        text["switch_user"] = json!(executors.switch_user);
        text["executor_environment_variables"] = json!(executors.environment_variables);
        text["max_completed_executors"] = json!(executors.max_completed_executors);
        if let Some(endpoint) = executors.endpoint {
            text["api"] = json!({"listen": endpoint, "token_file": self.write_token()});
        }
        if let Some(size) = config.scratch_memory {
            text["scratch_memory"] = json!(format!("{} KiB", size >> 10));
        }
        if let Some((group, mode)) = &self.socket_access {
            text["socket_group"] = json!(group);
            text["socket_mode"] = json!(mode);
        }
        if config.isolators.is_empty() {
            text["isolation"] = json!("none");
            text.as_object_mut().expect("a table").remove("isolator");
        }
        if let Some(chain) = &self.chain {
            text.as_object_mut().expect("a table").remove("isolation");
            let mut chain: Json = toml::from_str(chain).expect("a configuration");
            for key in ["isolator", "logger"] {
                text[key] = chain[key].take();
            }
        }
        if let Some(info) = &self.default_container_info {
            text["default_container_info"] = json!(info.to_string());
        }
        if let Some(size) = &self.max_body {
            text["api"]["max_body"] = json!(size);
        }
        let file = self.directory.path().join("agent.toml");
        fs::write(&file, toml::to_string(&text).expect("it has no nulls")).expect("a file");
        file
    }

    /// Writes the file with [`TOKEN`].
    fn write_token(&self) -> PathBuf {
        let path = self.directory.path().join("token");
        drop(fs::remove_file(&path));
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).expect("a file");
        writeln!(file, "{TOKEN}").expect("a file");
        path
    }

    /// A root file system of busybox and its links, in this world's directory.
    pub fn rootfs(&self) -> PathBuf {
        let rootfs = self.directory.path().join("rootfs");
        if rootfs.exists() {
            return rootfs;
        }
        let bin = rootfs.join("bin");
        fs::create_dir_all(&bin).expect("a directory");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("/bin/busybox (package busybox-static)");
        for tool in [
            "sh", "true", "false", "cat", "echo", "ls", "sleep", "id", "kill", "dd", "ps", "touch", "grep",
            "head", "wc", "cut",
        ] {
            symlink("busybox", bin.join(tool)).expect("a link");
        }
        fs::create_dir_all(rootfs.join("etc")).expect("a directory");
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1234:1234::/:/bin/sh\n")
            .expect("a file");
        rootfs
    }

    /// The files of the agent in which a text occurs.
    pub fn files_with(&self, text: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        files(&self.config.runtime_dir, &mut found);
        files(&self.config.work_dir, &mut found);
        assert!(found.iter().any(|path| path.ends_with("record")), "no record in {found:?}");
        found.retain(|path| {
            let content = fs::read(path).unwrap_or_default();
            content.windows(text.len()).any(|window| window == text.as_bytes())
        });
        found
    }

    /// What is left of containers in the kernel and on disk; empty after all of them have ended and were removed.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(self.cgroups().iter().map(|path| format!("cgroup: {}", path.display())));
        found.extend(self.kept());
        found.extend(self.processes().into_iter().map(|pid| format!("process: {pid}")));
        // Those of this thread, which may have a mount namespace of its own.
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let here = self.directory.path().display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&here)).map(|line| format!("mount: {line}")));
        for directory in [
            "run/containers",
            "run/removed",
            "work/containers",
            "work/docker",
            "work/scratch/containers",
            "work/executors",
        ] {
            let listing = fs::read_dir(self.directory.path().join(directory));
            let entries = listing.into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("file: {}", entry.path().display())));
        }
        found
    }

    /// The processes with a working directory in this world, as those of containers without a root file system.
    pub fn processes(&self) -> Vec<i32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let here = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(self.directory.path()))
        };
        pids.filter(here).collect()
    }

    /// The record of a container on disk.
    ///
    /// # Panics
    /// If it is missing or incomplete.
    pub fn record(&self, id: &ContainerId) -> Record<NativeRecord> {
        let path = nested_directory(&self.config.runtime_dir, id).join("record");
        let bytes = fs::read(&path).expect("a record");
        let body = bytes.iter().position(|byte| *byte == b'\n').expect("a first line") + 1;
        serde_json::from_slice(&bytes[body..]).expect("a complete record")
    }

    /// The cgroup of a container in a v1 hierarchy, if this machine has that.
    pub fn cgroup(&self, controller: &str, id: &ContainerId) -> Option<PathBuf> {
        let machine = Cgroups::detect().expect("the mount table");
        let (_, version) = machine.hierarchy(controller)?;
        if version == Version::V1 { self.cgroup_of_any_version(controller, id) } else { None }
    }

    /// Likewise, also on v2.
    ///
    /// # Panics
    /// If the mount table cannot be read.
    pub fn cgroup_of_any_version(&self, controller: &str, id: &ContainerId) -> Option<PathBuf> {
        let machine = Cgroups::detect().expect("the mount table");
        let (hierarchy, _) = machine.hierarchy(controller)?;
        let parts = id.values().map(|value| format!("{value}.container"));
        let instance = hierarchy.mount.join("cofferdam-test").join(self.instance());
        Some(instance.join(parts.collect::<PathBuf>()))
    }

    /// The cgroups of this world's containers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_directories(&self.instance())
            .into_iter()
            .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.is_dir() && !path.ends_with("keeper"))
            .collect()
    }

    /// What keepers have recorded and were not told to forget, and directories of keepers that have ended.
    fn kept(&self) -> Vec<String> {
        let keepers = fs::read_dir(self.config.runtime_dir.join("keepers")).into_iter().flatten().flatten();
        let statuses = keepers.filter_map(|keeper| Statuses::open(&keeper.path().join("statuses")).ok());
        let used = statuses.flat_map(|statuses| statuses.all().unwrap_or_default());
        used.map(|(slot, entry)| format!("keeper: {slot:?} {entry:?}")).collect()
    }

    /// The name that separates this agent's cgroups from those of other agents.
    pub fn instance(&self) -> String {
        cofferdam_core::agent::instance_of(&self.config.runtime_dir)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Containers of a failed test, then the agent's own directories in each hierarchy. Errors do not affect other
        // tests.
        const TIMEOUT: Duration = Duration::from_secs(5);
        for path in cgroup_directories(&self.instance()) {
            let v2 = path.join("cgroup.kill").exists();
            let group = Cgroup::at(path.clone(), if v2 { Version::V2 } else { Version::V1 });
            if v2 || path.join("freezer.state").exists() {
                drop(group.kill_all(TIMEOUT));
            }
        }
        for pid in self.processes() {
            drop(Process::open_any(pid).and_then(|process| process.kill()));
        }
        for path in cgroup_directories(&self.instance()) {
            drop(Cgroup::at(path, Version::V1).remove(TIMEOUT));
        }
        if self.config.scratch_memory.is_some() {
            // Fails if it is not mounted.
            let _ = unmount(self.config.work_dir.join("scratch"), UnmountFlags::DETACH);
        }
    }
}

/// An entry of the chain.
pub fn entry(name: &str, table: Json) -> PluginConfig {
    PluginConfig { table, ..PluginConfig::new(name) }
}

/// An entry of the chain with its file in this build: then the agent does not read those of all other plugins.
///
/// # Panics
/// If the file is missing.
pub fn object(name: &str, file: &str, table: Json) -> PluginConfig {
    let path = paths::build().join(file);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace` first", path.display());
    PluginConfig { path: Some(path), ..entry(name, table) }
}

fn temporary_directory() -> TempDir {
    tempfile::Builder::new().prefix("cofferdam-test-").tempdir().expect("a directory")
}

/// The isolators of a predefined chain, with their files in this build.
///
/// # Panics
/// If a file is missing.
pub fn predefined(isolation: Isolation) -> Vec<PluginConfig> {
    let mut chain: Json = toml::from_str(isolation.text()).expect("a configuration");
    let Json::Array(isolators) = chain["isolator"].take() else { return Vec::new() };
    let isolator = |mut entry: Json| {
        let plugin = shipped(entry["name"].as_str().expect("a name"));
        let table = entry["config"].take();
        if table.is_null() { plugin } else { PluginConfig { table, ..plugin } }
    };
    isolators.into_iter().map(isolator).collect()
}

/// An isolator that we ship, with its file in this build.
///
/// # Panics
/// If the file is missing.
pub fn shipped(name: &str) -> PluginConfig {
    object(name, &format!("libcofferdam_{}.so", name.replace('/', "_")), json!({}))
}

/// The logger that we ship, with its file in this build.
///
/// # Panics
/// If the file is missing.
pub fn sandbox_logger() -> PluginConfig {
    object("sandbox", "libcofferdam_logger_sandbox.so", json!({}))
}

/// The directory of an agent in each hierarchy.
fn cgroup_directories(instance: &str) -> Vec<PathBuf> {
    let Ok(machine) = Cgroups::detect() else { return Vec::new() };
    let hierarchies = machine.unified.into_iter().chain(machine.legacy);
    hierarchies
        .map(|hierarchy| hierarchy.mount.join("cofferdam-test").join(instance))
        .filter(|path| path.is_dir())
        .collect()
}

/// A container id.
///
/// # Panics
/// If it is invalid.
pub fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).expect("a container id")
}

/// Runs a container to its end and returns its standard output.
///
/// # Panics
/// If it cannot be launched.
pub async fn run(agent: &Agent, request: Request) -> String {
    let id = request.id.clone();
    if let Err(error) = agent.launch(request).await {
        panic!("{}", describe(&error));
    }
    agent.wait(&id).await.expect("it was launched");
    let logs = agent.inspect(&id).expect("it was launched").logs;
    crate::text(&logs.stdout.expect("a log file"))
}

/// Destroys and removes containers, and checks that nothing is left in the kernel's tables and on disk.
///
/// # Panics
/// If one is unknown or cannot be removed, or something is left.
pub async fn remove(world: &World, agent: &Agent, names: &[&str]) {
    for name in names {
        let id = id(name);
        assert!(agent.destroy(&id).await.is_some(), "`{name}` is unknown");
        assert!(agent.remove(&id).await.expect("it can be removed"), "`{name}` is unknown");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The message of a launch that fails.
///
/// # Panics
/// If it does not fail.
pub async fn launch_error(agent: &Agent, request: Request) -> String {
    describe(&agent.launch(request).await.expect_err("the launch must fail"))
}

/// Starts an agent in this world, calls `run`, and stops the agent, so that another can be started.
///
/// # Panics
/// If the agent does not start.
pub fn with_agent<T>(world: &World, run: impl AsyncFnOnce(Agent) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let result = runtime.block_on(async {
        let agent = world.start().await.expect("the agent starts");
        run(agent).await
    });
    drop(runtime);
    // A thread of the pool may keep the agent a little longer; the lock is released when it is dropped.
    let lock = File::open(world.config.runtime_dir.join("agent.lock")).expect("the agent's lock");
    drop(nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).expect("the agent is dropped"));
    result
}

/// The files below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("the type of a file");
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}
