//! Keepers: the processes beside the agent that create the processes of containers, outlive the agent, and record how
//! containers end. [`cofferdam_init`] is their program.
//!
//! ```text
//! <runtime_dir>/keepers/<name>/socket      where a keeper accepts the next agent
//! <runtime_dir>/keepers/<name>/statuses    how its processes ended
//! ```
//!
//! An agent starts one keeper. A later agent connects to it, and uses it for new containers too if it is of the same
//! build; otherwise it starts another one, and the old one ends with its last container. A keeper that was killed is
//! replaced at the next launch; its containers run on, and their exit statuses come from the kernel where it can tell.

mod instance;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam_init::client::{Control, RequestError, Spawned};
use cofferdam_init::protocol::{Slot, Spawn, State};
use cofferdam_linux::image::Image;
use cofferdam_linux::process::Process;
use cofferdam_linux::spawn::SpawnError;
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use instance::Instance;

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

/// Why no process can be created.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
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

/// What is known of the keepers, for health checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperView {
    /// Pid of the keeper of new containers; `None` if it was killed, and no container was launched since.
    pub pid: Option<i32>,
    /// Number of keepers of earlier agents that still serve containers.
    pub older: usize,
    /// How often a keeper was killed, or did not answer, since the agent started.
    pub lost: u64,
}

/// All keepers of an agent.
#[derive(Debug)]
pub struct Keepers {
    directory: PathBuf,
    image: Image,
    /// Distinguishes builds of the program.
    build: String,
    cgroups: KeeperCgroups,
    /// Whether containers end with the agent.
    kill_on_disconnect: bool,
    /// Held during a request: requests take microseconds.
    instances: Mutex<Instances>,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Instances {
    /// For new containers.
    current: Option<Instance>,
    older: Vec<Instance>,
}

impl Keepers {
    /// Connects to the keepers of earlier agents, and starts one if none of them is of this build.
    ///
    /// # Errors
    /// If a keeper cannot be started. One that does not answer is no error.
    pub fn open(
        runtime_dir: &Path,
        cgroups: KeeperCgroups,
        kill_on_disconnect: bool,
    ) -> Result<Self, KeeperError> {
        let directory = runtime_dir.join("keepers");
        let file_error = |source| KeeperError::File { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(file_error)?;
        let image = Image::seal("cofferdam-keeper", cofferdam_init::IMAGE).map_err(file_error)?;
        let build = HEXLOWER.encode(&Sha256::digest(cofferdam_init::IMAGE)[..6]);
        let keepers = Self {
            directory,
            image,
            build,
            cgroups,
            kill_on_disconnect,
            instances: Mutex::default(),
            lost: AtomicU64::new(0),
        };
        let mut instances = Instances::default();
        for name in
            keepers.names().map_err(|source| KeeperError::File { path: keepers.directory.clone(), source })?
        {
            let instance = Instance::open(&keepers.directory, &name);
            if instances.current.is_none() && name.starts_with(&keepers.build) && instance.is_connected() {
                instances.current = Some(instance);
            } else {
                instances.older.push(instance);
            }
        }
        keepers.current(&mut instances)?;
        *keepers.instances.lock() = instances;
        Ok(keepers)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// The keeper of new containers, started if there is none.
    fn current<'i>(&self, instances: &'i mut Instances) -> Result<&'i mut Instance, KeeperError> {
        if let Some(lost) = instances.current.take_if(|current| !current.is_connected()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                keeper = lost.name(),
                "the keeper was killed or does not answer; its containers run on, but exit statuses may be unknown"
            );
            lost.reap();
            instances.older.push(lost);
        }
        match &mut instances.current {
            Some(current) => Ok(current),
            none => {
                let started = Instance::start(
                    &self.directory,
                    &self.build,
                    &self.image,
                    &self.cgroups,
                    self.kill_on_disconnect,
                )?;
                tracing::debug!(keeper = started.name(), pid = started.pid(), "keeper started");
                Ok(none.insert(started))
            }
        }
    }

    /// Creates a setup process. If the keeper was killed, a new one does it. `others` are the descriptors of [`Spawn`]
    /// that follow the standard streams and the control socket.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn spawn(
        &self,
        spawn: Spawn,
        stdio: [BorrowedFd<'_>; 3],
        others: &[BorrowedFd<'_>],
    ) -> Result<SetupProcess, KeeperError> {
        let mut instances = self.instances.lock();
        let mut retry = true;
        loop {
            let current = self.current(&mut instances)?;
            // Another one for each attempt: two setup processes must not share it.
            let (control, theirs) = Control::pair().map_err(KeeperError::Control)?;
            let descriptors: Vec<_> =
                stdio.into_iter().chain([theirs.as_fd()]).chain(others.iter().copied()).collect();
            match current.request(|connection| connection.spawn(spawn, &descriptors)) {
                Ok(Spawned { slot, pid, pidfd }) => {
                    current.add(slot);
                    let slot = KeeperSlot { keeper: current.name().to_owned(), slot };
                    return Ok(SetupProcess { process: Process::from_spawned(pid, pidfd), control, slot });
                }
                // If it was created all the same, it ends with its control socket.
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
        let mut instances = self.instances.lock();
        let recorded = instances.get(&slot.keeper).and_then(|instance| instance.state(slot.slot));
        drop(instances);
        match recorded {
            Some((State::Ended, status)) => ProcessEnd::Ended(status),
            Some((State::NotStarted, _)) => ProcessEnd::NotStarted,
            _ => match process.map(|process| process.wait_status(REAP_TIMEOUT)) {
                Some(Ok(Some(status))) => ProcessEnd::Ended(status),
                _ => ProcessEnd::Unknown,
            },
        }
    }

    /// The end of the process is recorded elsewhere.
    pub fn forget(&self, slot: &KeeperSlot) {
        let mut instances = self.instances.lock();
        if let Some(instance) = instances.get(&slot.keeper) {
            instance.forget(slot.slot);
        }
        instances.remove_unneeded();
    }

    /// Forgets all processes but those `in_use`, and removes what keepers that have ended have left behind.
    pub fn retain(&self, in_use: &[&KeeperSlot]) {
        let mut instances = self.instances.lock();
        let instances = &mut *instances;
        for instance in instances.older.iter_mut().chain(&mut instances.current) {
            let used = in_use.iter().filter(|it| it.keeper == instance.name()).map(|it| it.slot);
            instance.retain(used.collect());
        }
        instances.remove_unneeded();
    }

    /// What is known of the keepers.
    #[must_use]
    pub fn view(&self) -> KeeperView {
        let instances = self.instances.lock();
        let current = instances.current.as_ref().filter(|current| current.is_connected());
        KeeperView {
            pid: current.and_then(Instance::pid),
            older: instances.older.iter().filter(|instance| instance.is_connected()).count(),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }

    /// Disconnects. A keeper without containers ends, and is removed.
    pub fn shutdown(&self) {
        let mut instances = self.instances.lock();
        let Instances { current, older } = std::mem::take(&mut *instances);
        for instance in older.into_iter().chain(current) {
            instance.disconnect();
        }
    }
}

impl Instances {
    /// Removes what keepers that have ended have left behind, if nothing of it is needed.
    fn remove_unneeded(&mut self) {
        self.older.retain(|instance| {
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
}
