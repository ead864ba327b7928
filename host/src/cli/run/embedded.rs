//! An agent for one command, in directories of its own.
//!
//! ```text
//! /run/cofferdam-run/<name>            its runtime directory, locked while it runs
//! /var/lib/cofferdam-run/<name>        its work directory
//! ```
//!
//! Both are removed at the end. Those of an agent that was killed are found by the next one, as their lock is free. It
//! destroys what is left of the container and removes them. A directory has a name that begins with `.new-` until it is
//! locked.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::api::operator::{encode_fetch, exec_failure};
use crate::cli::Outcome;
use crate::cli::failure::Failure;
use crate::cli::foreground::{self, Input, InputSink, NOT_RUN, OnSignal, Session, Signals, not_run_status};
use crate::cli::index::Files;
use crate::cli::process;
use crate::cli::progress::LaunchReporter;
use crate::config::{Config, Environment, Overrides};
use crate::telemetry::start_logging;
use cofferdam_core::agent::Agent;
use cofferdam_core::config::{AgentConfig, ContainerizerConfig};
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::events::{EventKind, Received};
use cofferdam_core::model::{Request, VolumeSource};
use cofferdam_core::plugin::Store;
use cofferdam_core::provisioner::Store as Images;
use cofferdam_core::switchboard::Attachment;
use cofferdam_linux::tree;

use super::AgentFlags;
use super::pull::{self, PullPolicy};

/// Other users need to traverse the directories, as a container may run as another user.
const MODE: u32 = 0o711;

/// Name of a directory that is not locked yet, and of the lock in it.
const NEW: &str = ".new-";
const LOCK: &str = "run.lock";

/// Minimum age of abandoned directories without a lock.
const SETTLED: Duration = Duration::from_secs(60);

/// An agent for one command, before it is started.
pub(super) struct Embedded {
    config: Config,
    environment: Environment,
    home: Home,
    store: Arc<Store>,
    /// Where registries are configured, unless it is the default.
    file: Option<PathBuf>,
    pull: PullPolicy,
}

/// The two directories of an embedded agent.
struct Home {
    runtime: PathBuf,
    work: PathBuf,
    /// `None` for those of an agent that was killed.
    _lock: Option<Flock<File>>,
}

impl Embedded {
    /// Creates the directories and the configuration.
    pub(super) fn new(flags: AgentFlags) -> Result<Self, Failure> {
        let AgentFlags { config: file, plugin_dir, image_store, pull, isolation, log } = flags;
        let environment = Environment::detect();
        process::set_umask();
        let home = Home::make(&environment)?;
        let overrides = Overrides {
            runtime_dir: Some(home.runtime.clone()),
            work_dir: Some(home.work.clone()),
            plugin_dir,
            isolation,
            log: Some(log),
            ..Overrides::default()
        };
        // All agents of this kind share one.
        let plugin_store = beside(&environment.work_dir).join("plugins");
        let store = Arc::new(Store::open(&plugin_store));
        let files = Files::Indexed(Arc::clone(&store));
        let config = match &file {
            Some(file) => Config::load(file, &overrides, &environment, &files),
            None => Config::embedded(&overrides, &environment, &files),
        };
        match config {
            Ok(mut config) => {
                config.agent.plugin_store = Some(plugin_store);
                // What is in the work directory is removed at the end.
                let image_store = image_store.map(|path| environment.cwd.join(path));
                let image_store = image_store.or(config.agent.image_store);
                config.agent.image_store = image_store.or_else(|| Some(environment.image_store()));
                start_logging(&config.log, config.log_json);
                process::prepare(&mut config.agent, &environment)?;
                // Images are pulled before, where people see how far that is.
                config.agent.puller = None;
                // It would end with the command, or belong to the agent that is running.
                config.agent.fetch_cache = None;
                // It runs no tasks.
                config.agent.executors.launcher_dir = None;
                config.agent.kill_containers_with_agent = true;
                // The command line launches containers of processes only.
                config.agent.containerizers = vec![ContainerizerConfig::Mesos];
                Ok(Self { config, environment, home, store, file, pull: pull.unwrap_or_default() })
            }
            Err(error) => {
                home.remove()?;
                Err(error.into())
            }
        }
    }

