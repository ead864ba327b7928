//! Samples of the performance events of cgroups.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cofferdam_linux::own_table;
use cofferdam_linux::perf::{Counter, Event as PerfEvent, online_cpus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::cgroup::Cgroup;
use crate::event::{self, Event};

/// Most descriptors of one sample: one for each event, CPU and cgroup.
const MAX_DESCRIPTORS: usize = 1 << 15;

/// Descriptors of the limit that are left for other things.
const RESERVED: usize = 16;

/// Counts performance events of cgroups: in intervals, and for a part of each, so that it costs little. The counts of a cgroup
/// include those of the cgroups below it.
///
/// The descriptors that this takes, one for each event, CPU and cgroup while a sample is taken, are in the table of a thread of their
/// own, not in that of the agent. If the limit of descriptors does not permit a sample of all cgroups, the next sample is of the
/// others. The thread is started when the first cgroup is added. Samples are lost when the agent restarts.
#[derive(Debug)]
pub struct PerfSamples {
    plan: Plan,
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread>>,
}

/// What is counted, and when.
#[derive(Debug, Clone)]
struct Plan {
    events: Vec<PerfEvent>,
    interval: Duration,
    duration: Duration,
}

/// The counts of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct PerfSample {
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The count of each event, in the order of the events; of times, nanoseconds. `None` if the machine could not count it.
    pub counts: Vec<Option<u64>>,
}

/// The agent's side of the thread.
#[derive(Debug)]
struct Thread {
    requests: Sender<Request>,
    wake: Event,
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Without requests it ends.
        self.requests = channel().0;
        let _ = self.wake.signal();
    }
}

#[derive(Debug, Default)]
struct Shared(Mutex<HashMap<String, Outcome>>);

/// What is known of a cgroup.
#[derive(Debug, Default)]
struct Outcome {
    sample: Option<PerfSample>,
    /// Why the last sample was not taken, until somebody has read it.
    error: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Outcome>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Request {
    Add { key: String, directory: PathBuf },
    Remove { key: String },
}

impl PerfSamples {
    /// Counts these events once per `interval`, for `duration`, which is shorter.
    #[must_use]
    pub fn new(events: Vec<PerfEvent>, interval: Duration, duration: Duration) -> Self {
        let plan = Plan { events, interval, duration };
        Self { plan, shared: Arc::default(), thread: Mutex::default() }
    }

    /// Includes a cgroup in samples from the next one on; the first one begins at once. Does nothing if `key` is known.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn add(&self, key: &str, cgroup: &Cgroup) -> io::Result<()> {
        if self.shared.lock().contains_key(key) {
            return Ok(());
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = Some(start(self.plan.clone(), Arc::clone(&self.shared))?);
        }
        self.shared.lock().insert(key.to_owned(), Outcome::default());
        let request = Request::Add { key: key.to_owned(), directory: cgroup.directory().to_owned() };
        thread.as_ref().map_or(Ok(()), |thread| thread.send(request))
    }

    /// The last sample of a cgroup. `None` if it was not added, or there is none yet.
    ///
    /// # Errors
    /// Why the last sample was not taken: returned once.
    pub fn read(&self, key: &str) -> Result<Option<PerfSample>, String> {
        match self.shared.lock().get_mut(key) {
            None => Ok(None),
            Some(Outcome { error, sample }) => match error.take() {
                Some(error) => Err(error),
                None => Ok(sample.clone()),
            },
        }
    }

    /// Excludes a cgroup from samples, also from the one that is being taken. It need not be known.
    pub fn remove(&self, key: &str) {
        self.shared.lock().remove(key);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.as_ref() {
            // Without a thread there is nothing to end.
            let _ = thread.send(Request::Remove { key: key.to_owned() });
        }
    }
}

impl Thread {
    fn send(&self, request: Request) -> io::Result<()> {
        self.requests.send(request).map_err(|_| io::Error::other("the thread that counts events ended"))?;
        self.wake.signal()
    }
}

fn start(plan: Plan, shared: Arc<Shared>) -> io::Result<Thread> {
    let (requests, received) = channel();
    let (started, outcome) = channel();
    let wake = Event::new()?;
    let number = wake.as_fd().as_raw_fd();
    std::thread::Builder::new().name("perf samples".into()).spawn(move || {
        let sampler = Sampler::enter(number, received, plan, shared);
        let _ = started.send(sampler.as_ref().map(drop).map_err(io::Error::raw_os_error));
        if let Ok(sampler) = sampler {
            sampler.run();
        }
    })?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(Thread { requests, wake }),
        Ok(Err(Some(errno))) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("the thread that counts events ended")),
    }
}

/// What the thread has. In it, the numbers of the process's descriptors mean others: it logs nothing.
struct Sampler {
    wake: OwnedFd,
    requests: Receiver<Request>,
    plan: Plan,
    shared: Arc<Shared>,
    cgroups: BTreeMap<String, PathBuf>,
    /// The last cgroup of the sample before, if there was not enough for all.
    after: Option<String>,
}

/// A sample that is being taken.
struct Taking {
    start: SystemTime,
    instant: Instant,
    /// Of each cgroup and event, those of the CPUs.
    counters: BTreeMap<String, Vec<Vec<Counter>>>,
}

