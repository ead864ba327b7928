//! The companions of all containers: a thread notices when one is killed, and starts another one on the same pipes.
//!
//! The plugin keeps the companions' ends of the pipes. So nothing that is in a pipe is lost when the companion is killed
//! and the container ends before there is another one.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cofferdam_linux::tree;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::{Errno, ioctl_fionread};
use tracing::{debug, error, warn};

use super::status::Status;
use super::{Job, STREAMS, job_file, pipes};
use crate::companion::Companion;
use crate::{Error, Host, Result, ResultExt};

/// How long after its start a companion is started again. Doubled each time that it has not run for [`STEADY`].
const RESTART_DELAY: Duration = Duration::from_secs(1);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(32);
const STEADY: Duration = Duration::from_secs(60);

/// How long a companion may take to write what is left when its container has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often what companions have lost is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// How long it is waited for at most that a killed companion ends, if `cleanup` has no deadline.
const MAX_CLEANUP: Duration = Duration::from_secs(600);

/// How often it is checked whether a companion that has the lock is running. There is no event for it.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Data of the eventfd that ends the thread.
const STOP: u64 = 0;

/// The companions of all containers of a plugin.
pub struct LogCompanions<J> {
    shared: Arc<Shared<J>>,
    stop: Arc<OwnedFd>,
}

struct Shared<J> {
    host: Host,
    epoll: OwnedFd,
    entries: Mutex<Entries<J>>,
    /// An entry was put back.
    returned: Condvar,
}

struct Entries<J> {
    by_token: BTreeMap<u64, Entry<J>>,
    tokens: HashMap<String, u64>,
    /// The one that the thread has taken out to start its companion again.
    taken: Option<u64>,
    /// Those of containers that have ended, whose companions were killed and have not ended yet. Their pipes are kept open:
    /// the kernel lets nobody close what such a companion is reading.
    killed: BTreeMap<u64, Entry<J>>,
    last: u64,
}

/// A container, and its companion.
struct Entry<J> {
    id: String,
    /// With its pipes and status.
    directory: PathBuf,
    job: J,
    companion: Option<Companion>,
    started: Instant,
    /// It was killed, and there is no other one yet.
    restart: bool,
    /// How long after `started`.
    delay: Duration,
    readers: [OwnedFd; 2],
    status: Status,
    /// Lost bytes that the agent has counted.
    counted: [u64; 2],
}

