//! Threads that measure the directories of containers.
//!
//! Two threads of the lowest priority serve all containers. A large tree is interrupted again and again, so that other
//! containers are measured meanwhile; if there are none, both threads work on it. A container is measured again when the
//! interval has passed since the last time, or as long as that took, if that is more: no container can keep the threads
//! busy all the time.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_plugin_api::foreign::{self, OpenError, Resolve};
use cofferdam_plugin_api::measure::{self, MeasureError, Measurement, Walk};
use cofferdam_plugin_api::prelude::*;

use crate::account::{self, Account, Entry, Exceeded, Measured};

const THREADS: usize = 2;

/// How many containers are measured at the same time, which bounds memory and descriptors.
const MAX_SCANS: usize = 16;

/// How many volumes among them. They may be large, and containers must not have to wait for them.
const MAX_VOLUME_SCANS: usize = 2;

/// Entries after which a thread checks whether the other one has nothing to do.
const SLICE: u64 = 1 << 10;

/// Entries after which another container is measured meanwhile.
const TURN: u64 = 1 << 16;

/// A container is measured for the first time after this time, or the interval.
const FIRST: Duration = Duration::from_secs(1);

/// How often in succession it is measured again at once because directories were moved, so that not all was counted. A
/// container of which that is true once more cannot be measured.
const RETRIES: u32 = 3;

/// Ends its threads on drop. They may take a moment, for which it does not wait: a file system can hang.
pub struct Scanner(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Threads that wait for work.
    idle: AtomicUsize,
    interval: Duration,
}

struct State {
    account: Account,
    scans: BTreeMap<String, Scan>,
    walks: VecDeque<Job>,
    generation: u64,
    has_threads: bool,
    is_closed: bool,
}

/// A part of a scan.
struct Job {
    id: String,
    generation: u64,
    walk: Walk,
}

/// A container that is being measured.
struct Scan {
    generation: u64,
    is_volume: bool,
    began: Instant,
    /// Of its directories; empty until they are opened.
    measurements: Vec<Measurement>,
    /// Of a volume that is a file.
    of_file: u64,
    error: Option<String>,
}

impl Scanner {
    pub fn new(interval: Duration, enforces: bool) -> Self {
        let state = State {
            account: Account::new(enforces),
            scans: BTreeMap::new(),
            walks: VecDeque::new(),
            generation: 0,
            has_threads: false,
            is_closed: false,
        };
        let (state, changed, idle) = (Mutex::new(state), Condvar::new(), AtomicUsize::new(0));
        Self(Arc::new(Shared { state, changed, idle, interval }))
    }

    /// Adds a container, which is measured from now on.
    ///
    /// # Errors
    /// If no thread can be created.
    pub fn add(&self, id: &str, mut entry: Entry) -> Result<()> {
        let mut state = self.0.lock();
        if !state.has_threads {
            for _ in 0..THREADS {
                let shared = Arc::clone(&self.0);
                let thread = std::thread::Builder::new().name("disk/du".to_owned());
                thread.spawn(move || shared.work()).context("cannot create a thread that measures")?;
            }
            state.has_threads = true;
        }
        entry.due = Instant::now().checked_add(self.0.interval.min(FIRST));
        state.cancel(id);
        state.account.entries().insert(id.to_owned(), entry);
        self.0.changed.notify_one();
        Ok(())
    }

    /// Adds the volumes of a container, which are measured from now on until it ends.
    ///
    /// # Errors
    /// As of [`Scanner::add`].
    pub fn add_volumes(&self, id: &str, paths: Vec<PathBuf>) -> Result<()> {
        paths
            .into_iter()
            .enumerate()
            .try_for_each(|(index, path)| self.add(&account::volume_name(id, index), Entry::volume(path)))
    }

