//! The agent: the one place that constructs and connects, and all that it can be asked.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cofferdam_linux::boot::BootId;
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::image::Image;
use cofferdam_plugin_model::{Kind, Method};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sha2::{Digest, Sha256};

use crate::chain::Chain;
use crate::config::{Config, LauncherKind, PluginConfig};
use crate::container::{ContainerId, Request, Resources, Termination};
use crate::containerizer::{
    House, KillError, LaunchError, Launched, Native, RecoverError, RemoveError, Table, UpdateError,
};
use crate::errand::{Errand, Errands};
use crate::fetcher::Fetcher;
use crate::launcher::{Launcher, Linux, Posix, SetUpError};
use crate::ledger::{Ledger, LedgerError, Lock};
use crate::metrics::{Launch, Metrics};
use crate::plugin::{AdmitError, Plugin, PreflightError, Premises, Recoverer, Store, find};
use crate::view::{Inspection, PluginView, StatusView, Summary, UsageView};

/// How many threads may be in plugins and in the kernel at once, the abandoned ones not counted.
const THREADS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// The agent. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    config: Config,
    containers: Native,
    plugins: Vec<Arc<Plugin>>,
    metrics: Metrics,
}

/// Why the agent did not start. Nothing was done to any container.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directories cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Another directory cannot be made.
    #[error("cannot make directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The plugin folder cannot be read.
    #[error("cannot look for plugins in `{path}`; set `plugin_dir`")]
    PluginDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no plugin of that name.
    #[error("there is no {kind} `{name}` in `{folder}` ({place}); put its `.so` there, or give its `path`")]
    NoPlugin {
        /// What it was to be.
        kind: Kind,
        /// Its name.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// Where the configuration names it.
        place: String,
    },
    /// There is more than one.
    #[error(
        "there are several plugins `{name}`: {}; remove all but one, or say which with `path` ({place})",
        .files.iter().map(|file| format!("`{}`", file.display())).collect::<Vec<_>>().join(", ")
    )]
    Ambiguous {
        /// The name.
        name: String,
        /// The files.
        files: Vec<PathBuf>,
        /// Where the configuration names it.
        place: String,
    },
    /// A plugin is not let in.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The plugin that is named cannot be read.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The launcher does not work on this machine.
    #[error("the `linux` launcher does not work here; as an ordinary user, set `launcher = \"posix\"`")]
    Launcher(#[from] SetUpError),
    /// The kernel does not tell what the agent must know.
    #[error("cannot read {what}")]
    Kernel {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// What an earlier agent left cannot be taken over.
    #[error("cannot take over what an earlier agent left")]
    Recover(#[from] RecoverError),
    /// A thread died.
    #[error("the start was lost: {0}")]
    Lost(#[from] crate::errand::Abandoned),
}

impl Agent {
    /// Reads the ledger, loads the plugins and takes over what an earlier agent left. Launches are taken
    /// when this returns, and not before.
    ///
    /// Raises this process's limit of open descriptors to the most it may have.
    ///
    /// # Errors
    /// [`StartError`]; no container was touched.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let errands = Errands::new(THREADS);
        let plugins = config.isolators.iter().chain(&config.logger);
        let patience = plugins.map(|plugin| plugin.deadline(Method::Create)).min();
        let patience = patience.unwrap_or(config.destroy_timeout);
        let build = {
            let (config, errands) = (config.clone(), errands.clone());
            errands.clone().run(patience, move |errand| build(errand, &config, errands)).await??
        };
        let Built { house, plugins } = build;
        let containers = Native::new(house);
        let started = Instant::now();
        let recovered = containers.recover().await?;
        tracing::info!(
            running = recovered.running,
            ended = recovered.ended,
            undone = recovered.undone,
            micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "recovered"
        );
        Ok(Self(Arc::new(Inner { config, containers, plugins, metrics: Metrics::default() })))
    }

    /// What it was told to be.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Launches a container, or leaves no trace of it.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn launch(&self, request: Request) -> Result<Launched, LaunchError> {
        let started = Instant::now();
        let outcome = self.0.containers.launch(request).await;
        let counted = if outcome.is_ok() { Launch::Started } else { Launch::Failed };
        self.0.metrics.launched(counted, started.elapsed());
        outcome
    }

    /// Waits for a container to have ended and been cleaned up. `None` for one that nobody knows.
    pub async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        self.0.containers.wait(id).await
    }

    /// Sends a signal to a container's command; SIGKILL ends the container. False when nobody knows it.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub async fn kill(&self, id: &ContainerId, signal: i32) -> Result<bool, KillError> {
        self.0.containers.kill(id, signal).await
    }

    /// Ends a container and waits until nothing is left of it. `None` for one that nobody knows.
    pub async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        self.0.containers.destroy(id).await
    }

    /// Forgets a container that has ended, with its sandbox. False when nobody knows it.
    ///
    /// # Errors
    /// When it has not ended.
    pub async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        self.0.containers.remove(id).await
    }

    /// Changes what a container may use, all of it or nothing.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn update(&self, id: &ContainerId, resources: Resources) -> Result<(), UpdateError> {
        self.0.containers.update(id, resources).await
    }

    /// What a container uses. `None` for one that nobody knows or that does not run.
    pub async fn usage(&self, id: &ContainerId) -> Option<UsageView> {
        self.0.containers.usage(id).await
    }

    /// How a container is. `None` for one that nobody knows or that does not run.
    pub async fn status(&self, id: &ContainerId) -> Option<StatusView> {
        self.0.containers.status(id).await
    }

    /// All containers, parents before children.
    #[must_use]
    pub fn containers(&self) -> Vec<Summary> {
        self.0.containers.containers()
    }

    /// Everything that is known of a container.
    #[must_use]
    pub fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        self.0.containers.inspect(id)
    }

    /// All plugins, in the order of the chain, the logger last.
    #[must_use]
    pub fn plugins(&self) -> Vec<PluginView> {
        self.0.plugins.iter().map(|plugin| plugin.view()).collect()
    }

    /// What the agent counts, as of now.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        let phases = self.containers().into_iter().map(|container| container.phase);
        self.0.metrics.refresh(phases, &self.plugins());
        &self.0.metrics
    }

    /// Stops being the agent of its containers. They run on, and the next one takes them over.
    pub async fn shutdown(self) {
        self.0.containers.leave().await;
        let running = self.containers().iter().filter(|container| container.phase.is_live()).count();
        tracing::info!(running, "containers run on without an agent");
    }

    /// Ends every container. Answers those that are not gone in time.
    pub async fn end_all(&self) -> Vec<ContainerId> {
        self.0.containers.end_all(self.0.config.destroy_timeout).await
    }
}

