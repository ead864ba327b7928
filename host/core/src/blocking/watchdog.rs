//! Finds steps that have timed out.
//!
//! One thread sleeps until the earliest moment at which any job can have a step that timed out. Jobs that have
//! finished by then are dropped from its queue; the others are checked and queued again. So a job costs an entry
//! in a queue, and does not wake the thread unless its timeout is the earliest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Job, JobState, Step};

/// Finds steps that have timed out. Its thread ends when this is dropped.
pub(super) struct Watchdog(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    watched: BinaryHeap<Reverse<Watched>>,
    work: Vec<Work>,
    /// When the thread wakes up by itself; `None` for never.
    wakes: Option<Instant>,
    closed: bool,
}

/// Work for the watchdog's thread.
pub(super) type Work = Box<dyn FnOnce() + Send>;

type OnTimeout = Box<dyn FnOnce(Step) + Send>;

struct Watched {
    check_at: Instant,
    min_timeout: Duration,
    job: Weak<Job>,
    on_timeout: OnTimeout,
}

impl Watchdog {
    /// Starts its thread: when timeouts are needed, there may be no more threads.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watchdog = Self(Arc::clone(&shared));
        std::thread::Builder::new().name("watchdog".into()).spawn(move || shared.run())?;
        Ok(watchdog)
    }

    /// Watches a job until it is dropped. No step of it has a timeout shorter than `min_timeout`.
    pub(super) fn watch(&self, job: &Arc<Job>, min_timeout: Duration, on_timeout: OnTimeout) {
        let check_at = Instant::now() + min_timeout;
        let mut state = self.0.state.lock();
        state.watched.push(Reverse(Watched { check_at, min_timeout, job: Arc::downgrade(job), on_timeout }));
        if state.wakes.is_none_or(|wakes| check_at < wakes) {
            self.0.changed.notify_one();
        }
    }

    /// Runs brief work on the watchdog's thread, which never runs plugin code.
    pub(super) fn run(&self, work: Work) {
        self.0.state.lock().work.push(work);
        self.0.changed.notify_one();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            let work = std::mem::take(&mut state.work);
            if !work.is_empty() {
                drop(state);
                work.into_iter().for_each(|work| work());
                state = self.state.lock();
                continue;
            }
            let now = Instant::now();
            let mut timed_out = Vec::new();
            while state.watched.peek().is_some_and(|Reverse(next)| next.check_at <= now) {
                let Some(Reverse(mut watched)) = state.watched.pop() else { break };
                // The thread that runs the job owns it.
                let Some(job) = watched.job.upgrade() else { continue };
                watched.check_at = match job.check() {
                    JobState::Idle => now + watched.min_timeout,
                    JobState::Until(until) => until,
                    JobState::TimedOut(step) => {
                        timed_out.push((watched.on_timeout, step));
                        continue;
                    }
                };
                state.watched.push(Reverse(watched));
            }
            if !timed_out.is_empty() {
                drop(state);
                timed_out.into_iter().for_each(|(on_timeout, step)| on_timeout(step));
                state = self.state.lock();
                continue;
            }
            state.wakes = state.watched.peek().map(|Reverse(next)| next.check_at);
            match state.wakes {
                Some(wakes) => {
                    self.changed.wait_until(&mut state, wakes);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.check_at == other.check_at
    }
}

impl Eq for Watched {}

impl PartialOrd for Watched {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Watched {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.check_at.cmp(&other.check_at)
    }
}
