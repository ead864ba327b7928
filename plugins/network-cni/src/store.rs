//! What is kept of a container's networks: a directory per container, in the plugin's own directory.
//!
//! ```text
//! containers/         mounted on itself, in a peer group of its own; only while a container is in it
//!   web/
//!     record          the networks, written before each ADD and after each DEL
//!     record.next     takes the place of the record when it is written again
//!     ns              its network namespace is mounted here: CNI_NETNS
//!     request         standard input of the CNI plugin that is running, locked while it runs
//!     request.next    becomes the request of the next one
//! ```
//!
//! Both files for what is written next have the space for it since ADD: a full disk does not prevent DEL.
//!
//! The agent's state has no part in this, so that networks of containers that it does not know can be left, too.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{command, network, space, tree};

use crate::networks::Network;
use crate::results::Report;

/// Most of a record.
const MAX_RECORD: u64 = 16 << 20;

/// Time between attempts to lock the input of a plugin that an earlier agent has started: flock(2) has no timeout, and its end
/// is no event, as another agent was its parent.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// How long to wait until a killed plugin has ended. One that waits in the kernel takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// By how much a record may grow when ADD fails.
const MAX_GROWTH: usize = 8 << 10;

/// The networks of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// Dotted id.
    pub id: String,
    /// Number of its network namespace.
    pub namespace: u64,
    /// In the order in which they were attached.
    pub attachments: Vec<Attachment>,
}

/// A network of a container. It is recorded before ADD is called for the first time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the interface in the container.
    pub interface: String,
    /// With what the agent has added to the configurations of its plugins.
    pub network: Network,
    /// The result of ADD; `None` before all plugins have succeeded.
    pub result: Option<Json>,
    /// For how many of its plugins, from the first on, DEL has yet to succeed.
    pub remaining: usize,
    /// Which plugin has failed in ADD; those after it were not called.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The interface, whatever the container calls it later.
    #[serde(default)]
    pub original: Option<network::Interface>,
}

/// A plugin that has failed in ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its place in the list.
    pub plugin: usize,
    /// What it has reported, if it could not use its configuration.
    pub rejection: Option<Report>,
}

/// The directories of all containers.
pub struct Store {
    root: PathBuf,
    /// Whether it has to survive a reboot.
    is_durable: bool,
    /// Whether the directory is prepared. Locked while it appears or disappears.
    is_prepared: Mutex<bool>,
}

impl Store {
    pub fn new(parent: &Path, is_durable: bool) -> Self {
        Self { root: parent.join("containers"), is_durable, is_prepared: Mutex::new(false) }
    }