impl Sampler {
    fn enter(wake: RawFd, requests: Receiver<Request>, plan: Plan, shared: Arc<Shared>) -> io::Result<Self> {
        // SAFETY: nothing on this thread owns a descriptor, and from now on it runs nothing but this file.
        let wake = unsafe { own_table::enter(wake)? };
        Ok(Self { wake, requests, plan, shared, cgroups: BTreeMap::new(), after: None })
    }

    /// Takes samples until there can be no more requests.
    fn run(mut self) {
        let (mut taking, mut next): (Option<Taking>, _) = (None, Instant::now());
        loop {
            let now = Instant::now();
            match &taking {
                Some(sample) if now >= sample.instant + self.plan.duration => {
                    if let Some(sample) = taking.take() {
                        self.finish(sample);
                    }
                }
                None if now >= next && !self.cgroups.is_empty() => {
                    taking = Some(self.begin());
                    // What was missed is not made up for.
                    next = now + self.plan.interval;
                }
                _ => {}
            }
            let until = match &taking {
                Some(sample) => Some(sample.instant + self.plan.duration),
                None if self.cgroups.is_empty() => None,
                None => Some(next),
            };
            if self.wait(until).is_err() || !self.serve(&mut taking) {
                break;
            }
        }
    }

    /// Waits for requests, or for a time.
    fn wait(&self, until: Option<Instant>) -> io::Result<()> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A time that cannot be represented is far away.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        event::drain(&self.wake).map(drop)
    }

    /// Returns false when there can be no more requests.
    fn serve(&mut self, taking: &mut Option<Taking>) -> bool {
        loop {
            match self.requests.try_recv() {
                Ok(Request::Add { key, directory }) => {
                    self.cgroups.insert(key, directory);
                }
                Ok(Request::Remove { key }) => {
                    self.cgroups.remove(&key);
                    if let Some(sample) = taking {
                        sample.counters.remove(&key);
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Begins to count, for as many cgroups as there may be descriptors.
    fn begin(&mut self) -> Taking {
        let mut taking =
            Taking { start: SystemTime::now(), instant: Instant::now(), counters: BTreeMap::new() };
        let cpus = match online_cpus() {
            Ok(cpus) => cpus,
            Err(error) => {
                self.cgroups.keys().for_each(|key| self.fail(key, format!("cannot list the CPUs: {error}")));
                return taking;
            }
        };
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
        let limit = limit.saturating_sub(RESERVED).min(MAX_DESCRIPTORS);
        let of_one = (cpus.len() * self.plan.events.len()).max(1);
        let from = self.after.take().map_or(Bound::Unbounded, Bound::Excluded);
        let first = self.cgroups.range((from.clone(), Bound::Unbounded));
        let wrapped = self.cgroups.iter().take_while(|(key, _)| match &from {
            Bound::Excluded(after) => *key <= after,
            _ => false,
        });
        // One at least, whose error says what is wrong.
        let some: Vec<_> = first.chain(wrapped).take((limit / of_one).max(1)).collect();
        if some.len() < self.cgroups.len() {
            self.after = some.last().map(|(key, _)| (*key).clone());
        }
        for (key, directory) in some {
            match self.open(directory, &cpus) {
                Ok(counters) => drop(taking.counters.insert(key.clone(), counters)),
                Err(message) => self.fail(key, message),
            }
        }
        taking
    }

    fn open(&self, directory: &PathBuf, cpus: &[u32]) -> Result<Vec<Vec<Counter>>, String> {
        let cgroup = File::open(directory)
            .map_err(|error| format!("cannot open the cgroup `{}`: {error}", directory.display()))?;
        let on_cpus = |event: &PerfEvent| {
            let counters = cpus.iter().map(|cpu| event.count(&cgroup, *cpu));
            // A CPU may be taken offline.
            let counters = counters.filter(|counter| !matches!(counter, Err(error) if is_offline(error)));
            counters
                .collect::<io::Result<Vec<_>>>()
                .map_err(|error| format!("cannot count the event `{}`: {error}", event.name()))
        };
        self.plan.events.iter().map(on_cpus).collect()
    }

    fn finish(&self, taking: Taking) {
        let duration = taking.instant.elapsed();
        for (key, counters) in taking.counters {
            let counts = counters.iter().map(|on_cpus| sum(on_cpus)).collect::<io::Result<Vec<_>>>();
            match counts {
                Ok(counts) => {
                    if let Some(outcome) = self.shared.lock().get_mut(&key) {
                        outcome.sample = Some(PerfSample { start: taking.start, duration, counts });
                    }
                }
                Err(error) => self.fail(&key, format!("cannot read a counter: {error}")),
            }
        }
    }

    fn fail(&self, key: &str, message: String) {
        if let Some(outcome) = self.shared.lock().get_mut(key) {
            outcome.error = Some(message);
        }
    }
}

/// `ENODEV`.
fn is_offline(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// The sum over all CPUs; `None` if one could not count.
fn sum(counters: &[Counter]) -> io::Result<Option<u64>> {
    let mut sum = 0_u64;
    for counter in counters {
        match counter.read()? {
            Some(count) => sum = sum.saturating_add(count),
            None => return Ok(None),
        }
    }
    Ok(Some(sum))
}