impl<J: Job> LogCompanions<J> {
    /// Those of containers that are launched or recovered from now on. A thread notices when one is killed.
    ///
    /// # Errors
    /// If there are too many descriptors or threads.
    pub fn new(host: Host) -> Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let shared =
            Arc::new(Shared { host, epoll, entries: Mutex::new(Entries::new()), returned: Condvar::new() });
        let weak = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("log-companions".to_owned());
        let of_thread = Arc::clone(&stop);
        let run = move || {
            supervise(&weak);
            // Kept until here: a closed descriptor wakes nobody up.
            drop(of_thread);
        };
        thread.spawn(run).context("cannot start a thread")?;
        Ok(Self { shared, stop })
    }

    /// Creates the pipes of a container, and starts its companion. Returns the container's ends.
    ///
    /// # Errors
    /// If that fails; [`LogCompanions::clean_up`] removes what there is then.
    pub fn start(&self, id: &str, job: J) -> Result<[OwnedFd; 2]> {
        let directory = self.directory(id);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .context(format!("cannot create `{}`", directory.display()))?;
        let pipes = || format!("cannot create the pipes in `{}`", directory.display());
        let writers = pipes::create(&directory, job.owner()).context(pipes())?;
        let readers = pipes::open_readers(&directory).context(pipes())?;
        let status = open_status(&directory)?;
        let mut entry = Entry::new(id, directory, job, readers, status);
        entry.start(&self.shared.host)?;
        self.shared.add(entry)?;
        Ok(writers)
    }

    /// Takes over the companion of an earlier instance, or starts another one if it was killed meanwhile.
    ///
    /// # Errors
    /// If its pipes cannot be opened, or no companion be started.
    pub(super) fn take_over(&self, id: &str, job: J) -> Result<()> {
        let entry = self.reopen(id, job)?;
        self.shared.add(entry)
    }

    fn reopen(&self, id: &str, job: J) -> Result<Entry<J>> {
        let directory = self.directory(id);
        let missing = || format!("cannot open the pipes in `{}`", directory.display());
        let readers = pipes::open_readers(&directory).context(missing())?;
        let status = open_status(&directory)?;
        let mut entry = Entry::new(id, directory.clone(), job, readers, status);
        // One that has seen the end of the pipes ends, also if somebody has opened them again since.
        if !entry.find()? && (!entry.status.read()?.finished || entry.has_more()?) {
            entry.status.unfinish()?;
            entry.report_gap()?;
            entry.start(&self.shared.host)?;
            warn!(
                container = id,
                pid = entry.pid(),
                "its log companion had been killed; another one continues"
            );
        }
        Ok(entry)
    }

    /// Waits until the companion of a container has passed everything on, or reports what is lost, and removes what there
    /// is of it. A companion that does not respond is killed after five seconds, or half of `remaining`. `job` is used if
    /// this instance does not know the container. Succeeds for one that is unknown.
    ///
    /// # Errors
    /// If something of it is still there; to be called again.
    pub(super) fn finish(&self, id: &str, job: Option<J>, remaining: Duration) -> Result<()> {
        let directory = self.directory(id);
        let known = self.shared.remove(id);
        let entry = match (known, job) {
            (Some(entry), _) => Some(entry),
            (None, Some(job)) if directory.exists() => Some(self.reopen(id, job)?),
            (None, _) => None,
        };
        if let Some(mut entry) = entry {
            let end = Instant::now() + remaining.min(MAX_CLEANUP);
            let finished = entry.finish(&self.shared.host, FLUSH_TIMEOUT.min(remaining / 2), end);
            // Also if that has failed: nobody else waits for it.
            if entry.companion.is_some() {
                self.shared.reap_later(entry);
            }
            finished?;
        }
        remove(&directory)
    }

    /// Removes what is left of containers that do not exist.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub(super) fn remove_others(&self, existing: &[&str]) -> Result<()> {
        let directory = self.shared.host.runtime_directory();
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.context(format!("cannot list `{}`", directory.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            if !existing.iter().any(|id| entry.file_name() == *id) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The directory of a container's pipes. An id is a file name: it has no slash, and at most 255 bytes.
    fn directory(&self, id: &str) -> PathBuf {
        self.shared.host.runtime_directory().join(id)
    }
}

impl<J> Drop for LogCompanions<J> {
    fn drop(&mut self) {
        // Otherwise the thread ends when it wakes up next.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
    }
}

fn remove(directory: &Path) -> Result<()> {
    tree::remove(directory).context(format!("cannot remove `{}`", directory.display()))
}

fn open_status(directory: &Path) -> Result<Status> {
    let path = directory.join("status");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    Ok(Status::new(file.context(format!("cannot open `{}`", path.display()))?))
}

// ── the thread ─────────────────────────────────────────────────────────────────────────────────────────────────────

fn supervise<J: Job>(shared: &Weak<Shared<J>>) {
    let Some(epoll) = shared.upgrade().and_then(|shared| shared.epoll.try_clone().ok()) else { return };
    let mut ready = Vec::with_capacity(16);
    let mut counted = Instant::now();
    let mut next = Some(counted + COUNT_INTERVAL);
    loop {
        let timeout = next.map(|next| next.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        ready.clear();
        match epoll::wait(&epoll, spare_capacity(&mut ready), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let tokens: Vec<u64> = ready.iter().map(|event| event.data.u64()).collect();
        let Some(shared) = shared.upgrade().filter(|_| !tokens.contains(&STOP)) else { return };
        for token in tokens {
            shared.ended(token);
        }
        next = shared.to_restart().into_iter().filter_map(|token| shared.restart(token)).min();
        // Nothing tells that the file of a companion has changed; the metric is to show it while the container is running.
        if counted.elapsed() >= COUNT_INTERVAL {
            shared.count_lost();
            counted = Instant::now();
        }
        next = next.into_iter().chain([counted + COUNT_INTERVAL]).min();
    }
}

impl<J: Job> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Entries<J>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, mut entry: Entry<J>) -> Result<()> {
        let mut entries = self.lock();
        entries.last += 1;
        let token = entries.last;
        if let Some(companion) = &entry.companion
            && let Err(error) = watch(&self.epoll, companion, token)
        {
            drop(entries);
            entry.kill(FLUSH_TIMEOUT)?;
            return Err(Error::from(error));
        }
        entries.tokens.insert(entry.id.clone(), token);
        entries.by_token.insert(token, entry);
        Ok(())
    }

    /// Takes a container out, also if its companion is being started again: then when that is done.
    fn remove(&self, id: &str) -> Option<Entry<J>> {
        let mut entries = self.lock();
        let token = entries.tokens.remove(id)?;
        while entries.taken == Some(token) {
            entries = self.returned.wait(entries).unwrap_or_else(PoisonError::into_inner);
        }
        let entry = entries.by_token.remove(&token)?;
        entry.unwatch(&self.epoll);
        Some(entry)
    }

    /// Reaps a companion that was killed when it has ended.
    fn reap_later(&self, entry: Entry<J>) {
        let mut entries = self.lock();
        entries.last += 1;
        let token = entries.last;
        let watched = entry.companion.as_ref().map(|companion| watch(&self.epoll, companion, token));
        if let Some(Err(error)) = watched {
            warn!(%error, container = entry.id, "a killed log companion cannot be watched, and is not reaped");
        }
        entries.killed.insert(token, entry);
    }

    /// A companion has ended.
    fn ended(&self, token: u64) {
        let mut entries = self.lock();
        if let Some(entry) = entries.by_token.get_mut(&token) {
            entry.ended(&self.epoll);
        }
        let killed = entries.killed.remove(&token);
        drop(entries);
        if let Some(mut entry) = killed {
            entry.ended(&self.epoll);
        }
    }

    /// Counts what companions have lost.
    fn count_lost(&self) {
        self.lock().by_token.values_mut().for_each(|entry| entry.count_lost(&self.host));
    }

    fn to_restart(&self) -> Vec<u64> {
        let entries = self.lock();
        entries.by_token.iter().filter(|(_, entry)| entry.restart).map(|(token, _)| *token).collect()
    }

    /// Starts a companion again, if that is due, while others can use the other entries. Returns when to try again.
    fn restart(&self, token: u64) -> Option<Instant> {
        let mut entries = self.lock();
        let mut entry = entries.by_token.remove(&token)?;
        entries.taken = Some(token);
        drop(entries);
        let again = entry.restart_when_due(token, self);
        let mut entries = self.lock();
        entries.by_token.insert(token, entry);
        entries.taken = None;
        self.returned.notify_all();
        again
    }
}

fn watch(epoll: &OwnedFd, companion: &Companion, token: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, companion, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
}

impl<J> Entries<J> {
    fn new() -> Self {
        Self {
            by_token: BTreeMap::new(),
            tokens: HashMap::new(),
            taken: None,
            killed: BTreeMap::new(),
            last: 0,
        }
    }
}

impl<J: Job> Entry<J> {
    fn new(id: &str, directory: PathBuf, job: J, readers: [OwnedFd; 2], status: Status) -> Self {
        let (companion, started) = (None, Instant::now());
        // Those of an earlier agent were counted there.
        let counted = status.read().map_or([0; 2], |report| report.lost);
        let delay = RESTART_DELAY;
        Self {
            id: id.to_owned(),
            directory,
            job,
            companion,
            started,
            restart: false,
            delay,
            readers,
            status,
            counted,
        }
    }

    fn pid(&self) -> Option<i32> {
        self.companion.as_ref().map(Companion::pid)
    }

    /// Takes over the companion that has the lock. Returns whether there is one.
    fn find(&mut self) -> Result<bool> {
        for _ in 0..LOCK_ATTEMPTS {
            if !self.status.is_locked()? {
                return Ok(false);
            }
            let report = self.status.read()?;
            self.companion = match report.pid {
                0 => None,
                pid => Companion::find(pid, report.start_time)?,
            };
            if self.companion.is_some() && self.status.is_locked()? {
                return Ok(true);
            }
            // It is about to write its pid, or to end.
            std::thread::sleep(LOCK_INTERVAL);
        }
        Err(Error::new("its log companion neither continues nor ends"))
    }

    /// Starts a companion, unless there is one.
    fn start(&mut self, host: &Host) -> Result<()> {
        if self.find()? {
            self.restart = false;
            return Ok(());
        }
        let name = CString::new(self.id.as_str()).context("a container id has no zero byte")?;
        let job = job_file(&self.job).context("cannot create the description of its companion")?;
        let others = self.job.descriptors(&self.directory)?;
        let [stdout, stderr] = &self.readers;
        // Opened again, so that the lock is the companion's own.
        let status = open_status(&self.directory)?;
        let own = [job.as_fd(), status.file().as_fd(), stdout.as_fd(), stderr.as_fd()];
        let descriptors: Vec<BorrowedFd<'_>> =
            own.into_iter().chain(others.iter().map(AsFd::as_fd)).collect();
        let companion = Companion::start(host, &name, &descriptors)?;
        (self.companion, self.started, self.restart) = (Some(companion), Instant::now(), false);
        Ok(())
    }

    fn unwatch(&self, epoll: &OwnedFd) {
        if let Some(companion) = &self.companion
            && let Err(error) = epoll::delete(epoll, companion)
        {
            debug!(%error, container = self.id, "a log companion was not watched");
        }
    }

    /// Its companion has ended.
    fn ended(&mut self, epoll: &OwnedFd) {
        // It is readable from now on.
        self.unwatch(epoll);
        if let Some(companion) = self.companion.take() {
            companion.reap();
        }
        if self.started.elapsed() >= STEADY {
            self.delay = RESTART_DELAY;
        }
        // Otherwise the container has ended, and `cleanup` follows.
        self.restart = !self.status.read().is_ok_and(|report| report.finished);
    }

    /// Starts another companion, unless the last one was started a moment ago. Returns when to try again.
    fn restart_when_due(&mut self, token: u64, shared: &Shared<J>) -> Option<Instant> {
        let due = self.started + self.delay;
        if Instant::now() < due {
            return Some(due);
        }
        let restarted = self.restart(token, shared);
        self.delay = (self.delay * 2).min(MAX_RESTART_DELAY);
        match restarted {
            Ok(()) => {
                warn!(
                    container = self.id,
                    pid = self.pid(),
                    "its log companion was killed; another one continues"
                );
                None
            }
            Err(error) => {
                let error = error.causes().join(": ");
                error!(container = self.id, "its log companion was killed, and none can be started: {error}");
                self.started = Instant::now();
                Some(self.started + self.delay)
            }
        }
    }

    fn restart(&mut self, token: u64, shared: &Shared<J>) -> Result<()> {
        self.start(&shared.host)?;
        if let Some(companion) = &self.companion
            && let Err(error) = watch(&shared.epoll, companion, token)
        {
            self.restart = true;
            self.kill(FLUSH_TIMEOUT)?;
            return Err(Error::from(error));
        }
        Ok(())
    }

    /// Waits until the companion has written everything, and reports what is lost. It is killed after `timeout`, and waited for
    /// until `end`; there is one afterwards only if it has not ended until then.
    fn finish(&mut self, host: &Host, timeout: Duration, end: Instant) -> Result<()> {
        let flushed = Instant::now() + timeout;
        // One that was killed is replaced, once.
        for _ in 0..2 {
            if self.status.read()?.finished {
                break;
            }
            if self.companion.is_none()
                && let Err(error) = self.start(host)
            {
                let error = error.causes().join(": ");
                warn!(container = self.id, "no log companion can be started: {error}");
                break;
            }
            if !self.wait(flushed.saturating_duration_since(Instant::now()))? {
                warn!(
                    container = self.id,
                    ?timeout,
                    "its log companion does not write what is left, and is killed"
                );
                break;
            }
        }
        // The time that is left is needed for what follows as well.
        self.kill(end.saturating_duration_since(Instant::now()) / 2)?;
        self.report_loss(host)
    }

    /// Kills the companion, if there is one, and waits for it.
    fn kill(&mut self, timeout: Duration) -> Result<()> {
        let Some(companion) = &self.companion else { return Ok(()) };
        companion.kill()?;
        if !self.wait(timeout)? {
            warn!(
                container = self.id,
                "its log companion was killed, but does not end: the disk may not respond"
            );
        }
        Ok(())
    }

    /// Waits for the companion. Returns whether there is none any more.
    fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let has_ended = match &self.companion {
            Some(companion) => companion.wait(timeout)?,
            None => return Ok(true),
        };
        if has_ended && let Some(companion) = self.companion.take() {
            companion.reap();
        }
        Ok(has_ended)
    }

    /// Whether there is more in a pipe, or may be.
    fn has_more(&self) -> Result<bool> {
        for reader in &self.readers {
            if !pipes::has_ended(reader)? || ioctl_fionread(reader)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Counts what has been lost since this was called last.
    fn count_lost(&mut self, host: &Host) {
        // It is read again.
        let Ok(report) = self.status.read() else { return };
        for (index, stream) in STREAMS.into_iter().enumerate() {
            host.count_lost_output(stream, report.lost[index].saturating_sub(self.counted[index]));
            self.counted[index] = self.counted[index].max(report.lost[index]);
        }
    }

    fn report_loss(&mut self, host: &Host) -> Result<()> {
        self.count_lost(host);
        let report = self.status.read()?;
        let mut errors = self.status.errors()?;
        let backlog = if report.finished { [0, 0] } else { self.job.backlog(&self.directory, &self.status) };
        for (index, stream) in STREAMS.into_iter().enumerate() {
            let of = self.job.describe_loss(&self.directory, &self.status, index);
            let of = (!of.is_empty()).then_some(of);
            let why = (report.lost[index] > 0).then(|| why_lost::<J>(errors[index].take()));
            let taken = report.lost[index].saturating_add(backlog[index]);
            if self.companion.is_some() {
                // The kernel may let nobody use the pipe before the companion has ended.
                let why = reasons(why, Some("its log companion was killed, and does not end"));
                error!(
                    container = self.id,
                    stream,
                    bytes = taken,
                    of,
                    "output of the container is lost, and what is in its pipe: {why}"
                );
                host.count_lost_output(stream, backlog[index]);
                continue;
            }
            let left = backlog[index].saturating_add(ioctl_fionread(&self.readers[index])?);
            let bytes = report.lost[index].saturating_add(left);
            host.count_lost_output(stream, left);
            if bytes > 0 {
                let killed =
                    (left > 0).then_some("its log companion had ended before it had passed on the rest");
                let why = reasons(why, killed);
                error!(container = self.id, stream, bytes, of, "output of the container is lost: {why}");
            }
        }
        Ok(())
    }

    /// Its companion was killed while no agent was running. Nothing is lost, unless the container has ended as well: then
    /// nobody has kept what was in the pipes.
    fn report_gap(&self) -> Result<()> {
        for (index, stream) in STREAMS.into_iter().enumerate() {
            let reader = &self.readers[index];
            if pipes::has_ended(reader)? && ioctl_fionread(reader)? == 0 {
                let at_most = pipes::capacity(reader);
                error!(
                    container = self.id,
                    stream,
                    at_most,
                    "its log companion was killed before it ended, and no agent was running: bytes of output may be lost"
                );
            }
        }
        Ok(())
    }
}

/// Why a companion has lost output.
fn why_lost<J: Job>(error: Option<io::Error>) -> String {
    error.map_or_else(|| J::LOST_WITHOUT_ERROR.to_owned(), |error| format!("the last error was {error}"))
}

/// What the companion has reported, and what has happened to itself.
fn reasons(reported: Option<String>, own: Option<&str>) -> String {
    reported.into_iter().chain(own.map(str::to_owned)).collect::<Vec<_>>().join("; ")
}
