//! Constructs all parts of an agent and connects them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_linux::boot::BootId;
use cofferdam_linux::cgroup::Cgroups;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::error::StartError;
use super::host::{Host, cgroup_root, mounted_cgroups};
use super::identity::agent_id;
use super::plugins::{self, LoadedPlugins, agent_info};
use crate::blocking::{BlockingPool, CallFile, Job};
use crate::chain::Chain;
use crate::config::{AgentConfig, ContainerizerConfig, DockerConfig, LauncherKind};
use crate::containerizer::docker::{Docker, DockerTable};
use crate::containerizer::native::{Native, NativeTable, TEARDOWNS};
use crate::containerizer::{
    self, Backend, Composing, Containerizer, Containers, Foreign, Recoverers, Table, TableRecoverer,
};
use crate::descriptor_limit::Shares;
use crate::descriptor_store::DescriptorStore;
use crate::directory::create_searchable;
use crate::engine::Client;
use crate::error_chain;
use crate::events::Events;
use crate::executor::{self, Executors, Program};
use crate::fatal::FatalErrors;
use crate::fetcher::{CacheError, Fetcher};
use crate::hooks::Hooks;
use crate::ledger::Ledger;
use crate::model::view::InterruptedCall;
use crate::plugin::{Plugin, PluginEnv, Services, Store};
use crate::provisioner::{Provisioner, Store as ImageStore};

/// What an agent consists of.
pub(super) struct Parts {
    pub(super) ledger: Arc<Ledger>,
    pub(super) host: Host,
    pub(super) chain: Chain,
    pub(super) containerizer: Arc<dyn Containerizer>,
    pub(super) executors: Executors,
    pub(super) plugins: Vec<Arc<Plugin>>,
    pub(super) calls: Option<Arc<CallFile>>,
    pub(super) interrupted: Vec<InterruptedCall>,
    pub(super) fatal: FatalErrors,
    pub(super) fetcher: Fetcher,
    pub(super) images: ImageStore,
    pub(super) plugin_store: Arc<Store>,
}

/// Constructs and connects everything. Blocks; changes no container. If that fails, what exists on the host for this agent
/// alone, such as its cgroup, is released.
pub(super) fn build(
    job: &Job,
    config: &AgentConfig,
    store: Option<Arc<Store>>,
    pool: BlockingPool,
    runtime: Handle,
    events: &Events,
) -> Result<Parts, StartError> {
    let ledger = Ledger::open(&config.runtime_dir)?;
    let (calls, interrupted) = note_calls(ledger.runtime_dir(), &pool);
    let work_dir = create_directory(&config.work_dir)?;
    // Unknown entries of the work directory are removed as leftovers, so it must not be shared either.
    let ledger = Arc::new(ledger.lock_work_dir(&work_dir)?);
    let base = Base::set_up(config, ledger, work_dir, pool, runtime, events)?;
    let services = Arc::new(Services::default());
    let plugin_store = store.unwrap_or_else(|| base.plugin_store());
    let connected =
        base.load_plugins(job, &plugin_store, &services).and_then(|plugins| base.connect(plugins, &services));
    let connected = connected.inspect_err(|_| base.host.release_blocking())?;
    let Connected { plugins, chain, containerizer, executors, fatal, fetcher, images } = connected;
    let Base { ledger, host, .. } = base;
    Ok(Parts {
        ledger,
        host,
        chain,
        containerizer,
        executors,
        plugins,
        calls,
        interrupted,
        fatal,
        fetcher,
        images,
        plugin_store,
    })
}

/// What the other parts are constructed from.
struct Base<'b> {
    config: &'b AgentConfig,
    events: &'b Events,
    work_dir: PathBuf,
    boot_id: String,
    /// Those that the launcher uses.
    cgroups: Cgroups,
    cgroup_root: PathBuf,
    descriptors: DescriptorStore,
    host: Host,
    ledger: Arc<Ledger>,
}

/// What is above the plugins.
struct Connected {
    plugins: Vec<Arc<Plugin>>,
    chain: Chain,
    containerizer: Arc<dyn Containerizer>,
    executors: Executors,
    fatal: FatalErrors,
    fetcher: Fetcher,
    images: ImageStore,
}

