//! Keepers: the processes beside the agent that create the processes of containers, outlive the agent, and record how
//! containers end. [`cofferdam_init`] is their program.
//!
//! ```text
//! <runtime_dir>/keepers/<name>/socket      where a keeper accepts the next agent
//! <runtime_dir>/keepers/<name>/statuses    how its processes ended
//! ```
//!
//! An agent starts one keeper. A later agent connects to it, and uses it for new containers too if it is of the same
//! build; otherwise it starts another one, and the old one ends with its last container. One of a later version of the
//! protocol is not asked, only its file is read. A keeper that was killed is
//! replaced; its containers run on, and their exit statuses come from the kernel where it can tell. One that does not
//! answer is replaced at the next launch, and records how its containers end if it ever continues.

mod instance;

use std::fs;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_init::client::{Connection, Control, Remaining, RequestError, Spawned};
use cofferdam_init::protocol::{Slot, Spawn, State, Switchboard};
use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups, Version};
use cofferdam_linux::image::Image;
use cofferdam_linux::process::{Process, ProcessError};
use cofferdam_linux::spawn::SpawnError;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::blocking::WorkPool;
use crate::error_chain;
use crate::model::view::KeepersView;
use crate::readiness;
use instance::Instance;

/// Pause before a keeper that was killed is replaced without a launch.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// How long a setup process that has reported that the command runs may take to end.
const SETUP_GRACE: Duration = Duration::from_secs(1);

/// How long a process of a keeper that was killed may take to be reaped by its new parent.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a keeper records how a process ends. Part of the records on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperSlot {
    /// Name of the keeper.
    pub keeper: String,
    /// Its slot for the process.
    pub slot: Slot,
}

/// A setup process that waits for its plan.
#[derive(Debug)]
pub struct SetupProcess {
    /// The process.
    pub process: Process,
    /// The agent's end of its control socket.
    pub control: Control,
    /// Where its keeper records how the container ends.
    pub slot: KeeperSlot,
}

/// How a container's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// With this wait status.
    Ended(i32),
    /// The command never ran.
    NotStarted,
    /// Its keeper was killed before it could record that, and the kernel does not tell.
    Unknown,
}

/// Cgroups for a keeper, which is neither in that of the agent nor in that of a container.
#[derive(Debug, Default)]
pub struct KeeperCgroups {
    /// A v2 directory.
    pub v2: Option<OwnedFd>,
    /// `tasks` files of v1 directories.
    pub v1: Vec<OwnedFd>,
}

impl KeeperCgroups {
    /// The same, and the root of each hierarchy in which these have no cgroup: for an agent whose own cgroups are those of a
    /// container, with which all processes in them are killed.
    ///
    /// # Errors
    /// If a root is not writable.
    pub(crate) fn and_roots(mut self, machine: &Cgroups) -> Result<Self, CgroupError> {
        if self.v2.is_none() {
            self.v2 = machine.unified("").map(|root| root.directory()).transpose()?;
        }
        let roots = machine.legacy.iter().map(|hierarchy| Cgroup::at(&hierarchy.mount, Version::V1).tasks());
        let own = std::mem::take(&mut self.v1);
        self.v1 = roots.chain(own.into_iter().map(Ok)).collect::<Result<_, _>>()?;
        Ok(self)
    }
}

