//! The agent: constructs the rest of the library, connects it, and is its interface.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_linux::boot::BootId;
use cofferdam_linux::capability::OwnSets;
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::resource_limit::own_hard_limits;
use cofferdam_plugin_model::{AgentInfo, AgentProcess, FEATURES, Kind, LINUX_LAUNCHER, Method};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::blocking::{Abandoned, BlockingPool, CallFile, Job};
use crate::chain::Chain;
use crate::config::{AgentConfig, ContainerizerConfig, DockerConfig, LauncherKind, PluginConfig};
use crate::containerizer::docker::{self, Docker, DockerTable};
use crate::containerizer::native::{Native, NativeTable, Shared, TEARDOWNS};
use crate::containerizer::{
    Composing, Containerizer, Foreign, KillError, LaunchError, LaunchOutcome, RecoverError, Recoverers,
    RemoveError, TableRecoverer, TableView, UpdateError,
};
use crate::descriptor_limit::Shares;
use crate::descriptor_store::DescriptorStore;
use crate::directory::create_searchable;
use crate::engine::Client;
use crate::events::Events;
use crate::executor::{self, ExecutorProgram, Executors, ProgramError};
use crate::fatal::FatalErrors;
use crate::fetcher::Fetcher;
use crate::hooks::Hooks;
use crate::image_gc::ImageGc;
use crate::keeper::{KeeperCgroups, KeeperError, Keepers};
use crate::launcher::{CgroupLimits, Launcher, Linux, Posix, SetUpError, Timeouts, effective_cgroup_root};
use crate::ledger::{Ledger, LedgerError, Lock};
use crate::model::view::{
    CallInProgress, Inspection, InterruptedCall, KeepersView, PluginView, Report, StatusView, Summary,
    UsageView, WantedReports,
};
use crate::model::{ContainerId, Request, Resources, Termination};
use crate::parallel;
use crate::plugin::{AdmitError, LoadedPlugin, LookupError, Plugin, PluginEnv, PluginIndex, Services, Store};
use crate::provisioner::{Provisioner, PrunePolicy, Pruned, Store as ImageStore, StoreError};
use crate::scratch;
use crate::stats::{LaunchCounters, LaunchStats};
use crate::switchboard::{AttachError, AttachedInput, Attachment};

/// A release of what exists for the agent that takes this long is reported.
const RELEASE_WARNING: Duration = Duration::from_secs(60);

/// A removal of images that takes this long is reported.
const PRUNE_WARNING: Duration = Duration::from_secs(600);

/// Pause after an attempt to remove images during which somebody else used the store.
const PRUNE_RETRY: Duration = Duration::from_millis(250);

/// The agent. Cheap to clone; all clones are the same agent.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    config: AgentConfig,
    host: Host,
    containerizer: Arc<dyn Containerizer>,
    executors: Executors,
    plugins: Vec<Arc<Plugin>>,
    launches: LaunchCounters,
    calls: Option<Arc<CallFile>>,
    /// Calls during which the previous agent died.
    interrupted: Vec<InterruptedCall>,
    fatal: FatalErrors,
    events: Events,
    images: ImageStore,
    /// Keeps space for images, if that is configured.
    _image_gc: Option<ImageGc>,
}

/// Why images were not removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread of the agent panicked.
    #[error("the removal was interrupted: {0}")]
    Interrupted(#[from] Abandoned),
}

