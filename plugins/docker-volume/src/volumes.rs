//! Volumes that containers of this host use. A driver mounts a volume for the first of them, and unmounts it after the last.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_plugin_api::Deadline;
use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::prelude::*;
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

use crate::address::Directories;
use crate::driver::{CallError, Driver};
use crate::store::{Entry, Mounted, Store, Volume, key};

/// Kept of the time of a call, so that its error arrives in time.
const MARGIN: Duration = Duration::from_millis(500);

pub struct Volumes {
    pub store: Store,
    directories: Directories,
    timeout: Duration,
    /// The current boot of the host.
    boot: String,
    /// Volumes with which something is being done.
    busy: Mutex<BTreeSet<String>>,
    changed: Condvar,
}

/// How long something may take: all of it, and each call of a driver.
#[derive(Clone, Copy)]
pub struct Limit {
    pub deadline: Option<Deadline>,
    pub call: Duration,
}

impl Volumes {
    pub fn new(store: Store, directories: Directories, timeout: Duration) -> Result<Self> {
        let boot = read_random("boot_id")?;
        Ok(Self { store, directories, timeout, boot, busy: Mutex::default(), changed: Condvar::new() })
    }

    /// With the configured limit of a call.
    pub fn limit(&self, deadline: Deadline) -> Limit {
        Limit { deadline: Some(deadline), call: self.timeout }
    }

    /// The configured limit of a call, for what has no deadline.
    pub fn unlimited(&self) -> Limit {
        Limit { deadline: None, call: self.timeout }
    }

    /// Mounts a volume, unless it is mounted already, and returns its root. The container is its user even if this fails.
    pub fn acquire(&self, container: &str, requested: &Volume, limit: Limit) -> Result<OwnedFd> {
        let key = key(&requested.driver, &requested.name)?;
        let _busy = self.reserve(&key, limit)?;
        if let Some(entry) = self.store.open(&key)?
            && let Some(volume) = entry.volume()?
        {
            let mut users = entry.users()?;
            users.retain(|user| user != container);
            let mounted = entry.mounted()?.filter(|_| volume.boot == self.boot);
            match mounted {
                Some(mounted) if !users.is_empty() => {
                    return share(&entry, container, requested, &volume, &mounted, &users);
                }
                None if !users.is_empty() => {
                    let error =
                        format!("it is not mounted, and container `{}` does not release it", users[0]);
                    return Err(Error::new(error).retryable());
                }
                _ => self
                    .release(entry, limit)
                    .context("it is still mounted for a container that has ended")?,
            }
        }
        self.mount(container, &key, requested, limit)
    }

    /// Ends the use of all volumes by a container.
    pub fn release_all(&self, container: &str, limit: Limit) -> Result<()> {
        let mut keys = self.store.keys()?;
        keys.retain(|key| self.store.is_used_by(key, container));
        let mut outcome = Ok(());
        for (left, key) in (1..=keys.len()).rev().zip(&keys) {
            // The others are released even if a driver hangs.
            let remaining = limit.deadline.map_or(Duration::MAX, Deadline::remaining);
            let share = remaining / u32::try_from(left).unwrap_or(u32::MAX);
            let limit = Limit { call: limit.call.min(share), ..limit };
            outcome = outcome.and(self.release_one(container, key, limit));
        }
        outcome
    }

    /// Removes containers that do not exist from the users of a volume. Returns whether it has no users any more.
    pub fn forget_unknown(&self, key: &str, is_known: impl Fn(&str) -> bool) -> Result<bool> {
        let _busy = self.reserve(key, self.unlimited())?;
        let Some(entry) = self.store.open(key)? else { return Ok(false) };
        let mut is_used = false;
        for user in entry.users()? {
            if is_known(&user) {
                is_used = true;
            } else {
                entry.remove_user(&user)?;
            }
        }
        Ok(!is_used)
    }

    /// Releases a volume that has no users.
    pub fn release_unused(&self, key: &str, limit: Limit) -> Result<()> {
        let _busy = self.reserve(key, limit)?;
        match self.store.open(key)? {
            Some(entry) if entry.users()?.is_empty() => self.release(entry, limit),
            _ => Ok(()),
        }
    }