impl<'b> Base<'b> {
    fn set_up(
        config: &'b AgentConfig,
        ledger: Arc<Ledger>,
        work_dir: PathBuf,
        pool: BlockingPool,
        runtime: Handle,
        events: &'b Events,
    ) -> Result<Self, StartError> {
        let boot_id =
            BootId::current().map_err(|source| StartError::Kernel { what: "the boot id", source })?;
        let cgroups = match config.launcher {
            LauncherKind::Posix => Cgroups::default(),
            LauncherKind::Linux => mounted_cgroups()?,
        };
        let descriptors = DescriptorStore::new(runtime.clone());
        let cgroup_root = cgroup_root(config, &ledger, &cgroups)?;
        let host = Host::set_up(config, &ledger, &work_dir, &cgroups, &cgroup_root, pool, runtime)?;
        Ok(Self {
            config,
            events,
            ledger,
            work_dir,
            boot_id: boot_id.as_str().to_owned(),
            cgroups,
            cgroup_root,
            descriptors,
            host,
        })
    }

    /// The store of the configuration.
    fn plugin_store(&self) -> Arc<Store> {
        let default = || self.work_dir.join("plugins");
        Arc::new(Store::open(&self.config.plugin_store.clone().unwrap_or_else(default)))
    }

    fn load_plugins(
        &self,
        job: &Job,
        store: &Store,
        services: &Arc<Services>,
    ) -> Result<LoadedPlugins, StartError> {
        let companion_cgroup = self.host.launcher.companion_cgroup();
        let agent = agent_info(self.config, self.cgroup_root.clone(), &self.cgroups, companion_cgroup)?;
        let env = PluginEnv {
            runtime_dir: self.ledger.runtime_dir(),
            work_dir: &self.work_dir,
            agent,
            events: self.events.clone(),
        };
        plugins::load(job, self.config, store, services, &env)
    }

    fn connect(&self, loaded: LoadedPlugins, services: &Services) -> Result<Connected, StartError> {
        let (config, pool) = (self.config, &self.host.pool);
        let plugins = loaded.all();
        let LoadedPlugins { isolators, loggers, hooks } = loaded;
        let native_table = Arc::new(NativeTable::new(self.events.clone()));
        let docker_table = Arc::new(DockerTable::new(self.events.clone()));
        let recoverers = self.recoverers(&native_table, &docker_table, &plugins);
        let containers = Arc::downgrade(&recoverers);
        services.connect(containers);
        let shared = Shared {
            base: self,
            loggers: Chain::new(Vec::new(), loggers.clone(), pool.clone(), Arc::clone(&recoverers) as _),
            chain: Chain::new(isolators, loggers, pool.clone(), recoverers),
            hooks: Hooks::new(hooks, pool.clone()),
            fatal: FatalErrors::default(),
            fetcher: self.fetcher()?,
            images: ImageStore::at(
                config.image_store.clone().unwrap_or_else(|| self.work_dir.join("images")),
            ),
            native_table,
            docker_table,
            foreign: Arc::new(Foreign::default()),
        };
        let containerizer = shared.containerizer()?;
        let executors = shared.executors(&containerizer)?;
        let Shared { chain, fatal, fetcher, images, .. } = shared;
        Ok(Connected { plugins, chain, containerizer, executors, fatal, fetcher, images })
    }

    fn fetcher(&self) -> Result<Fetcher, StartError> {
        let config = self.config;
        let fetcher = Fetcher::new(config.fetcher.clone()).limited(config.fetch.clone());
        let fetcher = fetcher.with_credentials(config.fetch_credentials.as_deref());
        let Some(cache) = &config.fetch_cache else { return Ok(fetcher) };
        match fetcher.clone().cached(cache, self.host.pool.work().clone()) {
            // As on a full disk, where containers of earlier agents can be ended.
            Err(error @ CacheError::Directory { .. }) => {
                tracing::error!("files are fetched without the cache: {}", error_chain::describe(&error));
                Ok(fetcher)
            }
            cached => Ok(cached?),
        }
    }

    /// What plugins are recovered and restarted from: what each containerizer knows.
    fn recoverers(
        &self,
        native: &Arc<NativeTable>,
        docker: &Arc<DockerTable>,
        plugins: &[Arc<Plugin>],
    ) -> Arc<Recoverers> {
        let version = |plugin: &Arc<Plugin>| (plugin.name().to_string(), plugin.manifest().version.clone());
        let versions = Arc::new(plugins.iter().map(version).collect());
        let native = TableRecoverer {
            table: Arc::clone(native),
            ledger: Arc::clone(&self.ledger),
            versions: Arc::clone(&versions),
        };
        let docker = TableRecoverer { table: Arc::clone(docker), ledger: Arc::clone(&self.ledger), versions };
        Arc::new(Recoverers::new(vec![Box::new(native), Box::new(docker)]))
    }
}