/// Why the agent did not start. No container was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime or work directory cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A directory cannot be created.
    #[error("cannot create directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory for what ends with containers cannot be created, or not be in memory.
    #[error("cannot prepare `{}` for the scratch directories of containers", path.display())]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What identifies the agent cannot be read or written.
    #[error("cannot read or write `{}`, which identifies the agent", path.display())]
    AgentId {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Where the cgroups of earlier agents are cannot be read or written.
    #[error("cannot read or write `{}`, which has the `cgroup_root` of earlier agents", runtime_dir.join("cgroup_root").display())]
    CgroupRoot {
        /// The runtime directory.
        runtime_dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no file for a plugin.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// A plugin cannot be used.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The launcher does not work on this machine.
    #[error("the `linux` launcher does not work here; as an unprivileged user, use the `posix` launcher")]
    Launcher(#[from] SetUpError),
    /// The process that creates those of containers cannot be started.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The kernel does not provide what the agent needs.
    #[error("cannot determine {what}")]
    Kernel {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The executor program cannot be used.
    #[error(transparent)]
    ExecutorProgram(#[from] ProgramError),
    /// Executors of an earlier agent cannot be recovered.
    #[error("cannot recover the executors of an earlier agent")]
    Executors {
        /// Why.
        source: std::io::Error,
    },
    /// Containers of an earlier agent cannot be recovered.
    #[error("cannot recover the containers of an earlier agent")]
    Recover(#[from] RecoverError),
    /// A thread panicked.
    #[error("the start was interrupted: {0}")]
    Interrupted(#[from] Abandoned),
}

impl Agent {
    /// Reads the ledger, loads the plugins and recovers the containers of an earlier agent. Containers can be
    /// launched once this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: AgentConfig) -> Result<Self, StartError> {
        Self::start_with(config, None).await
    }

    /// As [`Self::start`], with a store that is open already: whoever has checked the configuration by it has also
    /// inspected the plugin files. [`AgentConfig::plugin_store`] is not used then.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with(config: AgentConfig, store: Option<Arc<Store>>) -> Result<Self, StartError> {
        let pool = BlockingPool::new(Shares::current().threads);
        let loggers = config.log_targets.iter().chain(&config.logger);
        let plugins = config.isolators.iter().chain(loggers).chain(&config.hooks);
        let min_timeout = plugins.map(|plugin| plugin.timeout(Method::Create)).min();
        let min_timeout = min_timeout.unwrap_or(config.destroy_timeout);
        let events = Events::default();
        let Parts {
            ledger,
            launcher,
            scratch,
            chain,
            containerizer,
            executors,
            plugins,
            calls,
            interrupted,
            fatal,
            images,
        } = {
            let events = events.clone();
            let (config, pool2, runtime) = (config.clone(), pool.clone(), Handle::current());
            pool.run(min_timeout, move |job| build(job, &config, store, pool2, runtime, &events)).await??
        };
        let host = Host { pool, launcher, scratch };
        let started = Instant::now();
        let entries = host.pool.run(min_timeout, move |_| ledger.entries()).await??;
        let recorded = Arc::new(entries.iter().map(|entry| entry.id.clone()).collect());
        let recovery = match containerizer.recover(entries, recorded).await {
            Ok(recovery) => recovery,
            Err(error) => {
                host.release().await;
                return Err(error.into());
            }
        };
        // Before anything is done to any container, and of all containerizers at once.
        chain.recover().await;
        let recovered = recovery.resume().await;
        tracing::info!(
            running = recovered.running,
            ended = recovered.ended,
            destroyed = recovered.destroyed,
            micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "containers recovered"
        );
        if let Err(source) = executors.recover().await {
            host.release().await;
            return Err(StartError::Executors { source });
        }
        let launches = LaunchCounters::default();
        let gc = &config.image_gc;
        let image_gc =
            (gc.headroom_percent > 0).then(|| ImageGc::start(images.clone(), gc, host.pool.clone()));
        Ok(Self(Arc::new(Inner {
            config,
            host,
            containerizer,
            executors,
            plugins,
            launches,
            calls,
            interrupted,
            fatal,
            events,
            images,
            _image_gc: image_gc,
        })))
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.0.config
    }

    /// Launches a container, or leaves nothing of it behind. Dropping the future does not cancel the launch.
    ///
    /// Returns the pid of its first process.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn launch(&self, request: Request) -> Result<i32, LaunchError> {
        let started = Instant::now();
        let id = request.id.clone();
        let outcome = match self.0.containerizer.launch(request).await {
            Ok(LaunchOutcome::Launched { pid }) => Ok(pid),
            Ok(LaunchOutcome::NotSupported) => Err(LaunchError::NotSupported { id }),
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) => self.0.launches.count_started(started.elapsed()),
            Err(_) => self.0.launches.count_failed(),
        }
        outcome
    }

    /// Waits until a container has ended and is cleaned up. `None` for an unknown container.
    pub async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.containerizer.wait(id).await
    }

    /// Attaches a client to the standard streams, or the terminal, of a container. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.0.containerizer.attach(id)
    }

    /// The attachment of the client for which a container was launched, once: see [`Request::attached`].
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.0.containerizer.attach_first(id)
    }

    /// As [`Self::attach`], for input only.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        self.0.containerizer.attach_input(id)
    }

    /// Sends a signal to a container's command; SIGKILL destroys the container. Returns false for a container that
    /// is unknown or has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        self.0.containerizer.kill(id, signal).await
    }

    /// Destroys a container, and those nested in it, without waiting for plugins that do not clean up. What they missed is
    /// recorded and shown, and performed when they can be called. Returns false for a container that is unknown or has
    /// ended.
    pub async fn force(&self, id: &ContainerId) -> bool {
        self.0.containerizer.force(id).await
    }

    /// Destroys a container and waits until nothing is left of it. `None` for an unknown container.
    pub async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        self.0.containerizer.destroy(id).await
    }

    /// Removes a container that has ended, with its sandbox. Returns false for an unknown container.
    ///
    /// # Errors
    /// When it has not ended.
    pub async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        self.0.containerizer.remove(id).await
    }

    /// Changes a container's resources, all of them or none.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        self.0.containerizer.update(id, resources).await
    }

    /// Resource usage of a container. `None` for one that is unknown or not running.
    pub async fn usage(&self, id: &ContainerId) -> Option<UsageView> {
        self.report(id, WantedReports::USAGE).await.usage
    }

    /// Status of a container. `None` for one that is unknown or not running.
    pub async fn status(&self, id: &ContainerId) -> Option<StatusView> {
        self.report(id, WantedReports::STATUS).await.status
    }

    async fn report(&self, id: &ContainerId, wanted: WantedReports) -> Report {
        self.reports(std::slice::from_ref(id), wanted).await.pop().unwrap_or_default()
    }

    /// What is reported about containers, in the order of `ids`. Faster than asking about one after the other.
    pub async fn reports(&self, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        self.0.containerizer.reports(ids, wanted).await
    }

    /// Removes images that no container uses, except those that are excluded here or in the configuration. Waits for pulls and
    /// imports that are in progress.
    ///
    /// # Errors
    /// [`PruneError`].
    pub async fn prune_images(&self, mut policy: PrunePolicy) -> Result<Pruned, PruneError> {
        policy.excluded.extend(self.0.config.image_gc.excluded.iter().cloned());
        let policy = Arc::new(policy);
        loop {
            let (store, policy) = (self.0.images.clone(), Arc::clone(&policy));
            let pruned = self.0.host.pool.run(PRUNE_WARNING, move |_| store.try_prune(&policy)).await??;
            if let Some(pruned) = pruned {
                return Ok(pruned);
            }
            // A thread that waits for the lock would be missing elsewhere, for as long as a pull takes.
            tokio::time::sleep(PRUNE_RETRY).await;
        }
    }

    /// All containers, parents before children.
    #[must_use]
    pub fn containers(&self) -> Vec<Summary> {
        self.0.containerizer.containers()
    }

    /// Executors and their tasks.
    #[must_use]
    pub fn executors(&self) -> &Executors {
        &self.0.executors
    }

    /// Whether a container is known.
    #[must_use]
    pub fn contains(&self, id: &ContainerId) -> bool {
        self.0.containerizer.contains(id)
    }

    /// Details of a container.
    #[must_use]
    pub fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        self.0.containerizer.inspect(id)
    }

    /// All plugins in chain order, then the logger, then the hooks.
    #[must_use]
    pub fn plugins(&self) -> Vec<PluginView> {
        let interrupted = |plugin: &Plugin| {
            let calls = self.0.interrupted.iter().filter(|call| call.plugin == **plugin.name());
            calls.cloned().collect()
        };
        let view =
            |plugin: &Arc<Plugin>| PluginView { interrupted_calls: interrupted(plugin), ..plugin.view() };
        self.0.plugins.iter().map(view).collect()
    }

    /// The calls of plugins about containers that are in progress, in chain order.
    #[must_use]
    pub fn calls_in_progress(&self) -> Vec<CallInProgress> {
        self.0.plugins.iter().flat_map(|plugin| plugin.calls_in_progress()).collect()
    }

    /// What is known of the keepers, the processes that create those of containers.
    #[must_use]
    pub fn keepers(&self) -> KeepersView {
        self.0.host.launcher.keepers().view()
    }

    /// What happens to containers and plugins.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// Launches since the start.
    #[must_use]
    pub fn launch_stats(&self) -> LaunchStats {
        self.0.launches.read()
    }

    /// Waits for an error after which the agent cannot go on, and returns it: a task that supervises a container
    /// panicked. End the process or start another agent then; the containers keep running.
    pub async fn failed(&self) -> String {
        self.0.fatal.first().await
    }

    /// Stops the agent. Its containers keep running; the next agent recovers them.
    pub async fn shutdown(self) {
        self.0.host.release().await;
        self.0.calls.iter().for_each(|calls| calls.close());
        let running = self.containers().iter().filter(|container| container.phase.is_live()).count();
        tracing::info!("agent stopped; {running} containers keep running");
    }

    /// Destroys every container. Returns those that are not gone within the destroy timeout.
    pub async fn destroy_all(&self) -> Vec<ContainerId> {
        let deadline = tokio::time::Instant::now() + self.0.config.destroy_timeout;
        let live = self.containers().into_iter().filter(|container| container.phase.is_live());
        let mut destroying = Vec::new();
        for container in live {
            let (agent, id) = (self.clone(), container.id.clone());
            destroying.push((container.id, tokio::spawn(async move { agent.destroy(&id).await })));
        }
        let mut remaining = Vec::new();
        for (id, destroyed) in destroying {
            if tokio::time::timeout_at(deadline, destroyed).await.is_err() {
                remaining.push(id);
            }
        }
        remaining
    }
}