    /// Runs the command and removes everything.
    pub(super) async fn run(self, request: Request, reads: bool) -> Outcome {
        // First, so that no signal is lost: one during the launch is forwarded after it.
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(failure) => {
                self.home.remove()?;
                return Err(failure.with_status(NOT_RUN));
            }
        };
        for image in images(&request) {
            match self.pull(image, &mut signals).await {
                Ok(None) => {}
                Ok(Some(status)) => {
                    self.home.remove()?;
                    return Ok(status);
                }
                Err(failure) => {
                    self.home.remove()?;
                    return Err(failure.with_status(NOT_RUN));
                }
            }
        }
        let agent = match Agent::start_with(self.config.agent.clone(), Some(Arc::clone(&self.store))).await {
            Ok(agent) => agent,
            Err(error) => {
                self.home.remove()?;
                return Err(Failure::of(error).with_status(NOT_RUN));
            }
        };
        let outcome = run_in_foreground(&agent, request, reads, &mut signals).await;
        end(agent).await?;
        self.home.remove()?;
        // Last, so that the output is not delayed.
        self.sweep().await;
        outcome
    }

    async fn pull(&self, image: &str, signals: &mut Signals) -> Result<Option<u8>, Failure> {
        let path = self.config.agent.image_store.clone().unwrap_or_else(|| self.environment.image_store());
        let (store, config) = (Images::at(path), self.file.as_deref());
        pull::pull(image, self.pull, store, config, &self.environment, signals).await
    }

    /// Destroys what killed agents have left behind, and removes their directories.
    async fn sweep(&self) {
        for home in Home::left_behind(&self.environment) {
            let config = AgentConfig {
                runtime_dir: home.runtime.clone(),
                work_dir: home.work.clone(),
                ..self.config.agent.clone()
            };
            let swept = match Agent::start(config).await {
                Ok(agent) => end(agent).await.and_then(|()| home.remove()),
                Err(error) => Err(Failure::of(error)),
            };
            if let Err(failure) = swept {
                let error = cofferdam_core::error_chain::describe(failure.error());
                tracing::warn!(%error, runtime_dir = %home.runtime.display(), "cannot remove what a killed agent has left behind");
            }
        }
    }
}

/// The images of a request and of its volumes.
fn images(request: &Request) -> impl Iterator<Item = &String> {
    let of_volumes = request.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Image { image, .. } => Some(image),
        _ => None,
    });
    request.image.iter().chain(of_volumes)
}

/// Runs a command in the foreground.
async fn run_in_foreground(agent: &Agent, request: Request, reads: bool, signals: &mut Signals) -> Outcome {
    let (id, interactive, has_terminal) = (request.id.clone(), request.interactive, request.tty.is_some());
    launch(agent, request).await.map_err(|error| {
        let status = not_run_status(error.exec_error().and_then(exec_failure));
        Failure::of(error).with_status(status)
    })?;
    let Attachment { output, input } = agent.attach_first(&id).map_err(Failure::of)?;
    let input = match interactive || has_terminal {
        true => Some(Input::new(InputSink::Own(input), has_terminal, reads, None)?),
        false => None,
    };
    let session = Session::own(agent.clone(), id.clone(), output);
    foreground::run(session, input, signals, OnSignal::Forward).await?.exit(id.as_str())
}

/// Launches the container, and reports how far the fetch of its files is.
async fn launch(agent: &Agent, request: Request) -> Result<(), LaunchError> {
    let mut events = agent.events().subscribe(None);
    let launching = agent.launch(request);
    tokio::pin!(launching);
    let mut reporter = None;
    let outcome = loop {
        let received = tokio::select! {
            outcome = &mut launching => break outcome,
            received = events.next() => received,
        };
        if let Received::Event(event) = received
            && let EventKind::Fetch { progress, .. } = &event.kind
        {
            reporter.get_or_insert_with(LaunchReporter::new).fetch(&encode_fetch(progress));
        }
    };
    if let Some(reporter) = reporter {
        reporter.finish();
    }
    outcome.map(drop)
}

/// Stops an agent and destroys its containers.
async fn end(agent: Agent) -> Result<(), Failure> {
    let left = agent.destroy_all().await;
    agent.shutdown().await;
    if left.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = left.iter().map(|id| id.as_str()).collect();
    Err(Failure::message(format!("cannot destroy {}; its processes may still be running", ids.join(", "))))
}

impl Home {
    fn make(environment: &Environment) -> Result<Self, Failure> {
        let parent = beside(&environment.runtime_dir);
        let failed =
            |path: &Path, source| Failure::system(format!("cannot create `{}`", path.display()), source);
        DirBuilder::new()
            .recursive(true)
            .mode(MODE)
            .create(&parent)
            .map_err(|source| failed(&parent, source))?;
        check_owner(&parent, environment.uid)?;
        let (runtime, lock) = Self::make_runtime(&parent).map_err(|source| failed(&parent, source))?;
        let home = Self { _lock: Some(lock), ..Self::of(environment, runtime) };
        match DirBuilder::new().recursive(true).mode(MODE).create(&home.work) {
            Ok(()) => Ok(home),
            Err(source) => {
                let failure = failed(&home.work, source);
                home.remove()?;
                Err(failure)
            }
        }
    }