/// Why no process can be created.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The agent is in a container, and its keeper cannot be outside.
    #[error(
        "the keeper cannot leave the cgroups of the agent's container, with which it would be killed; start that container with `--cgroupns host` and `--volume /sys/fs/cgroup:/sys/fs/cgroup`, or remove `docker.mesos_image` if the agent is in none"
    )]
    Cgroups(#[source] CgroupError),
    /// A file of the keeper cannot be created.
    #[error("cannot create `{}` for the keeper", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Its process cannot be created.
    #[error("cannot start the keeper")]
    Spawn(#[source] SpawnError),
    /// The control socket of a setup process cannot be created.
    #[error("cannot create the control socket of a container")]
    Control(#[source] io::Error),
    /// It did not answer, or refused.
    #[error("request to keeper `{keeper}` failed")]
    Request {
        /// Name of the keeper.
        keeper: String,
        /// The reason.
        source: RequestError,
    },
}

impl KeeperError {
    /// Whether a file could not be created for lack of space.
    fn is_no_space(&self) -> bool {
        let is_full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        matches!(self, Self::File { source, .. } if is_full(source))
    }
}

/// Whether a directory is of a keeper: its name is a build and a number, or it has recorded statuses.
fn is_keeper(parent: &Path, name: &str) -> bool {
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    is_name(name) || is_file(&parent.join(name).join("statuses"))
}

fn is_name(name: &str) -> bool {
    let Some((build, number)) = name.split_once('-') else { return false };
    let all = |text: &str, is: fn(&u8) -> bool| !text.is_empty() && text.as_bytes().iter().all(is);
    all(build, u8::is_ascii_hexdigit) && all(number, u8::is_ascii_digit)
}

/// All keepers of an agent.
#[derive(Debug)]
pub struct Keepers {
    directory: PathBuf,
    image: Image,
    /// Distinguishes builds of the program.
    build: &'static str,
    cgroups: KeeperCgroups,
    /// Whether containers end with the agent.
    kill_on_disconnect: bool,
    /// How long a request may take.
    timeout: Duration,
    /// Where the tasks run that wait for the end of keepers.
    runtime: Handle,
    /// For what these tasks have to wait for.
    work: WorkPool,
    /// Locked during a request: requests take microseconds, unless a keeper was stopped.
    instances: Mutex<Instances>,
    /// Readable at any time.
    view: Mutex<KeepersView>,
}

#[derive(Debug, Default)]
struct Instances {
    /// For new containers.
    current: Option<Instance>,
    older: Vec<Instance>,
    /// The lowest number that the name of the next one may have.
    next: u64,
    /// How many were killed or did not answer.
    lost: u64,
    /// It is known which statuses are needed.
    recovered: bool,
    /// None is started any more.
    shut_down: bool,
}

impl Keepers {
    /// Connects to the keepers of earlier agents, and starts one if none of them is of this build. `timeout` is that of
    /// a request. The tasks that watch them run on `runtime`, and in `work` where they block.
    ///
    /// # Errors
    /// If a keeper cannot be started. One that does not answer is no error.
    pub fn open(
        runtime_dir: &Path,
        cgroups: KeeperCgroups,
        kill_on_disconnect: bool,
        timeout: Duration,
        runtime: Handle,
        work: WorkPool,
    ) -> Result<Arc<Self>, KeeperError> {
        let directory = runtime_dir.join("keepers");
        let file_error = |source| KeeperError::File { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(file_error)?;
        let image = Image::seal("cofferdam-keeper", cofferdam_init::IMAGE).map_err(file_error)?;
        let keepers = Arc::new(Self {
            directory,
            image,
            build: cofferdam_init::BUILD,
            cgroups,
            kill_on_disconnect,
            timeout,
            runtime,
            work,
            instances: Mutex::default(),
            view: Mutex::default(),
        });
        let names = keepers.names();
        let names = names.map_err(|source| KeeperError::File { path: keepers.directory.clone(), source })?;
        let mut instances = keepers.lock();
        for name in names {
            let instance = Instance::open(&keepers.directory, &name, timeout);
            keepers.watch(&instance);
            if instances.current.is_none() && name.starts_with(keepers.build) && instance.is_running() {
                instances.current = Some(instance);
            } else {
                instances.older.push(instance);
            }
        }
        match keepers.current(&mut instances) {
            // What exists can be ended, which may be what frees space. The next launch tries again.
            Err(error) if error.is_no_space() => {
                tracing::error!(
                    "no keeper, so no container can be launched: {}",
                    error_chain::describe(&error)
                );
            }
            other => drop(other?),
        }
        drop(instances);
        Ok(keepers)
    }

    fn lock(&self) -> Locked<'_> {
        Locked { instances: self.instances.lock(), view: &self.view }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            match entry.file_name().into_string() {
                Ok(name) if entry.file_type()?.is_dir() && is_keeper(&self.directory, &name) => {
                    names.push(name)
                }
                _ => tracing::warn!("ignored `{}`: it is not of a keeper", entry.path().display()),
            }
        }
        names.sort();
        Ok(names)
    }

    /// The keeper of new containers, started if there is none.
    fn current<'i>(self: &Arc<Self>, instances: &'i mut Instances) -> Result<&'i mut Instance, KeeperError> {
        instances.set_lost_aside();
        let Instances { current, next, .. } = instances;
        match current {
            Some(current) => Ok(current),
            none => {
                let started = Instance::start(
                    &self.directory,
                    self.build,
                    next,
                    &self.image,
                    &self.cgroups,
                    self.kill_on_disconnect,
                    self.timeout,
                )?;
                tracing::debug!(keeper = started.name(), pid = started.pid(), "keeper started");
                self.watch(&started);
                Ok(none.insert(started))
            }
        }
    }

    /// Waits for the end of a keeper, in a task: reaps it, and replaces it if it was killed.
    fn watch(self: &Arc<Self>, instance: &Instance) {
        let Some(process) = instance.process() else { return };
        // The agent may be dropped before the keeper ends, and its threads with it.
        let keepers = Arc::downgrade(self);
        self.runtime.spawn(async move {
            readiness::exited(&process).await;
            drop(process.reap());
            let Some(work) = keepers.upgrade().map(|keepers| keepers.work.clone()) else { return };
            let set_aside = {
                let keepers = keepers.clone();
                move || {
                    let Some(keepers) = keepers.upgrade() else { return false };
                    let mut instances = keepers.lock();
                    let lost = instances.set_lost_aside();
                    instances.remove_unneeded();
                    lost
                }
            };
            // Blocks while a request is made.
            if !work.run(set_aside).await.unwrap_or(false) {
                return;
            }
            drop(work);
            // A launch does not wait for this; it keeps one that ends at once from being started without a pause.
            tokio::time::sleep(RESTART_DELAY).await;
            let Some(work) = keepers.upgrade().map(|keepers| keepers.work.clone()) else { return };
            let replace = move || {
                let Some(keepers) = keepers.upgrade() else { return };
                let mut instances = keepers.lock();
                if !instances.shut_down
                    && let Err(error) = keepers.current(&mut instances)
                {
                    let error = error_chain::describe(&error);
                    tracing::error!("the keeper cannot be replaced before the next launch: {error}");
                }
            };
            drop(work.run(replace).await);
        });
    }

    /// Creates a setup process. If the keeper was killed, a new one does it. `others` are the descriptors of [`Spawn`]
    /// that follow the standard streams and the control socket.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn spawn(
        self: &Arc<Self>,
        spawn: Spawn,
        stdio: [BorrowedFd<'_>; 3],
        others: &[BorrowedFd<'_>],
    ) -> Result<SetupProcess, KeeperError> {
        let (control, (slot, Spawned { pid, pidfd, .. })) = self.request(true, |current| {
            // Another one for each attempt: two setup processes must not share it.
            let (control, theirs) = Control::pair().map_err(KeeperError::Control)?;
            let descriptors: Vec<_> =
                stdio.into_iter().chain([theirs.as_fd()]).chain(others.iter().copied()).collect();
            let created = current.request(|connection| connection.spawn(spawn, &descriptors));
            Ok(created.map(|spawned| {
                current.add(spawned.slot);
                let slot = KeeperSlot { keeper: current.name().to_owned(), slot: spawned.slot };
                (control, (slot, spawned))
            }))
        })?;
        Ok(SetupProcess { process: Process::from_spawned(pid, pidfd), control, slot })
    }

    /// Creates the I/O switchboard of a container. `descriptors` are those of [`Switchboard`].
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn create_switchboard(
        self: &Arc<Self>,
        switchboard: Switchboard,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Process, KeeperError> {
        // If one was created, it has the same descriptors, so that there must not be another one.
        let (pid, pidfd) = self.request(false, |current| {
            let create = |connection: &Connection| connection.create_switchboard(switchboard, descriptors);
            Ok(current.request(create))
        })?;
        Ok(Process::from_spawned(pid, pidfd))
    }

    /// Makes a request of the keeper of new containers. If it was killed, a new one gets it if the request is to be retried:
    /// what was created all the same ends with its sockets.
    fn request<T>(
        self: &Arc<Self>,
        mut retry: bool,
        make: impl Fn(&mut Instance) -> Result<Result<T, RequestError>, KeeperError>,
    ) -> Result<T, KeeperError> {
        let mut instances = self.lock();
        loop {
            let current = self.current(&mut instances)?;
            match make(current)? {
                Ok(made) => return Ok(made),
                Err(RequestError::Connection(_)) if retry => retry = false,
                Err(source) => {
                    return Err(KeeperError::Request { keeper: current.name().to_owned(), source });
                }
            }
        }
    }

    /// How a process ended that has ended. `process` is a handle from before that.
    #[must_use]
    pub fn collect(&self, slot: &KeeperSlot, process: Option<&Process>) -> ProcessEnd {
        self.collect_with_remaining(slot, process).0
    }

    /// As [`Keepers::collect`], with what has not ended of the container.
    #[must_use]
    pub fn collect_with_remaining(
        &self,
        slot: &KeeperSlot,
        process: Option<&Process>,
    ) -> (ProcessEnd, Remaining) {
        let end = match self.recorded(slot) {
            Some((State::Ended | State::Exited, status, remaining)) => {
                return (ProcessEnd::Ended(status), remaining);
            }
            Some((State::NotStarted, ..)) => ProcessEnd::NotStarted,
            _ => match process.map(|process| process.wait_status(REAP_TIMEOUT)) {
                Some(Ok(Some(status))) => ProcessEnd::Ended(status),
                _ => ProcessEnd::Unknown,
            },
        };
        (end, Remaining::default())
    }

    /// What has not ended of a container whose command has. Process 1 of its pid namespace ends after all others in it.
    #[must_use]
    pub fn remaining(&self, slot: &KeeperSlot) -> Remaining {
        self.recorded(slot).map(|(_, _, remaining)| remaining).unwrap_or_default()
    }

    /// Waits until the setup process of a container has ended, whose command has: it has nothing left to do, and is killed
    /// if it was stopped. Returns its pid if it does not end in time.
    ///
    /// # Errors
    /// If it cannot be waited for, or killed.
    pub fn end_setup(&self, slot: &KeeperSlot, timeout: Duration) -> Result<Option<i32>, ProcessError> {
        let deadline = Instant::now() + timeout;
        while let Some(pid) = self.remaining(slot).setup {
            if Instant::now() >= deadline {
                return Ok(Some(pid));
            }
            let process = match Process::open_any(pid) {
                Err(ProcessError::Gone { .. }) => continue,
                process => process?,
            };
            // Unless the keeper has reaped it meanwhile, its pid cannot be that of another process.
            if self.remaining(slot).setup == Some(pid) && !process.wait(Some(SETUP_GRACE)).unwrap_or(false) {
                process.kill()?;
                drop(process.wait(Some(deadline.saturating_duration_since(Instant::now()))));
            }
        }
        Ok(None)
    }

    fn recorded(&self, slot: &KeeperSlot) -> Option<(State, i32, Remaining)> {
        self.lock().get(&slot.keeper).and_then(|instance| instance.state(slot.slot))
    }

    /// Pids of the keepers that have not ended. All processes of containers are below them, but those in pid namespaces
    /// of other containers.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let instances = self.lock();
        instances.older.iter().chain(&instances.current).filter_map(Instance::pid).collect()
    }

    /// The end of the process is recorded elsewhere.
    pub fn forget(&self, slot: &KeeperSlot) {
        let mut instances = self.lock();
        if let Some(instance) = instances.get(&slot.keeper) {
            instance.forget(slot.slot);
        }
        instances.remove_unneeded();
    }

    /// Forgets all processes but those `in_use`, and removes what keepers that have ended have left behind.
    pub fn retain(&self, in_use: &[&KeeperSlot]) {
        let mut locked = self.lock();
        let instances = &mut *locked;
        for instance in instances.older.iter_mut().chain(&mut instances.current) {
            let used = in_use.iter().filter(|it| it.keeper == instance.name()).map(|it| it.slot);
            instance.retain(used.collect());
        }
        instances.recovered = true;
        instances.remove_unneeded();
    }

    /// What is known of the keepers. Does not block.
    #[must_use]
    pub fn view(&self) -> KeepersView {
        self.view.lock().clone()
    }

    /// Disconnects. A keeper without containers ends, and is removed.
    pub fn shutdown(&self) {
        let mut instances = self.lock();
        instances.shut_down = true;
        let Instances { current, older, .. } = &mut *instances;
        for instance in older.drain(..).chain(current.take()) {
            instance.disconnect();
        }
    }
}