    /// The volumes of a container, and what each of them uses.
    pub fn volumes(&self, id: &str) -> Vec<(PathBuf, Option<u64>)> {
        self.0.lock().account.volumes(id).map(|(path, used)| (path.to_owned(), used)).collect()
    }

    /// Adds a nested container that has ended, unless it is known, or none that it is nested in is.
    pub fn add_ended(&self, id: &str, mut entry: Entry) {
        let mut state = self.0.lock();
        let entries = state.account.entries();
        if entries.contains_key(id)
            || !crate::account::self_and_above(id).any(|above| entries.contains_key(above))
        {
            return;
        }
        (entry.has_ended, entry.due) = (true, Some(Instant::now()));
        entries.insert(id.to_owned(), entry);
        self.0.changed.notify_one();
    }

    pub fn watch(&self, id: &str) -> Result<Option<OwnedFd>> {
        self.0.lock().account.watch(id)
    }

    pub fn exceeded(&self, id: &str) -> Option<Exceeded> {
        self.0.lock().account.exceeded(id)
    }

    /// What a container uses, its limit, and how many measurements in succession were not complete.
    pub fn usage(&self, id: &str) -> (Option<u64>, Option<u64>, u64) {
        let state = self.0.lock();
        (state.account.used(id), state.account.limit(id), state.account.incomplete(id))
    }

    pub fn set_limit(&self, id: &str, limit: Option<u64>) {
        let mut state = self.0.lock();
        state.account.set_limit(id, limit);
        // Otherwise it is being measured.
        if let Some(Entry { due: Some(due), .. }) = state.account.entries().get_mut(id) {
            *due = Instant::now();
            self.0.changed.notify_one();
        }
    }

    /// The processes of a container have ended. One that is nested still counts for the others until it is removed.
    pub fn end(&self, id: &str) {
        if !id.contains('.') {
            return self.remove(id);
        }
        let mut state = self.0.lock();
        for volume in state.account.volume_names(id) {
            state.cancel(&volume);
            state.account.entries().remove(&volume);
        }
        if let Some(entry) = state.account.entries().get_mut(id)
            && !entry.has_ended
        {
            entry.has_ended = true;
            match &mut entry.due {
                Some(due) => *due = Instant::now(),
                None => entry.measure_again = true,
            }
            self.0.changed.notify_one();
        }
    }

    /// Forgets a container and those nested in it.
    pub fn remove(&self, id: &str) {
        let mut state = self.0.lock();
        for name in state.account.names(id) {
            state.cancel(&name);
        }
        state.account.remove(id);
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        let scans: Vec<String> = state.scans.keys().cloned().collect();
        for scan in scans {
            state.cancel(&scan);
        }
        state.walks.clear();
        self.0.changed.notify_all();
    }
}

impl State {
    fn cancel(&mut self, id: &str) {
        if let Some(scan) = self.scans.remove(id) {
            scan.measurements.iter().for_each(Measurement::cancel);
        }
    }

    /// The container that is due first, if another one can be measured now.
    fn next_due(&mut self) -> Option<(Instant, String)> {
        if self.scans.len() >= MAX_SCANS {
            return None;
        }
        let volumes = self.scans.values().filter(|scan| scan.is_volume).count();
        let can_begin = |entry: &Entry| !entry.is_volume || volumes < MAX_VOLUME_SCANS;
        let entries = self.account.entries().iter().filter(|(_, entry)| can_begin(entry));
        entries.filter_map(|(id, entry)| Some((entry.due?, id))).min().map(|(due, id)| (due, id.clone()))
    }
}

/// What a thread does next.
enum Work {
    Walk(Job),
    Begin { id: String, generation: u64, directories: Vec<PathBuf>, is_volume: bool },
    End,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does until the scanner is dropped.
    fn work(&self) {
        if let Err(error) = measure::lowest_priority() {
            warn!("containers are measured with the priority of the agent: {error}");
        }
        loop {
            match self.next() {
                Work::Walk(job) => self.walk(job),
                Work::Begin { id, generation, directories, is_volume } => {
                    let open: Open = if is_volume { open_volume } else { open };
                    self.begin(id, generation, &directories, open);
                }
                Work::End => return,
            }
        }
    }