struct Built {
    house: House,
    plugins: Vec<Arc<Plugin>>,
}

/// Makes and connects everything. Blocks; touches no container.
fn build(errand: &Errand, config: &Config, errands: Errands) -> Result<Built, StartError> {
    let ledger = Arc::new(Ledger::open(&config.runtime_dir)?);
    let work_dir = make_directory(&config.work_dir)?;
    // An agent takes what it does not know in its work directory for left over, so it must be alone there, too.
    let work_lock = (work_dir != ledger.runtime_dir()).then(|| Lock::take(&work_dir)).transpose()?;
    let boot_id = BootId::current()
        .map_err(|source| StartError::Kernel { what: "the machine's boot id", source })?
        .as_str()
        .to_owned();
    let image = Image::seal("cofferdam-init", cofferdam_init::IMAGE)
        .map_err(|source| StartError::Kernel { what: "the first process into sealed memory", source })?;
    let cgroups = match config.launcher {
        LauncherKind::Posix => Cgroups::default(),
        LauncherKind::Linux => Cgroups::detect()
            .map_err(|source| StartError::Kernel { what: "the mounted control groups", source })?,
    };
    let launcher: Box<dyn Launcher> = match config.launcher {
        LauncherKind::Posix => Box::new(Posix::new(Arc::new(image), config.destroy_timeout)),
        LauncherKind::Linux => Box::new(linux(config, &ledger, cgroups.clone(), image)?),
    };

    let table = Arc::new(Table::new(Arc::clone(&ledger)));
    let store = Store::new(config.plugin_store.as_ref().unwrap_or(&work_dir.join("plugins")));
    let premises = Premises { runtime_dir: ledger.runtime_dir(), work_dir: &work_dir, store: &store };
    let shelf = Shelf::read(config)?;
    let isolators = config
        .isolators
        .iter()
        .map(|entry| shelf.admit(errand, entry, Kind::Isolator, &premises))
        .collect::<Result<Vec<_>, _>>()?;
    let logger = config
        .logger
        .as_ref()
        .map(|entry| shelf.admit(errand, entry, Kind::Logger, &premises))
        .transpose()?;
    let plugins: Vec<Arc<Plugin>> = isolators.iter().chain(&logger).cloned().collect();
    let version = |plugin: &Arc<Plugin>| (plugin.name().to_string(), plugin.manifest().version.clone());
    table.set_versions(plugins.iter().map(version).collect::<BTreeMap<_, _>>());

    let recoverer: Arc<dyn Recoverer> = Arc::clone(&table) as Arc<dyn Recoverer>;
    let chain = Chain::new(isolators, logger, errands.clone(), recoverer);
    let program = std::env::current_exe()
        .map_err(|source| StartError::Kernel { what: "where this program is", source })?;
    let house = House {
        ledger,
        chain,
        launcher,
        fetcher: Fetcher::new(program),
        errands,
        table,
        work_dir,
        _work_lock: work_lock,
        cgroups,
        boot_id,
        descriptors: allow_descriptors(),
    };
    Ok(Built { house, plugins })
}