/// The instances, locked. The view is updated when they are unlocked.
struct Locked<'k> {
    instances: MutexGuard<'k, Instances>,
    view: &'k Mutex<KeepersView>,
}

impl Deref for Locked<'_> {
    type Target = Instances;

    fn deref(&self) -> &Instances {
        &self.instances
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Instances {
        &mut self.instances
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        *self.view.lock() = self.instances.view();
    }
}

impl Instances {
    /// Sets the keeper of new containers aside if it was killed or does not answer. Returns whether it was.
    fn set_lost_aside(&mut self) -> bool {
        let Some(lost) = self.current.take_if(|current| !current.is_running()) else { return false };
        self.lost += 1;
        tracing::error!(
            keeper = lost.name(),
            "the keeper was killed or does not answer; its containers run on, but exit statuses may be unknown"
        );
        self.older.push(lost.set_aside());
        true
    }

    /// Disconnects from older keepers without containers, and removes what those have left behind that have ended.
    fn remove_unneeded(&mut self) {
        if !self.recovered {
            return;
        }
        self.older.retain_mut(|instance| {
            let needed = instance.is_needed();
            if !needed {
                instance.remove();
            }
            needed
        });
    }

    fn get(&mut self, name: &str) -> Option<&mut Instance> {
        self.older.iter_mut().chain(&mut self.current).find(|instance| instance.name() == name)
    }

    fn view(&self) -> KeepersView {
        KeepersView {
            pid: self.current.as_ref().filter(|current| current.is_connected()).and_then(Instance::pid),
            older: self.older.iter().filter(|instance| instance.serves()).count() as u64,
            lost: self.lost,
        }
    }
}