    /// Containers of which something is kept.
    pub fn ids(&self) -> Result<Vec<String>> {
        let read = || format!("cannot read `{}`", self.root.display());
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(read()),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.context(read())?.file_name();
            let Some(name) = name.to_str() else { continue };
            if ContainerId::parse(name).is_ok() {
                ids.push(name.to_owned());
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Whether anything is kept of a container.
    pub fn contains(&self, id: &str) -> bool {
        self.directory(id).symlink_metadata().is_ok()
    }

    /// Creates a container's directory, its record without networks, and its network namespace.
    pub fn create(&self, id: &str) -> Result<(Record, OwnedFd)> {
        let directory = self.directory(id);
        {
            let mut is_prepared = self.lock();
            let created = self.prepare(&mut is_prepared).and_then(|()| {
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(&directory)
                    .context(format!("cannot create `{}`", directory.display()))
            });
            if let Err(error) = created {
                // Without a container in it, nothing else would.
                let _ = self.release(&mut is_prepared);
                return Err(error);
            }
        }
        let namespace =
            network::create(&self.namespace_path(id)).context("cannot create a network namespace")?;
        let record =
            Record { id: id.to_owned(), namespace: network::number(&namespace)?, attachments: Vec::new() };
        self.write(&record)?;
        Ok((record, namespace))
    }

    /// Where a container's network namespace is mounted.
    pub fn namespace_path(&self, id: &str) -> PathBuf {
        self.directory(id).join("ns")
    }

    /// A container's network namespace; `None` if it has none any more.
    pub fn namespace(&self, id: &str) -> Result<Option<OwnedFd>> {
        let path = self.namespace_path(id);
        network::open(&path).context(format!("cannot open the network namespace at `{}`", path.display()))
    }

    /// The same, after what an agent has mounted over it before it was killed is unmounted.
    pub fn uncovered_namespace(&self, record: &Record) -> Result<Option<OwnedFd>> {
        let path = self.namespace_path(&record.id);
        while let Some(namespace) = self.namespace(&record.id)? {
            if network::number(&namespace)? == record.namespace {
                return Ok(Some(namespace));
            }
            network::uncover(&path).context(format!("cannot unmount `{}`", path.display()))?;
        }
        Ok(None)
    }

    /// Mounts the namespace of a process again, if it is the one of the record and the mount was lost.
    pub fn restore_namespace(&self, record: &Record, pid: i32) -> Result<()> {
        if self.uncovered_namespace(record)?.is_some() {
            return Ok(());
        }
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        if network::number(&namespace)? != record.namespace {
            return Err(Error::new(
                "its network namespace is not mounted any more, and its process is in another one",
            ));
        }
        let path = self.namespace_path(&record.id);
        self.prepare(&mut self.lock())?;
        network::release(&path)?;
        Ok(network::pin(namespace.as_fd(), &path)?)
    }

    /// A container's record; `None` if nothing was attached yet.
    pub fn read(&self, id: &str) -> Result<Option<Record>> {
        let path = self.record_path(id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(format!("cannot open `{}`", path.display())),
        };
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text).context(format!("cannot read `{}`", path.display()))?;
        let record = serde_json::from_slice(&text).context(format!(
            "`{}` is damaged, so its networks cannot be released: release the addresses of container `{id}` with the \
             tools of its CNI plugins, and remove that file",
            path.display()
        ))?;
        Ok(Some(record))
    }

    /// Replaces a record at once. Needs no space if it is not longer than before.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.id);
        let next = self.next_record_path(&record.id);
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(record)?;
            let file = space::open(&next)?;
            if record.attachments.iter().any(|attachment| attachment.result.is_none()) {
                space::reserve(&file, text.len() + MAX_GROWTH)?;
            }
            space::write(&file, text)?;
            if self.is_durable {
                file.sync_all()?;
            }
            space::exchange(&next, &path)?;
            if self.is_durable {
                File::open(self.directory(&record.id))?.sync_all()?;
            }
            Ok(())
        };
        write().context(format!("cannot write `{}`", path.display()))
    }

    /// Reserves the space for later writes of a record, and for requests of a size.
    pub fn reserve(&self, id: &str, request: usize) -> Result<()> {
        let (record, next) = (self.record_path(id), self.next_record_path(id));
        let reserve = |path: &Path, size: usize| -> std::io::Result<()> {
            let file = space::open(path)?;
            space::reserve(&file, size)?;
            if self.is_durable { file.sync_all() } else { Ok(()) }
        };
        let size = || Ok(usize::try_from(record.symlink_metadata()?.len()).unwrap_or(usize::MAX));
        size()
            .and_then(|size| reserve(&next, size))
            .and_then(|()| reserve(&self.next_request_path(id), request))
            .context(format!("cannot reserve space in `{}`", self.directory(id).display()))
    }

    /// Removes all of a container. Its networks must have been released.
    pub fn remove(&self, id: &str) -> Result<()> {
        let directory = self.directory(id);
        let path = self.namespace_path(id);
        network::release(&path).context(format!("cannot unmount `{}`", path.display()))?;
        let mut is_prepared = self.lock();
        tree::remove(&directory).context(format!("cannot remove `{}`", directory.display()))?;
        self.release(&mut is_prepared)
    }

    /// Removes the directory of all containers if there are none.
    pub fn release_if_empty(&self) -> Result<()> {
        self.release(&mut self.lock())
    }

    fn prepare(&self, is_prepared: &mut bool) -> Result<()> {
        if !*is_prepared {
            network::prepare_directory(&self.root)
                .context(format!("cannot prepare `{}` for network namespaces", self.root.display()))?;
            *is_prepared = true;
        }
        Ok(())
    }

    fn release(&self, is_prepared: &mut bool) -> Result<()> {
        let released = network::release_directory(&self.root);
        // After an error, it may not be mounted any more.
        *is_prepared &= matches!(released, Ok(false));
        released.context(format!("cannot unmount `{}`", self.root.display()))?;
        Ok(())
    }

    /// The standard input of a CNI plugin, locked until all processes that have it have ended. So a later agent knows
    /// whether a plugin that this one has started is still running.
    pub fn request(&self, id: &str, configuration: &Json) -> Result<File> {
        let (next, path) = (self.next_request_path(id), self.request_path(id));
        let write = || -> std::io::Result<File> {
            let mut file = space::open(&next)?;
            match file.try_lock() {
                Ok(()) => {}
                // An earlier plugin has left a process that has it.
                Err(TryLockError::WouldBlock) => {
                    remove_file(&next)?;
                    file = space::open(&next)?;
                    file.try_lock().map_err(std::io::Error::from)?;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            space::write(&file, serde_json::to_vec(configuration)?)?;
            fs::rename(&next, &path)?;
            Ok(file)
        };
        write().context(format!("cannot write `{}`", path.display()))
    }

    /// The standard input of a CNI plugin that is not run for one container.
    pub fn request_of_all(&self, configuration: &Json) -> Result<File> {
        let path = self.request_of_all_path();
        let write = || -> std::io::Result<File> {
            if let Some(parent) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            remove_file(&path)?;
            let file = space::open(&path)?;
            file.try_lock().map_err(std::io::Error::from)?;
            space::write(&file, serde_json::to_vec(configuration)?)?;
            Ok(file)
        };
        write().context(format!("cannot write `{}`", path.display()))
    }

    /// The plugin has ended.
    pub fn forget_request(&self, id: &str) -> Result<()> {
        let path = self.request_path(id);
        match fs::rename(&path, self.next_request_path(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(format!("cannot rename `{}`", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The plugin has ended.
    pub fn forget_request_of_all(&self) -> Result<()> {
        let path = self.request_of_all_path();
        remove_file(&path).context(format!("cannot remove `{}`", path.display()))
    }

    /// Waits until a CNI plugin that an agent has started before it was killed has ended, and kills it if it does not end in the
    /// time that it had.
    ///
    /// # Errors
    /// If it runs after the time that the caller has, or after it was killed.
    pub fn wait_for_request(&self, id: &str, timeout: Duration, time_left: Duration) -> Result<()> {
        let path = self.request_path(id);
        let Some(file) = open_existing(&path)? else { return Ok(()) };
        let started = file.metadata().and_then(|metadata| metadata.modified())?;
        let end = Instant::now().checked_add(time_left);
        loop {
            match file.try_lock() {
                Ok(()) => return self.forget_request(id),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(error).context(format!("cannot lock `{}`", path.display()));
                }
            }
            // A time in the future is that of a clock that was changed.
            if started.elapsed().is_ok_and(|elapsed| elapsed < timeout) {
                if end.is_some_and(|end| Instant::now() >= end) {
                    return Err(Error::new(
                        "a CNI plugin that an earlier agent has started for it is still running",
                    )
                    .retryable());
                }
                std::thread::sleep(LOCK_INTERVAL);
                continue;
            }
            warn!(
                container = id,
                "a CNI plugin that an earlier agent has started does not end and is killed"
            );
            end_users(&file, &path)?;
            return self.forget_request(id);
        }
    }

    /// Kills what is left of a CNI plugin for a container.
    pub fn end_request(&self, id: &str) -> Result<()> {
        let path = self.request_path(id);
        let Some(file) = open_existing(&path)? else { return Ok(()) };
        end_users(&file, &path)?;
        self.forget_request(id)
    }

    /// Kills a CNI plugin that is not run for one container, of an agent that was killed.
    pub fn end_request_of_all(&self) -> Result<()> {
        let path = self.request_of_all_path();
        let Some(file) = open_existing(&path)? else { return Ok(()) };
        end_users(&file, &path)?;
        self.forget_request_of_all()
    }

    fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    pub fn record_path(&self, id: &str) -> PathBuf {
        self.directory(id).join("record")
    }

    fn next_record_path(&self, id: &str) -> PathBuf {
        self.directory(id).join("record.next")
    }

    fn request_path(&self, id: &str) -> PathBuf {
        self.directory(id).join("request")
    }

    fn next_request_path(&self, id: &str) -> PathBuf {
        self.directory(id).join("request.next")
    }

    fn request_of_all_path(&self) -> PathBuf {
        self.root.with_file_name("request")
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills the processes that have a request as their input, until it is not locked any more.
fn end_users(file: &File, path: &Path) -> Result<()> {
    let end = Instant::now() + KILL_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock `{}`", path.display()));
            }
        }
        if Instant::now() >= end {
            return Err(Error::new(format!(
                "a CNI plugin that does not end was killed, and still has its input, `{0}`; `fuser {0}` shows its processes",
                path.display()
            ))
            .retryable());
        }
        command::kill_users(file).context("cannot kill a CNI plugin that does not end")?;
        std::thread::sleep(LOCK_INTERVAL);
    }
}

fn open_existing(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(format!("cannot open `{}`", path.display())),
    }
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