/// Makes the `linux` launcher, and makes this process undumpable: a process on its way into a container shares
/// the agent's memory until it executes, and nobody in there may look.
fn linux(config: &Config, ledger: &Ledger, cgroups: Cgroups, image: Image) -> Result<Linux, StartError> {
    set_dumpable(false).map_err(|errno| StartError::Kernel {
        what: "whether this process may be traced",
        source: errno.into(),
    })?;
    let instance = instance_of(ledger.runtime_dir());
    Ok(Linux::new(cgroups, &config.cgroup_root, &instance, Arc::new(image), config.destroy_timeout)?)
}

/// Allows this process as many descriptors as it may have: a running container takes three or four. Answers
/// what was allowed before, which is what containers start with.
fn allow_descriptors() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!("cannot allow more than {soft} open descriptors: {error}");
        return None;
    }
    Some((soft, hard))
}

fn make_directory(path: &Path) -> Result<PathBuf, StartError> {
    let directory_error = |source| StartError::Directory { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(directory_error)?;
    path.canonicalize().map_err(directory_error)
}

/// What keeps the control groups of agents on one machine apart: an agent is who owns a runtime directory.
#[must_use]
pub fn instance_of(runtime_dir: &Path) -> String {
    let runtime_dir = runtime_dir.canonicalize().unwrap_or_else(|_| runtime_dir.to_owned());
    let digest = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The plugin files that the agent may choose from.
struct Shelf<'a> {
    folder: &'a PathBuf,
    files: BTreeMap<String, Vec<PathBuf>>,
}

impl<'a> Shelf<'a> {
    /// Reads the manifests in the plugin folder. A file that is not fit is left out here; it is complained
    /// of when it is named.
    fn read(config: &'a Config) -> Result<Self, StartError> {
        let folder = &config.plugin_dir;
        let mut files = BTreeMap::<String, Vec<PathBuf>>::new();
        let by_name = config.isolators.iter().chain(&config.logger).any(|entry| entry.path.is_none());
        if by_name {
            let found =
                find(folder).map_err(|source| StartError::PluginDir { path: folder.clone(), source })?;
            for (path, manifest) in found {
                match manifest {
                    Ok(manifest) => files.entry(manifest.name).or_default().push(path),
                    Err(error) => tracing::warn!("{}", crate::report::chain(&error)),
                }
            }
        }
        Ok(Self { folder, files })
    }

    fn admit(
        &self,
        errand: &Errand,
        entry: &PluginConfig,
        kind: Kind,
        premises: &Premises<'_>,
    ) -> Result<Arc<Plugin>, StartError> {
        let file = match (&entry.path, self.files.get(&entry.name).map(Vec::as_slice)) {
            (Some(path), _) => self.folder.join(path),
            (None, Some([file])) => file.clone(),
            (None, Some(files)) if !files.is_empty() => {
                return Err(StartError::Ambiguous {
                    name: entry.name.clone(),
                    files: files.to_vec(),
                    place: entry.place.to_string(),
                });
            }
            (None, _) => {
                return Err(StartError::NoPlugin {
                    kind,
                    name: entry.name.clone(),
                    folder: self.folder.clone(),
                    place: entry.place.to_string(),
                });
            }
        };
        let plugin = Plugin::admit(errand, entry, kind, &file, premises)?;
        tracing::info!(
            plugin = %plugin.name(),
            version = %plugin.manifest().version,
            file = %file.display(),
            "loaded"
        );
        Ok(Arc::new(plugin))
    }
}
