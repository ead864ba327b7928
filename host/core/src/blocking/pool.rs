//! The threads of the pool.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::thread;

/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(10);

/// Work for a thread. It does not unwind.
pub(super) type Task = Box<dyn FnOnce() -> TaskEnd + Send>;

/// What becomes of a thread after a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskEnd {
    /// It takes the next task.
    Finished,
    /// It was replaced while its job was late; now it counts again.
    Returned,
    /// It ends. It was replaced, or will be.
    Retired,
}

/// The threads of the pool.
pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    max_threads: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Task>,
    idle: usize,
    /// Threads that work or wait for work; those of abandoned jobs do not count.
    threads: usize,
}

impl Pool {
    pub(super) fn new(max_threads: NonZeroUsize) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), max_threads: max_threads.get() }
    }

    /// Runs a task on an idle thread, or on a new one if the limit allows it.
    pub(super) fn submit(self: &Arc<Self>, task: Task) {
        let mut state = self.state.lock();
        state.queue.push_back(task);
        if state.idle >= state.queue.len() || state.threads >= self.max_threads {
            self.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let pool = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("blocking".into()).spawn(move || pool.serve());
        if let Err(error) = spawned {
            let mut state = self.state.lock();
            state.threads -= 1;
            // Tasks stay queued for the existing threads. Without any, their callers get an error.
            let lost = if state.threads == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
            drop(state);
            tracing::error!(%error, lost = lost.len(), "cannot start a thread; calls may be delayed");
        }
    }

    fn serve(self: Arc<Self>) {
        thread::start();
        let mut state = self.state.lock();
        loop {
            // There are more threads than allowed when one of an abandoned job has returned.
            if state.threads > self.max_threads {
                break;
            }
            if let Some(task) = state.queue.pop_front() {
                drop(state);
                let end = task();
                if end == TaskEnd::Retired {
                    return;
                }
                state = self.state.lock();
                state.threads += usize::from(end == TaskEnd::Returned);
                continue;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                break;
            }
        }
        state.threads = state.threads.saturating_sub(1);
    }

    /// Stops counting a thread that is stuck in an abandoned job or that ends, so that another can take its place.
    pub(super) fn replace_thread(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.threads = state.threads.saturating_sub(1);
        let waiting = !state.queue.is_empty();
        drop(state);
        if waiting {
            self.submit(Box::new(|| TaskEnd::Finished));
        }
    }
}