    fn next(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Work::End;
            }
            let due = state.next_due();
            let now = Instant::now();
            // One that is due comes first: it may be small.
            if let Some((due, id)) = &due
                && *due <= now
            {
                state.generation += 1;
                let generation = state.generation;
                let Some(entry) = state.account.entries().get_mut(id) else { continue };
                entry.due = None;
                let (directories, is_volume) = (entry.directories.clone(), entry.is_volume);
                let scan = Scan {
                    generation,
                    is_volume,
                    began: now,
                    measurements: Vec::new(),
                    of_file: 0,
                    error: None,
                };
                state.scans.insert(id.clone(), scan);
                return Work::Begin { id: id.clone(), generation, directories, is_volume };
            }
            if let Some(job) = state.walks.pop_front() {
                return Work::Walk(job);
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
            let woken = match due {
                Some((due, _)) => {
                    let waited = self.changed.wait_timeout(state, due.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            self.idle.fetch_sub(1, Ordering::Relaxed);
            state = woken;
        }
    }

    /// Opens the directories of a container, or a volume.
    fn begin(&self, id: String, generation: u64, directories: &[PathBuf], open: Open) {
        let mut device = None;
        let (mut begun, mut of_file, mut error) = (Vec::new(), 0, None);
        for path in directories {
            match open(path) {
                Ok((_, metadata)) if !metadata.is_dir() => of_file = metadata.blocks() * 512,
                // That of the sandbox; anything else is in memory.
                Ok((found, metadata)) if device.is_none_or(|device| device == metadata.dev()) => {
                    device = Some(metadata.dev());
                    match Measurement::begin(&found) {
                        Ok(measurement) => begun.push(measurement),
                        Err(cause) => error = Some(format!("`{}`: {cause}", path.display())),
                    }
                }
                Ok(_) => {}
                Err(cause) if cause.is_missing() => {}
                Err(cause) => error = Some(format!("`{}`: {cause}", path.display())),
            }
        }
        let mut state = self.lock();
        // Otherwise it was cancelled.
        if let Some(scan) = state.scans.get_mut(&id)
            && scan.generation == generation
        {
            (scan.of_file, scan.error) = (of_file, error);
            let mut walks = Vec::new();
            for (measurement, walk) in begun {
                scan.measurements.push(measurement);
                walks.push(Job { id: id.clone(), generation, walk });
            }
            state.walks.extend(walks);
            self.finish(&mut state, &id, generation);
            self.changed.notify_one();
        }
    }

    /// Continues a walk for a while.
    fn walk(&self, mut job: Job) {
        let mut entries = 0;
        while !job.walk.advance(SLICE) {
            entries += SLICE;
            if self.idle.load(Ordering::Relaxed) > 0
                && let Some(walk) = job.walk.split()
            {
                let part = Job { id: job.id.clone(), generation: job.generation, walk };
                self.lock().walks.push_back(part);
                self.changed.notify_one();
            }
            if entries < TURN {
                continue;
            }
            entries = 0;
            let mut state = self.lock();
            state.cancel_if_over(&job.id, job.generation);
            let is_due = state.next_due().is_some_and(|(due, _)| due <= Instant::now());
            if is_due || !state.walks.is_empty() {
                drop(state);
                job.walk.interrupt();
                // Dropped with the others if the scanner was closed meanwhile.
                self.lock().walks.push_back(job);
                return;
            }
        }
        let Job { id, generation, walk } = job;
        drop(walk);
        self.finish(&mut self.lock(), &id, generation);
    }

    /// Takes the results of a scan if it is complete.
    fn finish(&self, state: &mut State, id: &str, generation: u64) {
        let Some(scan) = state.scans.get(id).filter(|scan| scan.generation == generation) else { return };
        let mut measured =
            Measured { bytes: scan.of_file, is_complete: scan.error.is_none(), ..Measured::default() };
        let (mut error, mut lost, mut unread) = (scan.error.clone(), 0, 0);
        for measurement in &scan.measurements {
            let so_far = measurement.so_far();
            unread += so_far.unread;
            lost += so_far.lost;
            measured.bytes += so_far.bytes;
            match measurement.result() {
                None => return,
                Some(Ok(_)) => continue,
                // Because it is over the limit.
                Some(Err(MeasureError::Cancelled)) => {}
                Some(Err(cause)) => {
                    if cause.is_unmeasurable() {
                        measured.unmeasurable = Some(cause.to_string());
                    }
                    error = Some(cause.to_string());
                }
            }
            measured.is_complete = false;
        }
        let took = scan.began.elapsed();
        state.scans.remove(id);
        if error.is_none() && unread > 0 {
            error = Some(format!("{unread} directories and files in it cannot be read"));
        }
        let Some(entry) = state.account.entries().get_mut(id) else { return };
        entry.moved = if lost > 0 { entry.moved.saturating_add(1) } else { 0 };
        let is_retried = lost > 0 && entry.moved <= RETRIES;
        if lost > 0 {
            let why = format!(
                "directories in it were moved while it was measured, {} times in succession",
                entry.moved
            );
            measured.is_complete = false;
            if !is_retried {
                measured.unmeasurable.get_or_insert_with(|| why.clone());
            }
            error.get_or_insert(why);
        }
        entry.incomplete = if error.is_some() { entry.incomplete.saturating_add(1) } else { 0 };
        if let Some(error) = error
            && !is_retried
            && !std::mem::replace(&mut entry.is_logged, true)
        {
            match (account::volume_of(id), entry.directories.first()) {
                (Some(id), Some(path)) => {
                    let path = path.display();
                    warn!(container = id, "the volume `{path}` was not measured completely: {error}");
                }
                _ => warn!(
                    container = id,
                    "what the container has written was not measured completely: {error}"
                ),
            }
        }
        let confirm = state.account.measured(id, measured);
        let Some(entry) = state.account.entries().get_mut(id) else { return };
        let now = Instant::now();
        entry.due = if confirm || is_retried {
            Some(now)
        } else if entry.has_ended {
            std::mem::take(&mut entry.measure_again).then_some(now)
        } else {
            now.checked_add(self.interval.max(took))
        };
        self.changed.notify_one();
    }
}

impl State {
    /// Ends a scan that has found enough.
    fn cancel_if_over(&mut self, id: &str, generation: u64) {
        let Some(scan) = self.scans.get(id).filter(|scan| scan.generation == generation) else { return };
        let bytes = scan.measurements.iter().map(|measurement| measurement.so_far().bytes).sum();
        if !self.account.over(id, bytes).is_empty() {
            scan.measurements.iter().for_each(Measurement::cancel);
        }
    }
}

/// Opens what is measured, for its descriptor alone.
type Open = fn(&Path) -> Result<(File, Metadata), OpenError>;

/// Opens a directory whose own name only the agent can change.
fn open(path: &Path) -> Result<(File, Metadata), OpenError> {
    with_metadata(foreign::find_in_own(path)?)
}

/// Opens a directory or file of the host, through links as a volume's.
fn open_volume(path: &Path) -> Result<(File, Metadata), OpenError> {
    let below = path.strip_prefix("/").map_err(|_| OpenError::Outside)?;
    with_metadata(foreign::find(foreign::directory(Path::new("/"))?, below, Resolve::InRoot)?)
}

fn with_metadata(found: OwnedFd) -> Result<(File, Metadata), OpenError> {
    let file = File::from(found);
    let metadata = file.metadata().map_err(OpenError::System)?;
    Ok((file, metadata))
}
