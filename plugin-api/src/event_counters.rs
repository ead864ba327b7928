//! Counts events of v1 cgroups.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cofferdam_linux::{cgroup as linux, own_table};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use crate::cgroup::{Cgroup, CgroupVersion};
use crate::event::Event;

/// Numbers of the events that the kernel reports of v1 cgroups by `cgroup.event_control`, such as the levels of memory pressure.
///
/// The descriptors that this takes, one per event that is counted, are in the table of a thread of their own, not in that of the
/// agent, which has one for all. The thread is started when the first cgroup is added. Counters begin at 0 when a cgroup is
/// added, so also when the agent restarts.
#[derive(Debug, Default)]
pub struct EventCounters {
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread>>,
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
struct Shared(Mutex<HashMap<String, Counters>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Counters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of one cgroup, or why there are none.
type Counters = Result<Vec<Arc<AtomicU64>>, String>;

enum Request {
    Add { key: String, cgroup: linux::Cgroup, knob: &'static str, arguments: &'static [&'static str] },
    Remove { key: String },
}

impl EventCounters {
    /// Counts the events of the interface file `knob` of a v1 cgroup: of each of `arguments`, which are those that
    /// `cgroup.event_control` expects. Does not wait for the kernel: [`EventCounters::read`] has no numbers before they are
    /// counted, and none if they cannot be. Does nothing for a v2 cgroup, and if `key` is known.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn add(
        &self,
        key: &str,
        cgroup: &Cgroup,
        knob: &'static str,
        arguments: &'static [&'static str],
    ) -> io::Result<()> {
        if cgroup.version() == CgroupVersion::V2 || self.shared.lock().contains_key(key) {
            return Ok(());
        }
        let cgroup = linux::Cgroup::at(cgroup.directory(), CgroupVersion::V1);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = Some(start(Arc::clone(&self.shared))?);
        }
        let request = Request::Add { key: key.to_owned(), cgroup, knob, arguments };
        thread.as_ref().map_or(Ok(()), |thread| thread.send(request))
    }

    /// The numbers of the events, in the order of `arguments`. `None` if the cgroup was not added, or not yet counted.
    ///
    /// # Errors
    /// Why they cannot be counted: returned once.
    pub fn read(&self, key: &str) -> Result<Option<Vec<u64>>, String> {
        let mut shared = self.shared.lock();
        match shared.get_mut(key) {
            None => Ok(None),
            Some(Ok(counters)) => {
                Ok(Some(counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()))
            }
            Some(Err(reason)) => match std::mem::take(reason) {
                reason if reason.is_empty() => Ok(None),
                reason => Err(reason),
            },
        }
    }

    /// Ends the counting of a cgroup. It need not be known.
    pub fn remove(&self, key: &str) {
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

fn start(shared: Arc<Shared>) -> io::Result<Thread> {
    let (requests, received) = channel();
    let (started, outcome) = channel();
    let wake = Event::new()?;
    let number = wake.as_fd().as_raw_fd();
    std::thread::Builder::new().name("event counters".into()).spawn(move || {
        let counting = Counting::enter(number, received, shared);
        let _ = started.send(counting.as_ref().map(drop).map_err(io::Error::raw_os_error));
        if let Ok(counting) = counting {
            counting.run();
        }
    })?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(Thread { requests, wake }),
        Ok(Err(Some(errno))) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("the thread that counts events ended")),
    }
}

/// Data of `wake` in the epoll instance.
const WAKE: u64 = 0;

/// What the thread has. In it, the numbers of the process's descriptors mean others: it logs nothing.
struct Counting {
    wake: OwnedFd,
    epoll: OwnedFd,
    requests: Receiver<Request>,
    shared: Arc<Shared>,
    /// By the data in the epoll instance.
    events: BTreeMap<u64, (OwnedFd, Arc<AtomicU64>)>,
    keys: HashMap<String, Vec<u64>>,
    next: u64,
}

impl Counting {
    fn enter(wake: RawFd, requests: Receiver<Request>, shared: Arc<Shared>) -> io::Result<Self> {
        // SAFETY: nothing on this thread owns a descriptor, and from now on it runs nothing but this file.
        let wake = unsafe { own_table::enter(wake)? };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            wake,
            epoll,
            requests,
            shared,
            events: BTreeMap::new(),
            keys: HashMap::new(),
            next: WAKE + 1,
        })
    }

    /// Counts until there can be no more requests.
    fn run(mut self) {
        let mut ready = Vec::with_capacity(64);
        loop {
            ready.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            for event in &ready {
                let token = event.data.u64();
                if let Some((descriptor, counter)) = self.events.get(&token) {
                    counter.fetch_add(take(descriptor), Ordering::Relaxed);
                }
            }
            if ready.iter().any(|event| event.data.u64() == WAKE) {
                take(&self.wake);
                if !self.serve() {
                    break;
                }
            }
        }
    }

    /// Returns false when there can be no more requests.
    fn serve(&mut self) -> bool {
        use std::sync::mpsc::TryRecvError;
        loop {
            match self.requests.try_recv() {
                Ok(Request::Add { key, cgroup, knob, arguments }) => {
                    if self.keys.contains_key(&key) {
                        continue;
                    }
                    let before = self.next;
                    let registered: Result<Vec<_>, _> =
                        arguments.iter().map(|argument| self.register(&cgroup, knob, argument)).collect();
                    if registered.is_err() {
                        self.events.split_off(&before);
                    }
                    self.add(key, registered);
                }
                Ok(Request::Remove { key }) => {
                    for token in self.keys.remove(&key).unwrap_or_default() {
                        self.events.remove(&token);
                    }
                    self.shared.lock().remove(&key);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, key: String, registered: Result<Vec<(u64, Arc<AtomicU64>)>, String>) {
        let counters = registered.map(|registered| {
            let (tokens, counters) = registered.into_iter().unzip();
            self.keys.insert(key.clone(), tokens);
            counters
        });
        self.shared.lock().insert(key, counters);
    }

    fn register(
        &mut self,
        cgroup: &linux::Cgroup,
        knob: &str,
        argument: &str,
    ) -> Result<(u64, Arc<AtomicU64>), String> {
        let watched = cgroup.open(knob).map_err(|error| described(&error))?;
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| format!("cannot create an eventfd: {errno}"))?;
        let registration = format!("{} {} {argument}", descriptor.as_raw_fd(), watched.as_raw_fd());
        cgroup.write("cgroup.event_control", registration).map_err(|error| described(&error))?;
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, &descriptor, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
            .map_err(|errno| format!("cannot poll an eventfd: {errno}"))?;
        let counter = Arc::new(AtomicU64::new(0));
        self.events.insert(token, (descriptor, Arc::clone(&counter)));
        Ok((token, counter))
    }
}

fn described(error: &linux::CgroupError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// The value of a non-blocking eventfd, which is then 0.
fn take(descriptor: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    match rustix::io::read(descriptor, &mut value) {
        Ok(8) => u64::from_ne_bytes(value),
        _ => 0,
    }
}