    /// Creates a runtime directory that nobody takes for abandoned.
    fn make_runtime(parent: &Path) -> io::Result<(PathBuf, Flock<File>)> {
        let new = tempfile::Builder::new()
            .prefix(NEW)
            .permissions(Permissions::from_mode(MODE))
            .tempdir_in(parent)?;
        let lock = File::options().write(true).create_new(true).mode(0o600).open(new.path().join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        let name = new.path().file_name().and_then(|name| name.to_str()?.strip_prefix(NEW));
        let runtime = parent.join(name.unwrap_or_default());
        fs::rename(new.path(), &runtime)?;
        // Its name is not that of a directory any more.
        drop(new.keep());
        Ok((runtime, lock))
    }

    fn of(environment: &Environment, runtime: PathBuf) -> Self {
        let work = beside(&environment.work_dir).join(runtime.file_name().unwrap_or_default());
        Self { runtime, work, _lock: None }
    }

    fn remove(&self) -> Result<(), Failure> {
        for path in [&self.work, &self.runtime] {
            tree::remove(path).map_err(Failure::of)?;
        }
        Ok(())
    }

    fn left_behind(environment: &Environment) -> Vec<Self> {
        let Ok(entries) = beside(&environment.runtime_dir).read_dir() else { return Vec::new() };
        let abandoned = entries.flatten().map(|entry| entry.path()).filter(|runtime| is_abandoned(runtime));
        abandoned.map(|runtime| Self::of(environment, runtime)).collect()
    }
}

/// The parent may be in `/tmp`, where another user may have created it.
fn check_owner(path: &Path, uid: u32) -> Result<(), Failure> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|source| Failure::system(format!("cannot inspect `{}`", path.display()), source))?;
    if metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Failure::message(format!(
        "`{}` must be a directory that is owned by user {uid} and not writable by others; set `XDG_RUNTIME_DIR`",
        path.display()
    )))
}

/// Whether a runtime directory is not locked, and would be if its agent was running.
fn is_abandoned(runtime: &Path) -> bool {
    let is_new = runtime.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NEW));
    if let Ok(lock) = File::open(runtime.join(LOCK))
        && !is_new
    {
        return Flock::lock(lock, FlockArg::LockSharedNonblock).is_ok();
    }
    let age =
        fs::metadata(runtime).and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed());
    let settled = age.is_ok_and(|age| age.is_ok_and(|age| age > SETTLED));
    settled
        && match File::open(runtime.join("agent.lock")) {
            Ok(lock) => Flock::lock(lock, FlockArg::LockSharedNonblock).is_ok(),
            // Its agent died before it created the lock, or anything else.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
}

/// `/run/cofferdam` is the directory of the daemon; embedded agents use `/run/cofferdam-run`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-run");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_old_directories_without_lock_are_abandoned() {
        let directory = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 2 * SETTLED;
        let age = || File::open(directory.path()).unwrap().set_modified(long_ago).unwrap();
        assert!(!is_abandoned(directory.path()));
        age();
        assert!(is_abandoned(directory.path()));

        let lock = File::create(directory.path().join("agent.lock")).unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
        age();
        assert!(!is_abandoned(directory.path()));
        drop(lock);
        assert!(is_abandoned(directory.path()));
    }

    #[test]
    fn both_directories_are_created_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let environment = Environment {
            runtime_dir: directory.path().join("run/cofferdam"),
            work_dir: directory.path().join("lib/cofferdam"),
            ..Environment::detect()
        };
        let home = Home::make(&environment).unwrap();
        let other_user = Environment { uid: environment.uid + 1, ..environment.clone() };
        assert!(Home::make(&other_user).is_err());
        assert!(
            home.runtime.starts_with(directory.path().join("run/cofferdam-run")) && home.runtime.is_dir()
        );
        assert_eq!(
            home.work,
            directory.path().join("lib/cofferdam-run").join(home.runtime.file_name().unwrap())
        );
        assert_eq!(fs::metadata(&home.work).unwrap().permissions().mode() & 0o777, MODE);
        assert!(!is_abandoned(&home.runtime));
        let (runtime, work) = (home.runtime.clone(), home.work.clone());
        // As when it is killed.
        drop(home);
        assert!(is_abandoned(&runtime));
        let left = Home::left_behind(&environment);
        let [home] = &left[..] else { panic!("{} directories", left.len()) };
        assert_eq!((&home.runtime, &home.work), (&runtime, &work));
        home.remove().unwrap();
        home.remove().unwrap();
        assert!(!runtime.exists() && !work.exists());
    }
}
