//! The threads.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lock;

/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(10);

/// Work for a thread; answers whether it was abandoned meanwhile. It does not unwind.
pub(super) type Job = Box<dyn FnOnce() -> bool + Send>;

/// The threads.
pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    most: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    idle: usize,
    /// Threads that work or wait for work; the abandoned ones do not count.
    threads: usize,
}

impl Pool {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), most: most.get() }
    }

    /// Has a thread do a job, a new one if that is allowed and no other is free.
    pub(super) fn submit(self: &Arc<Self>, job: Job) {
        let mut state = lock(&self.state);
        state.queue.push_back(job);
        if state.idle >= state.queue.len() || state.threads >= self.most {
            self.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let pool = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("errand".into()).spawn(move || pool.serve());
        if let Err(error) = spawned {
            let mut state = lock(&self.state);
            state.threads -= 1;
            // The jobs stay in the queue for the threads there are; without any, whoever waits hears of it.
            let lost = if state.threads == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
            drop(state);
            tracing::error!(%error, lost = lost.len(), "cannot start a thread; calls may wait");
        }
    }

    fn serve(self: Arc<Self>) {
        let mut state = lock(&self.state);
        loop {
            // More threads than allowed are there once an abandoned one came back.
            if state.threads > self.most {
                break;
            }
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                let abandoned = job();
                state = lock(&self.state);
                // It was given up, and has come back: it counts again.
                state.threads += usize::from(abandoned);
                continue;
            }
            state.idle += 1;
            let (woken, timeout) =
                self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads = state.threads.saturating_sub(1);
    }

    /// One thread is stuck in foreign code: what waits must not wait for it.
    pub(super) fn give_up_on_one(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        state.threads = state.threads.saturating_sub(1);
        let waiting = !state.queue.is_empty();
        drop(state);
        if waiting {
            self.submit(Box::new(|| false));
        }
    }
}