struct Parts {
    images: ImageStore,
    calls: Option<Arc<CallFile>>,
    interrupted: Vec<InterruptedCall>,
    fatal: FatalErrors,
    ledger: Arc<Ledger>,
    launcher: Arc<dyn Launcher>,
    scratch: PathBuf,
    chain: Chain,
    containerizer: Arc<dyn Containerizer>,
    executors: Executors,
    plugins: Vec<Arc<Plugin>>,
}

/// What exists on the host for the agent rather than for a container.
struct Host {
    pool: BlockingPool,
    launcher: Arc<dyn Launcher>,
    scratch: PathBuf,
}

impl Host {
    /// Releases it. Containers keep running.
    async fn release(&self) {
        let (launcher, scratch) = (Arc::clone(&self.launcher), self.scratch.clone());
        // What cannot be removed is reused by the next agent.
        let release = move |_: &Job| {
            launcher.shutdown();
            if let Err(error) = scratch::release(&scratch) {
                tracing::warn!("cannot unmount `{}`: {error}", scratch.display());
            }
        };
        drop(self.pool.run(RELEASE_WARNING, release).await);
    }
}

/// Constructs and connects everything. Blocks; changes no container.
fn build(
    job: &Job,
    config: &AgentConfig,
    store: Option<Arc<Store>>,
    pool: BlockingPool,
    runtime: Handle,
    events: &Events,
) -> Result<Parts, StartError> {
    let ledger = Arc::new(Ledger::open(&config.runtime_dir)?);
    let (calls, interrupted) = note_calls(ledger.runtime_dir(), &pool);
    let work_dir = create_directory(&config.work_dir)?;
    // Unknown entries of the work directory are removed as leftovers, so it must not be shared either.
    let work_lock = (work_dir != ledger.runtime_dir()).then(|| Lock::take(&work_dir)).transpose()?;
    let work_lock = work_lock.map(Arc::new);
    let scratch = work_dir.join("scratch");
    scratch::prepare(&scratch, config.scratch_memory)
        .map_err(|source| StartError::Scratch { path: scratch.clone(), source })?;
    let boot_id = BootId::current()
        .map_err(|source| StartError::Kernel { what: "the boot id", source })?
        .as_str()
        .to_owned();
    let cgroups = match config.launcher {
        LauncherKind::Posix => Cgroups::default(),
        LauncherKind::Linux => Cgroups::detect()
            .map_err(|source| StartError::Kernel { what: "the mounted cgroup hierarchies", source })?,
    };
    let descriptors = DescriptorStore::new(runtime.clone());
    let cgroup_root = cgroup_root(config, &ledger, &cgroups)?;
    let launcher = launcher(config, &cgroup_root, &ledger, cgroups.clone(), runtime)?;
    let store = store.unwrap_or_else(|| {
        Arc::new(Store::open(config.plugin_store.as_ref().unwrap_or(&work_dir.join("plugins"))))
    });
    let services = Arc::new(Services::default());
    let agent = agent_info(config, cgroup_root, &cgroups, launcher.companion_cgroup())?;
    let env =
        PluginEnv { runtime_dir: ledger.runtime_dir(), work_dir: &work_dir, agent, events: events.clone() };
    let loaded = plugins(job, config, &store, &services, &env);
    // What exists for this agent alone, such as its cgroup, is not left behind when it does not start.
    let LoadedPlugins { isolators, loggers, hooks } = loaded.inspect_err(|_| launcher.shutdown())?;
    let plugins: Vec<Arc<Plugin>> = isolators.iter().chain(&loggers).chain(&hooks).cloned().collect();

    let foreign = Arc::new(Foreign::default());
    let table = Arc::new(NativeTable::new(events.clone()));
    let docker_table = Arc::new(DockerTable::new(events.clone()));
    let version = |plugin: &Arc<Plugin>| (plugin.name().to_string(), plugin.manifest().version.clone());
    let versions = Arc::new(plugins.iter().map(version).collect());
    let tables: Vec<Box<dyn TableView>> = vec![
        Box::new(TableRecoverer {
            table: Arc::clone(&table),
            ledger: Arc::clone(&ledger),
            versions: Arc::clone(&versions),
        }),
        Box::new(TableRecoverer { table: Arc::clone(&docker_table), ledger: Arc::clone(&ledger), versions }),
    ];
    let recoverer = Arc::new(Recoverers::new(tables));
    let containers = Arc::downgrade(&recoverer);
    services.connect(containers);
    let loggers_alone = Chain::new(Vec::new(), loggers.clone(), pool.clone(), Arc::clone(&recoverer) as _);
    let chain = Chain::new(isolators, loggers, pool.clone(), recoverer);
    let hooks = Hooks::new(hooks, pool.clone());
    let fatal = FatalErrors::default();
    let fetcher = Fetcher::new(config.fetcher.clone()).limited(config.fetch.clone());
    let images = ImageStore::at(config.image_store.clone().unwrap_or_else(|| work_dir.join("images")));
    let native = || Shared {
        fatal: fatal.clone(),
        ledger: Arc::clone(&ledger),
        chain: chain.clone(),
        launcher: Arc::clone(&launcher),
        provisioner: Provisioner::new(
            images.clone(),
            &work_dir,
            config.image_backend,
            config.puller.clone(),
            pool.clone(),
        ),
        fetcher: fetcher.clone(),
        hooks: hooks.clone(),
        pool: pool.clone(),
        descriptors: descriptors.clone(),
        recent: Semaphore::new(Shares::current().recent),
        teardowns: Semaphore::new(TEARDOWNS),
        table: Arc::clone(&table),
        foreign: Arc::clone(&foreign),
        work_dir: work_dir.clone(),
        _work_lock: work_lock.clone(),
        cgroups: cgroups.clone(),
        boot_id: boot_id.clone(),
        nofile: config.container_nofile,
        images: config.images,
    };
    let docker = |docker: &DockerConfig| -> Result<docker::Shared, StartError> {
        Ok(docker::Shared {
            fatal: fatal.clone(),
            ledger: Arc::clone(&ledger),
            chain: loggers_alone.clone(),
            fetcher: fetcher.clone(),
            hooks: hooks.clone(),
            pool: pool.clone(),
            keepers: Arc::clone(launcher.keepers()),
            table: Arc::clone(&docker_table),
            foreign: Arc::clone(&foreign),
            work_dir: work_dir.clone(),
            _work_lock: work_lock.clone(),
            cgroups: Cgroups::detect()
                .map_err(|source| StartError::Kernel { what: "the mounted cgroup hierarchies", source })?,
            boot_id: boot_id.clone(),
            destroy_timeout: config.destroy_timeout,
            engine: Client::new(Arc::clone(&docker.engine), docker.timeouts),
            config: docker.clone(),
            agent: agent_id(&work_dir)?,
            sweep: Notify::new(),
        })
    };
    let mut containerizers: Vec<Arc<dyn Containerizer>> = Vec::new();
    for containerizer in &config.containerizers {
        containerizers.push(match containerizer {
            ContainerizerConfig::Mesos => Arc::new(Native::new(native())),
            ContainerizerConfig::Docker(config) => Arc::new(Docker::new(docker(config)?)),
        });
    }
    let containerizer = match containerizers.len() {
        1 => containerizers.remove(0),
        _ => Arc::new(Composing::new(containerizers, foreign)),
    };
    let executors = executors(config, &ledger, &work_dir, &containerizer, &fatal, hooks)?;
    Ok(Parts {
        ledger,
        launcher,
        scratch,
        chain,
        containerizer,
        executors,
        plugins,
        calls,
        interrupted,
        fatal,
        images,
    })
}

