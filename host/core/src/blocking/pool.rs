//! The threads of a pool.
//!
//! Some of them are started with the pool and stay for as long as it exists: where the kernel creates no more threads, as
//! in a container that has reached `pids.max`, what ends containers still has a thread.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long a thread stays without work, unless it is one of those that are kept.
pub(super) const IDLE: Duration = Duration::from_secs(10);

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

/// How many threads a pool has, and what they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Those that stay without work.
    pub(super) kept: usize,
    /// All of them, but for those of abandoned jobs.
    pub(super) max: NonZeroUsize,
    /// How long the others stay without work.
    pub(super) idle: Duration,
    /// What each thread does first.
    pub(super) prepare: fn(),
}

/// A pool. Its threads end, once nothing is queued, when this is dropped.
pub(super) struct OwnedPool(Arc<Pool>);

/// The threads of a pool.
pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    size: Size,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Task>,
    idle: usize,
    /// Threads that work or wait for work; those of abandoned jobs do not count.
    threads: usize,
    closed: bool,
}

impl OwnedPool {
    /// Starts the threads that are kept.
    pub(super) fn start(size: Size) -> io::Result<Self> {
        let kept = size.kept.min(size.max.get());
        let pool = Self::new(Size { kept, ..size }, kept);
        for _ in 0..kept {
            pool.spawn()?;
        }
        Ok(pool)
    }

    /// A pool that keeps no threads.
    pub(super) fn on_demand(size: Size) -> Self {
        Self::new(Size { kept: 0, ..size }, 0)
    }

    fn new(size: Size, threads: usize) -> Self {
        let state = Mutex::new(State { threads, ..State::default() });
        Self(Arc::new(Pool { state, work: Condvar::new(), size }))
    }
}

impl Deref for OwnedPool {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Arc<Pool> {
        &self.0
    }
}

impl Drop for OwnedPool {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Pool {
    /// Runs a task on an idle thread, or on a new one if the limit allows it.
    pub(super) fn submit(self: &Arc<Self>, task: Task) {
        let mut state = self.state.lock();
        state.queue.push_back(task);
        if state.idle >= state.queue.len() || state.threads >= self.size.max.get() {
            self.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        self.spawn_counted();
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(self);
        std::thread::Builder::new().name("blocking".into()).spawn(move || pool.serve()).map(drop)
    }

    /// Starts a thread that counts already.
    fn spawn_counted(self: &Arc<Self>) {
        if let Err(error) = self.spawn() {
            let mut state = self.state.lock();
            state.threads -= 1;
            // Tasks stay queued for the existing threads. Without any, their callers get an error.
            let lost = if state.threads == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
            drop(state);
            tracing::error!(%error, lost = lost.len(), "cannot start a thread; calls may be delayed");
        }
    }

    fn serve(self: Arc<Self>) {
        (self.size.prepare)();
        let mut state = self.state.lock();
        loop {
            // There are more threads than allowed when one of an abandoned job has returned.
            if state.threads > self.size.max.get() {
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
            if state.closed {
                break;
            }
            state.idle += 1;
            let mut has_timed_out = false;
            if state.threads > self.size.kept {
                has_timed_out = self.work.wait_for(&mut state, self.size.idle).timed_out();
            } else {
                self.work.wait(&mut state);
            }
            state.idle -= 1;
            if has_timed_out && state.queue.is_empty() && state.threads > self.size.kept {
                break;
            }
        }
        state.threads = state.threads.saturating_sub(1);
    }

    /// Stops counting a thread that is stuck in an abandoned job or that ends, so that another can take its place.
    pub(super) fn replace_thread(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.threads = state.threads.saturating_sub(1);
        let is_needed = !state.queue.is_empty() || (state.threads < self.size.kept && !state.closed);
        // Another task may have started one meanwhile.
        if !is_needed || state.threads >= self.size.max.get() {
            return;
        }
        state.threads += 1;
        drop(state);
        self.spawn_counted();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};
    use std::thread::ThreadId;

    use super::*;

    fn size(kept: usize, max: usize) -> Size {
        Size { kept, max: NonZeroUsize::new(max).unwrap(), idle: Duration::ZERO, prepare: || () }
    }

    /// The threads of as many tasks that run at the same time.
    fn threads(pool: &OwnedPool, count: usize) -> Vec<ThreadId> {
        let (sender, receiver) = mpsc::channel();
        let meeting = Arc::new(Barrier::new(count));
        for _ in 0..count {
            let (sender, meeting) = (sender.clone(), Arc::clone(&meeting));
            pool.submit(Box::new(move || {
                meeting.wait();
                sender.send(std::thread::current().id()).unwrap();
                TaskEnd::Finished
            }));
        }
        let mut found: Vec<_> = receiver.into_iter().take(count).collect();
        found.sort_by_key(|id| format!("{id:?}"));
        found
    }

    /// Waits until so many threads are left, all of which wait for work.
    fn wait_until_idle(pool: &OwnedPool, left: usize) {
        for _ in 0..60_000 {
            let state = pool.state.lock();
            if state.threads == left && state.idle == left {
                return;
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(1));
        }
        let state = pool.state.lock();
        panic!("{} threads, {} of them idle", state.threads, state.idle);
    }

    #[test]
    fn some_threads_stay_without_work_and_others_end() {
        let pool = OwnedPool::start(size(2, 8)).unwrap();
        assert_eq!(pool.state.lock().threads, 2);
        for _ in 0..3 {
            assert_eq!(threads(&pool, 8).len(), 8);
            wait_until_idle(&pool, 2);
        }
        // The same ones, which need not be started.
        let stayed = threads(&pool, 2);
        wait_until_idle(&pool, 2);
        assert_eq!(threads(&pool, 2), stayed);
    }

    #[test]
    fn threads_end_with_the_pool_when_its_work_is_done() {
        let pool = OwnedPool::start(size(1, 1)).unwrap();
        let threads = Arc::downgrade(&pool);
        let (release, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        pool.submit(Box::new(move || {
            held.recv().unwrap_err();
            TaskEnd::Finished
        }));
        pool.submit(Box::new(move || {
            tell.send(()).unwrap();
            TaskEnd::Finished
        }));
        drop(pool);
        drop(release);
        told.recv().unwrap();
        for _ in 0..60_000 {
            if threads.strong_count() == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the thread has not ended");
    }

    #[test]
    fn a_thread_that_is_kept_is_replaced_without_waiting_work() {
        let pool = OwnedPool::start(size(1, 1)).unwrap();
        let first = threads(&pool, 1);
        pool.submit(Box::new(|| TaskEnd::Retired));
        wait_until_idle_after_retirement(&pool);
        pool.replace_thread();
        wait_until_idle(&pool, 1);
        assert_ne!(threads(&pool, 1), first);
    }

    /// It counts until it is replaced.
    fn wait_until_idle_after_retirement(pool: &OwnedPool) {
        for _ in 0..60_000 {
            // Of the pool's owner alone.
            if Arc::strong_count(pool) == 1 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the thread has not ended");
    }
}