/// What containerizers and executors share.
struct Shared<'s> {
    base: &'s Base<'s>,
    chain: Chain,
    /// The loggers alone.
    loggers: Chain,
    hooks: Hooks,
    fatal: FatalErrors,
    fetcher: Fetcher,
    images: ImageStore,
    native_table: Arc<NativeTable>,
    docker_table: Arc<DockerTable>,
    foreign: Arc<Foreign>,
}

impl Shared<'_> {
    /// That of the configuration, or those.
    fn containerizer(&self) -> Result<Arc<dyn Containerizer>, StartError> {
        let mut containerizers: Vec<Arc<dyn Containerizer>> = Vec::new();
        for containerizer in &self.base.config.containerizers {
            containerizers.push(match containerizer {
                ContainerizerConfig::Mesos => {
                    Arc::new(self.containers(&self.chain, &self.native_table, self.native()))
                }
                ContainerizerConfig::Docker(config) => {
                    Arc::new(self.containers(&self.loggers, &self.docker_table, self.docker(config)?))
                }
            });
        }
        Ok(match containerizers.len() {
            1 => containerizers.remove(0),
            _ => Arc::new(Composing::new(containerizers, Arc::clone(&self.foreign))),
        })
    }

    /// The containers of a backend.
    fn containers<B: Backend>(
        &self,
        chain: &Chain,
        table: &Arc<Table<B::Part>>,
        backend: B,
    ) -> Containers<B> {
        let Base { ref ledger, ref work_dir, ref host, .. } = *self.base;
        Containers::new(containerizer::Shared {
            fatal: self.fatal.clone(),
            ledger: Arc::clone(ledger),
            chain: chain.clone(),
            fetcher: self.fetcher.clone(),
            hooks: self.hooks.clone(),
            pool: host.pool.clone(),
            table: Arc::clone(table),
            foreign: Arc::clone(&self.foreign),
            work_dir: work_dir.clone(),
            boot_id: self.base.boot_id.clone(),
            backend,
        })
    }

    fn native(&self) -> Native {
        let Base { config, ref work_dir, ref host, .. } = *self.base;
        let (images, pool) = (self.images.clone(), host.pool.clone());
        Native {
            launcher: Arc::clone(&host.launcher),
            provisioner: Provisioner::new(
                images,
                work_dir,
                config.image_backend,
                config.local_images.clone(),
                config.puller.clone(),
                pool,
            ),
            descriptors: self.base.descriptors.clone(),
            recent: Semaphore::new(Shares::current().recent),
            teardowns: Semaphore::new(TEARDOWNS),
            cgroups: self.base.cgroups.clone(),
            nofile: config.container_nofile,
            images: config.images,
        }
    }

    fn docker(&self, docker: &DockerConfig) -> Result<Docker, StartError> {
        let Base { config, ref work_dir, ref host, .. } = *self.base;
        Ok(Docker {
            keepers: Arc::clone(host.launcher.keepers()),
            // An engine has cgroups, whatever the launcher.
            cgroups: mounted_cgroups()?,
            destroy_timeout: config.destroy_timeout,
            engine: Client::new(Arc::clone(&docker.engine), docker.timeouts),
            config: docker.clone(),
            agent: agent_id(work_dir)?,
            sweep: Notify::new(),
        })
    }

    /// They are above the containerizer.
    fn executors(&self, containerizer: &Arc<dyn Containerizer>) -> Result<Executors, StartError> {
        let Base { config, ref ledger, ref work_dir, ref host, .. } = *self.base;
        let paths = executor::Paths {
            journals: work_dir.join("executors"),
            socket_directory: ledger.runtime_dir().join("executor"),
        };
        let program = match &config.executors.launcher_dir {
            Some(directory) => Program::open(directory, work_dir.join("executor"))?,
            None => None,
        };
        Ok(Executors::new(executor::Parts {
            containerizer: Arc::clone(containerizer),
            fatal: self.fatal.clone(),
            hooks: self.hooks.clone(),
            work: host.pool.work().clone(),
            config: config.executors.clone(),
            paths,
            program,
            agent_id: agent_id(work_dir)?,
        }))
    }
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

fn create_directory(path: &Path) -> Result<PathBuf, StartError> {
    let directory_error = |source| StartError::Directory { path: path.to_owned(), source };
    create_searchable(path).map_err(directory_error)?;
    path.canonicalize().map_err(directory_error)
}