/// The executors, which are above the containerizer.
fn executors(
    config: &AgentConfig,
    ledger: &Ledger,
    work_dir: &Path,
    containerizer: &Arc<dyn Containerizer>,
    fatal: &FatalErrors,
    hooks: Hooks,
) -> Result<Executors, StartError> {
    let paths = executor::Paths {
        journals: work_dir.join("executors"),
        socket_directory: ledger.runtime_dir().join("executor"),
    };
    let program = config
        .executors
        .launcher_dir
        .as_deref()
        .map(|directory| ExecutorProgram::copy(directory, &work_dir.join("executor")));
    Ok(Executors::new(
        Arc::clone(containerizer),
        fatal.clone(),
        hooks,
        config.executors.clone(),
        paths,
        program.transpose()?.flatten(),
        agent_id(work_dir)?,
    ))
}

/// What identifies the agent to others that outlive it, such as a container engine: a number in its work directory.
fn agent_id(work_dir: &Path) -> Result<String, StartError> {
    let path = work_dir.join("agent_id");
    let failed = |source| StartError::AgentId { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        // One that was written in part has never been used.
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?;
    let new = path.with_extension("new");
    fs::write(&new, &id).and_then(|()| fs::rename(&new, &path)).map_err(failed)?;
    Ok(id.trim().to_owned())
}

/// Reports the calls during which the previous agent died, and has those of this one noted.
fn note_calls(runtime_dir: &Path, pool: &BlockingPool) -> (Option<Arc<CallFile>>, Vec<InterruptedCall>) {
    let path = runtime_dir.join("calls");
    let (file, interrupted) = match CallFile::open(&path) {
        Ok(opened) => opened,
        Err(error) => {
            let path = path.display();
            tracing::warn!("a plugin that ends the agent will not be named: {path}: {error}");
            return (None, Vec::new());
        }
    };
    for InterruptedCall { plugin, method, container, .. } in &interrupted {
        tracing::error!(
            plugin,
            method,
            container,
            "the previous agent died during `{method}` of plugin `{plugin}` for container `{container}`"
        );
    }
    let file = Arc::new(file);
    pool.note_calls(Arc::clone(&file));
    (Some(file), interrupted)
}

/// The path below which the agent has its cgroups.
fn cgroup_root(config: &AgentConfig, ledger: &Ledger, cgroups: &Cgroups) -> Result<PathBuf, StartError> {
    let runtime_dir = ledger.runtime_dir();
    match config.launcher {
        LauncherKind::Posix => Ok(config.cgroup_root.clone()),
        LauncherKind::Linux => {
            effective_cgroup_root(runtime_dir, cgroups, &config.cgroup_root, &instance_of(runtime_dir))
                .map_err(|source| StartError::CgroupRoot { runtime_dir: runtime_dir.to_owned(), source })
        }
    }
}

fn launcher(
    config: &AgentConfig,
    cgroup_root: &Path,
    ledger: &Ledger,
    cgroups: Cgroups,
    runtime: Handle,
) -> Result<Arc<dyn Launcher>, StartError> {
    let timeouts = Timeouts { launch: config.launch_timeout, destroy: config.destroy_timeout };
    let keepers = |cgroups| {
        let kill = config.kill_containers_with_agent;
        Keepers::open(ledger.runtime_dir(), cgroups, kill, config.keeper_timeout, runtime)
    };
    Ok(match config.launcher {
        LauncherKind::Posix => Arc::new(Posix::new(keepers(KeeperCgroups::default())?, timeouts)),
        LauncherKind::Linux => {
            let instance = instance_of(ledger.runtime_dir());
            let limits =
                CgroupLimits { descendants: config.cgroup_max_descendants, depth: config.cgroup_max_depth };
            Arc::new(Linux::new(cgroups, cgroup_root, &instance, keepers, timeouts, limits)?)
        }
    })
}

struct LoadedPlugins {
    isolators: Vec<Arc<Plugin>>,
    /// Those that the last one passes output on to, and that one.
    loggers: Vec<Arc<Plugin>>,
    hooks: Vec<Arc<Plugin>>,
}

/// Loads all plugins: libraries in parallel, then instances in chain order, hooks last.
fn plugins(
    job: &Job,
    config: &AgentConfig,
    store: &Store,
    services: &Arc<Services>,
    env: &PluginEnv<'_>,
) -> Result<LoadedPlugins, StartError> {
    let loggers = || config.log_targets.iter().chain(&config.logger);
    let configured = config.isolators.iter().chain(loggers()).chain(&config.hooks);
    let index = PluginIndex::read(store, &config.plugin_dir, configured)?;
    let isolators = config.isolators.iter().map(|entry| (entry, Kind::Isolator));
    let loggers = loggers().map(|entry| (entry, Kind::Logger));
    let hooks = config.hooks.iter().map(|entry| (entry, Kind::Hook));
    let entries: Vec<(&PluginConfig, Kind)> = isolators.chain(loggers).chain(hooks).collect();
    let loaded = parallel::map(&entries, |&(entry, kind)| -> Result<LoadedPlugin, StartError> {
        let file = index.locate(entry)?;
        Ok(LoadedPlugin::load(entry, kind, &file, store, services)?)
    });
    let mut plugins = Vec::new();
    for loaded in loaded {
        let plugin = loaded?.create(job, env)?;
        tracing::info!(
            plugin = %plugin.name(),
            version = %plugin.manifest().version,
            file = %plugin.file().display(),
            "plugin loaded"
        );
        plugins.push(Arc::new(plugin));
    }
    store.save();
    let hooks = plugins.split_off(plugins.len() - config.hooks.len());
    let loggers = plugins.split_off(config.isolators.len());
    Ok(LoadedPlugins { isolators: plugins, loggers, hooks })
}

/// The description of this agent for plugins.
fn agent_info(
    config: &AgentConfig,
    cgroup_root: PathBuf,
    cgroups: &Cgroups,
    companion_cgroup: Option<PathBuf>,
) -> Result<AgentInfo, StartError> {
    let host = rustix::system::sysinfo();
    #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
    let mem = host.totalram as f64 * f64::from(host.mem_unit) / (1 << 20) as f64;
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^53 CPUs")]
    let resources = Resources::default().with("cpus", cpus as f64).with("mem", mem.floor());
    let is_linux = config.launcher == LauncherKind::Linux;
    let features = FEATURES.iter().filter(|&&feature| is_linux || feature != LINUX_LAUNCHER);
    let sets = OwnSets::read()
        .map_err(|source| StartError::Kernel { what: "the capabilities of its own process", source })?;
    Ok(AgentInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features.map(ToString::to_string).collect(),
        launcher: config.launcher.name().to_owned(),
        cgroups: crate::containerizer::native::plugin_cgroups(cgroups, cgroup_root),
        resources,
        chain: config.isolators.iter().map(|plugin| plugin.name.clone()).collect(),
        companion_cgroup,
        process: AgentProcess {
            permitted_capabilities: sets.permitted,
            bounding_capabilities: sets.bounding,
            hard_limits: own_hard_limits(),
        },
    })
}

fn create_directory(path: &Path) -> Result<PathBuf, StartError> {
    let directory_error = |source| StartError::Directory { path: path.to_owned(), source };
    create_searchable(path).map_err(directory_error)?;
    path.canonicalize().map_err(directory_error)
}

/// Name of the cgroup that separates the agents on one machine: an agent is identified by its runtime directory.
#[must_use]
pub fn instance_of(runtime_dir: &Path) -> String {
    let runtime_dir = runtime_dir.canonicalize().unwrap_or_else(|_| runtime_dir.to_owned());
    let digest = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
    HEXLOWER.encode(&digest[..4])
}