    /// Waits until nothing else is done with a volume.
    fn reserve(&self, key: &str, limit: Limit) -> Result<Busy<'_>> {
        let left = limit.deadline.map_or(Duration::MAX, Deadline::remaining).saturating_sub(MARGIN);
        let timeout = left.min(limit.call);
        let is_busy = |busy: &mut BTreeSet<String>| busy.contains(key);
        let waited = self.changed.wait_timeout_while(lock(&self.busy), timeout, is_busy);
        let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(key.to_owned()) {
            let error = "its driver is still mounting or unmounting it for another container";
            return Err(Error::new(error).retryable());
        }
        Ok(Busy { volumes: self, key: key.to_owned() })
    }

    fn driver(&self, name: &str, limit: Limit) -> Result<Driver> {
        let left = limit.deadline.map_or(Duration::MAX, Deadline::remaining);
        Driver::find(&self.directories, name, left.saturating_sub(MARGIN).min(limit.call))
    }

    fn mount(&self, container: &str, key: &str, requested: &Volume, limit: Limit) -> Result<OwnedFd> {
        let Volume { driver: name, name: volume, options, .. } = requested;
        let called = |outcome: Result<(), CallError>| outcome.map_err(CallError::into_error);
        // The time that is left is another one for each call.
        let driver = || self.driver(name, limit);
        called(driver()?.activate())?;
        let scope = driver()?.scope().map_err(CallError::into_error)?;
        if driver()?.knows(volume).map_err(CallError::into_error)? {
            debug!(volume, driver = name, "the volume exists, its options are not used");
        } else {
            called(driver()?.create(volume, options))?;
        }
        let record = Volume { id: new_id()?, boot: self.boot.clone(), ..requested.clone() };
        let entry = self.store.create(key)?;
        if let Err(error) = entry.add_user(container).and_then(|()| entry.record(&record)) {
            // Without a user, nobody else would.
            entry.remove()?;
            return Err(error);
        }
        let path = match driver()?.mount(volume, &record.id) {
            Ok(path) => path,
            Err(error) => {
                if let CallError::NotCalled(_) | CallError::Refused(_) = error {
                    entry.remove()?;
                }
                return Err(error.into_error());
            }
        };
        info!(container, volume, driver = name, scope, path = %path.display(), "mounted a volume");
        let (root, mounted) = open(path)?;
        entry.record_mounted(&mounted)?;
        Ok(root)
    }

    fn release_one(&self, container: &str, key: &str, limit: Limit) -> Result<()> {
        let _busy = self.reserve(key, limit)?;
        let Some(entry) = self.store.open(key)? else { return Ok(()) };
        if entry.users()?.iter().any(|user| user != container) {
            return entry.remove_user(container);
        }
        self.release(entry, limit)
    }

    /// Has a volume unmounted, and forgets it.
    fn release(&self, entry: Entry, limit: Limit) -> Result<()> {
        let Some(volume) = entry.volume()? else { return entry.remove() };
        let Volume { driver: name, name: volume, id, boot, .. } = &volume;
        let failed = || format!("the volume `{}` cannot be unmounted", volume.escape_debug());
        let mounted = entry.begin_release()?;
        let refused = match self.driver(name, limit).context(failed())?.unmount(volume, id) {
            Ok(()) => {
                info!(volume, driver = name, "unmounted a volume");
                return entry.remove();
            }
            Err(CallError::Refused(error)) => error,
            Err(error) => return Err(error.into_error().context(failed())),
        };
        // It may have been mounted in vain, in an earlier boot, or by an earlier process of the driver.
        let is_released = *boot != self.boot
            || mounted.is_none_or(|mounted| !is_there(&mounted))
            || self.driver(name, limit)?.has_lost(volume);
        if is_released {
            let reason = refused.causes().join(": ");
            warn!(volume, driver = name, reason, "a volume was not mounted any more");
            return entry.remove();
        }
        // Containers can use it until the driver unmounts it.
        entry.undo_release()?;
        Err(refused.retryable().context(failed()))
    }
}

/// Uses a volume that is mounted for others.
fn share(
    entry: &Entry,
    container: &str,
    requested: &Volume,
    volume: &Volume,
    mounted: &Mounted,
    users: &[String],
) -> Result<OwnedFd> {
    let user = &users[0];
    if requested.options != volume.options {
        // Without values, which may be secrets.
        let keys: BTreeSet<&String> = requested.options.keys().chain(volume.options.keys()).collect();
        let others = keys.into_iter().filter(|key| requested.options.get(*key) != volume.options.get(*key));
        return Err(Error::new(format!(
            "container `{user}` uses it with another value of {}; request the same options, or wait for its end",
            others.map(|key| format!("`{}`", key.escape_debug())).collect::<Vec<_>>().join(", ")
        )));
    }
    entry.add_user(container)?;
    let changed = || {
        format!(
            "its driver has mounted it at `{}` for container `{user}`, but it is not there any more: end that container, or \
             restore the mount",
            mounted.path.display()
        )
    };
    let (root, found) = open(mounted.path.clone()).context(changed())?;
    if found == *mounted { Ok(root) } else { Err(Error::new(changed())) }
}

/// Opens the directory that a driver has named.
fn open(path: PathBuf) -> Result<(OwnedFd, Mounted)> {
    let failed = || {
        format!(
            "the driver has mounted the volume at `{}`, which cannot be used",
            path.to_string_lossy().escape_debug()
        )
    };
    let mut names = path.components().skip(1).peekable();
    let is_some = names.peek().is_some();
    if !path.is_absolute() || !is_some || !names.all(|name| matches!(name, Component::Normal(_))) {
        return Err(Error::new("expected the absolute path of a directory, without `..`").context(failed()));
    }
    let root = foreign::directory(Path::new("/"))?;
    let relative = path.strip_prefix("/")?;
    let found = foreign::find(&root, relative, Resolve::InRoot).context(failed())?;
    // Without asking a file system that may not answer.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = statx(&found, c"", flags, StatxFlags::TYPE | StatxFlags::INO).context(failed())?;
    if FileType::from_raw_mode(status.stx_mode.into()) != FileType::Directory {
        return Err(Error::new("it is not a directory").context(failed()));
    }
    let device = (status.stx_dev_major, status.stx_dev_minor);
    Ok((found, Mounted { path, device, inode: status.stx_ino }))
}

fn is_there(mounted: &Mounted) -> bool {
    matches!(open(mounted.path.clone()), Ok((_, found)) if found == *mounted)
}

/// Makes the container's user the owner of a volume's root.
pub fn change_owner(root: &OwnedFd, uid: u32, gid: u32) -> Result<()> {
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).context("cannot change its owner")
}

/// An id as those of Docker.
fn new_id() -> Result<String> {
    let mut id = String::new();
    for _ in 0..2 {
        id.extend(read_random("uuid")?.chars().filter(|c| *c != '-'));
    }
    Ok(id)
}

fn read_random(name: &str) -> Result<String> {
    let path = format!("/proc/sys/kernel/random/{name}");
    Ok(fs::read_to_string(&path).context(format!("cannot read `{path}`"))?.trim_end().to_owned())
}

/// A volume with which something is being done.
struct Busy<'a> {
    volumes: &'a Volumes,
    key: String,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.volumes.busy).remove(&self.key);
        self.volumes.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves nothing half done in what these protect.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
