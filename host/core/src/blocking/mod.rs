//! A pool of threads for blocking work, with a timeout for each plugin call in it.
//!
//! Plugin code and the kernel may block for any length of time, so neither runs on a thread of the async runtime.
//! A job is a closure on a thread of this pool; each plugin call in it is a [`Step`] with a timeout. A watchdog
//! thread checks the current step when its timeout may have passed and no earlier, so a call that returns in time
//! costs one thread hop and nothing else.
//!
//! ```text
//!   run ──▶ pool: a thread runs the job, step by step ──▶ outcome ────────┐
//!     └───▶ watchdog: sleeps until a step may time out ─▶ Abandoned::TimedOut ┴─▶ the caller, whichever is first
//! ```
//!
//! A thread cannot be killed. When a step times out, the job is abandoned: its thread stops before the next step
//! if it ever returns, a new thread takes its place in the pool, and the caller gets the step that timed out. This
//! happens whether or not the caller still waits.
//!
//! What calls no plugin runs in a [`WorkPool`], whose threads plugins cannot keep busy. Removals of large trees have one of
//! their own: they may take minutes, and nothing else waits for them. All pools keep some threads from their start on:
//! containers can be ended when the kernel creates no more threads.
//!
//! A job is also abandoned when a plugin changed the thread that it was called on (see `thread`): neither the rest of
//! the job nor anything else may run there.

mod call_file;
mod pool;
mod thread;
mod watchdog;
mod work;

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cofferdam_plugin_model::Method;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use pool::{IDLE, OwnedPool, Size, TaskEnd};
use thread::Check;
use watchdog::Watchdog;

pub use call_file::CallFile;
pub use thread::Changes;
pub use work::{WorkLost, WorkPool};

/// Threads for jobs that are kept. One that a plugin blocks leaves others.
const KEPT: usize = 4;

/// Threads for work that calls no plugin: those that are kept, and all.
const KEPT_FOR_WORK: usize = 2;
const MAX_FOR_WORK: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Threads for removals that are kept.
const KEPT_FOR_REMOVALS: usize = 1;

/// Runs blocking jobs. Cheap to clone; all clones share the threads.
#[derive(Clone)]
pub struct BlockingPool {
    pool: Arc<OwnedPool>,
    work: WorkPool,
    removals: WorkPool,
    watchdog: Arc<Watchdog>,
    calls: Arc<OnceLock<Arc<CallFile>>>,
}

/// How many threads a pool may have.
#[derive(Debug, Clone, Copy)]
pub struct MaxThreads {
    /// For jobs, not counting those of abandoned ones.
    pub jobs: NonZeroUsize,
    /// For removals of large trees.
    pub removals: NonZeroUsize,
}

/// A running job, as its closure sees it.
pub struct Job {
    current: Mutex<Current>,
    calls: Option<Arc<CallFile>>,
}

/// Under one lock: a job is abandoned during a step or not at all.
#[derive(Default)]
struct Current {
    step: Option<Step>,
    abandoned: bool,
    timed_out: bool,
    /// The last step that ended.
    last: Option<(Arc<str>, Method)>,
    /// The step in which a plugin changed the job's thread.
    changed: Option<(Step, Changes)>,
}

/// One plugin call inside a job.
#[derive(Debug, Clone)]
pub struct Step {
    /// The plugin.
    pub plugin: Arc<str>,
    /// The method.
    pub method: Method,
    /// Its timeout.
    pub timeout: Duration,
    until: Instant,
}

/// Why a job has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Abandoned {
    /// A step timed out; the job's thread is still in it.
    #[error("`{}` did not return from `{}` within {:?}", .0.plugin, .0.method, .0.timeout)]
    TimedOut(Step),
    /// A plugin changed the thread that it was called on; the call failed, and the thread is not used again.
    #[error("`{}` changed its thread in `{}`, which plugins must not: {}", .0.plugin, .0.method, .1)]
    ThreadChanged(Step, Changes),
    /// The job panicked, or no thread could be started.
    #[error("a thread of the agent panicked or could not be started; see the agent's log")]
    Died,
}

/// The job was abandoned before this step, which did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl BlockingPool {
    /// A pool of at most so many threads.
    ///
    /// # Errors
    /// If the threads that are kept cannot be started.
    pub fn new(max: MaxThreads) -> io::Result<Self> {
        let size = Size { kept: KEPT, max: max.jobs, idle: IDLE, prepare: thread::start };
        Ok(Self {
            pool: Arc::new(OwnedPool::start(size)?),
            work: WorkPool::start(KEPT_FOR_WORK, MAX_FOR_WORK)?,
            removals: WorkPool::start(KEPT_FOR_REMOVALS, max.removals)?,
            watchdog: Arc::new(Watchdog::start()?),
            calls: Arc::default(),
        })
    }

    /// Threads for work that calls no plugin, and does not wait for those that do.
    #[must_use]
    pub fn work(&self) -> &WorkPool {
        &self.work
    }

    /// Threads for removals of large trees, which nothing else waits for.
    #[must_use]
    pub fn removals(&self) -> &WorkPool {
        &self.removals
    }

    /// Notes the calls of all later jobs in a file while they are in progress.
    pub fn note_calls(&self, file: Arc<CallFile>) {
        // The first file stays: notes of running calls refer to it.
        drop(self.calls.set(file));
    }

    /// Runs a job. `min_timeout` is the shortest timeout of any step in it.
    ///
    /// # Errors
    /// [`Abandoned`] when a step timed out or the job panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        min_timeout: Duration,
        work: impl FnOnce(&Job) -> T + Send + 'static,
    ) -> Result<T, Abandoned> {
        let job = Arc::new(Job { calls: self.calls.get().cloned(), ..Job::unwatched() });
        let (sender, outcome) = oneshot::channel();
        // Taken by whoever is first: the job with its outcome, or the watchdog.
        let sender = Arc::new(Mutex::new(Some(sender)));
        let send = move |sender: &Mutex<Option<oneshot::Sender<_>>>, outcome| {
            if let Some(sender) = sender.lock().take() {
                // The caller may no longer wait.
                drop(sender.send(outcome));
            }
        };

        let (pool, watchdog_sender) = (Arc::downgrade(&**self.pool), Arc::clone(&sender));
        let on_timeout = Box::new(move |step: Step| {
            if let Some(pool) = pool.upgrade() {
                pool.replace_thread();
            }
            send(&watchdog_sender, Err(Abandoned::TimedOut(step)));
        });
        self.watchdog.watch(&job, min_timeout, on_timeout);

        let span = tracing::Span::current();
        let (pool, watchdog) = (Arc::downgrade(&**self.pool), Arc::downgrade(&self.watchdog));
        self.pool.submit(Box::new(move || {
            let _in_span = span.entered();
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&job))).map_err(|_| {
                tracing::error!("a blocking job panicked; this is a bug of the agent");
                Abandoned::Died
            });
            let (timed_out, changed) = job.end();
            let is_changed = changed.is_some();
            match changed {
                // The watchdog has sent the timeout to the caller.
                _ if timed_out => {}
                None => send(&sender, outcome),
                Some((step, changes)) => send(&sender, Err(Abandoned::ThreadChanged(step, changes))),
            }
            match (is_changed || job.check_thread_afterwards(), timed_out) {
                (false, false) => TaskEnd::Finished,
                (false, true) => TaskEnd::Returned,
                (true, true) => TaskEnd::Retired,
                (true, false) => {
                    // A thread inherits from the one that starts it, so another one must start the replacement.
                    if let Some(watchdog) = watchdog.upgrade() {
                        watchdog.run(Box::new(move || {
                            if let Some(pool) = pool.upgrade() {
                                pool.replace_thread();
                            }
                        }));
                    }
                    TaskEnd::Retired
                }
            }
        }));
        // If no thread can be started, the task is dropped with the sender.
        outcome.await.unwrap_or(Err(Abandoned::Died))
    }

    /// Runs work whose outcome is not needed and that calls no plugin.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.pool.submit(Box::new(|| {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("background work panicked; this is a bug of the agent");
            }
            TaskEnd::Finished
        }));
    }
}

/// State of a job as the watchdog finds it.
enum JobState {
    /// No step is running.
    Idle,
    /// The current step may run until then.
    Until(Instant),
    /// The current step has timed out; the job is abandoned from now on.
    TimedOut(Step),
}

impl Job {
    /// A job without timeouts, for work on the calling thread.
    #[must_use]
    pub fn unwatched() -> Self {
        Self { current: Mutex::default(), calls: None }
    }

    /// Runs one plugin call with a timeout.
    ///
    /// # Errors
    /// [`Cancelled`] when the job was abandoned before this step, which then did not run, or because of it: the
    /// plugin changed its thread.
    pub fn step<T>(
        &self,
        plugin: &Arc<str>,
        method: Method,
        container: &str,
        timeout: Duration,
        call: impl FnOnce() -> T,
    ) -> Result<T, Cancelled> {
        let until = Instant::now() + timeout;
        let step = Step { plugin: Arc::clone(plugin), method, timeout, until };
        {
            let mut current = self.current.lock();
            if current.abandoned {
                return Err(Cancelled);
            }
            current.step = Some(step);
        }
        let note = self.calls.as_ref().and_then(|calls| calls.note(plugin, method, container));
        let value = call();
        drop(note);
        let checked = thread::check(if changes_host(method) { Check::Thorough } else { Check::Quick });
        let mut current = self.current.lock();
        let Some(step) = current.step.take() else { return Ok(value) };
        let Err(changes) = checked else {
            current.last = Some((step.plugin, method));
            return Ok(value);
        };
        report(&step.plugin, method, &changes);
        current.abandoned = true;
        current.changed = Some((step, changes));
        Err(Cancelled)
    }

    /// Whether the job was abandoned: its outcome is not needed any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.current.lock().abandoned
    }

    /// Whether the job timed out, and the step in which its thread was changed. It cannot be abandoned any more.
    fn end(&self) -> (bool, Option<(Step, Changes)>) {
        let mut current = self.current.lock();
        (current.timed_out, current.changed.take())
    }

    /// Completes the check of the thread after calls that were checked less thoroughly. Returns whether it was
    /// changed.
    fn check_thread_afterwards(&self) -> bool {
        let Err(changes) = thread::complete_check() else { return false };
        if let Some((plugin, method)) = &self.current.lock().last {
            report(plugin, *method, &changes);
        }
        true
    }

    fn check(&self) -> JobState {
        let mut current = self.current.lock();
        match current.step.clone() {
            None => JobState::Idle,
            Some(step) if step.until <= Instant::now() => {
                current.abandoned = true;
                current.timed_out = true;
                JobState::TimedOut(step)
            }
            Some(step) => JobState::Until(step.until),
        }
    }
}

/// Whether a method changes the host; the others only read.
fn changes_host(method: Method) -> bool {
    !matches!(
        method,
        Method::Watch | Method::Limitation | Method::Usage | Method::Status | Method::TaskStatus
    )
}

fn report(plugin: &str, method: Method, changes: &Changes) {
    let thread = std::thread::current();
    tracing::error!(
        plugin,
        %method,
        thread = thread.name(),
        thread_id = ?thread.id(),
        "plugin changed its thread, which is not used again: {changes}"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const NEVER: Duration = Duration::from_secs(3600);

    fn pool(most: usize) -> BlockingPool {
        BlockingPool::new(MaxThreads { jobs: NonZeroUsize::new(most).unwrap(), removals: NonZeroUsize::MIN })
            .unwrap()
    }

    #[tokio::test]
    async fn a_job_returns_the_results_of_its_steps() {
        let name: Arc<str> = "p".into();
        let pool = pool(2);
        let sum = pool.run(NEVER, move |job| {
            (1..=3).map(|n| job.step(&name, Method::Usage, "web", NEVER, || n).unwrap()).sum::<i32>()
        });
        assert_eq!(sum.await.unwrap(), 6);
    }

    #[tokio::test]
    async fn a_late_step_is_left_behind_and_the_next_one_is_not_begun() {
        let (release, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let name: Arc<str> = "slow".into();
        let pool = pool(1);
        let outcome = pool
            .run(SOON, move |job| {
                job.step(&name, Method::Prepare, "web", SOON, || held.recv()).unwrap().unwrap_err();
                tell.send(job.step(&name, Method::Isolate, "web", SOON, || ())).unwrap();
            })
            .await;
        assert!(matches!(outcome, Err(Abandoned::TimedOut(step)) if &*step.plugin == "slow"));

        // Its place is free again: another job runs in a pool of one.
        assert_eq!(pool.run(NEVER, |_| 7).await.unwrap(), 7);

        drop(release);
        assert_eq!(told.recv().unwrap(), Err(Cancelled));
    }

    #[tokio::test]
    async fn a_thread_that_comes_back_counts_again() {
        let name: Arc<str> = "slow".into();
        let pool = pool(1);
        for _ in 0..4 {
            let (release, held) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel::<()>();
            let name = Arc::clone(&name);
            let late = pool.run(SOON, move |job| {
                let _tell = tell;
                job.step(&name, Method::Prepare, "web", SOON, || held.recv()).map(drop)
            });
            assert!(matches!(late.await, Err(Abandoned::TimedOut(_))));
            drop(release);
            // Closed when the thread is done with it.
            told.recv().unwrap_err();
        }
        // There is still only one thread.
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let crowd: Vec<_> = (0..64)
            .map(|_| {
                let (pool, inside, most) = (pool.clone(), Arc::clone(&inside), Arc::clone(&most));
                tokio::spawn(async move {
                    let work = move |_: &Job| {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    };
                    pool.run(NEVER, work).await.unwrap();
                })
            })
            .collect();
        for one in crowd {
            one.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_job_is_still_watched_when_its_caller_is_dropped() {
        let (release, held) = mpsc::channel::<()>();
        let name: Arc<str> = "slow".into();
        let pool = pool(1);
        let (begun, began) = oneshot::channel();
        let work = pool.run(SOON, move |job| {
            job.step(&name, Method::Usage, "web", SOON, || {
                begun.send(()).unwrap();
                held.recv()
            })
            .map(drop)
        });
        tokio::select! {
            biased;
            _ = began => {}
            _ = work => panic!("it is held"),
        }
        // The only thread is stuck, and was given up all the same.
        assert_eq!(pool.run(NEVER, |_| 7).await.unwrap(), 7);
        drop(release);
    }

    #[tokio::test]
    async fn a_thread_that_a_plugin_changed_is_replaced_and_its_job_is_abandoned() {
        let name: Arc<str> = "faulty".into();
        let pool = pool(1);
        let thread_of =
            |pool: BlockingPool| async move { pool.run(NEVER, |_| std::thread::current().id()).await };
        let first = thread_of(pool.clone()).await.unwrap();
        let block_signals = || nix::sys::signal::SigSet::all().thread_block().unwrap();
        let (faulty, block) = (Arc::clone(&name), block_signals);
        let outcome =
            pool.run(NEVER, move |job| job.step(&faulty, Method::Usage, "web", NEVER, block).is_ok());
        let error = outcome.await.unwrap_err().to_string();
        assert!(
            error.contains("`faulty` changed its thread in `usage`") && error.contains("signal mask"),
            "{error}"
        );
        let second = thread_of(pool.clone()).await.unwrap();
        assert_ne!(first, second);
        // The new one did not inherit it.
        let calm = pool.run(NEVER, move |job| job.step(&name, Method::Usage, "web", NEVER, || 7).ok());
        assert_eq!(calm.await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn a_panic_ends_the_job_and_not_the_pool() {
        let pool = pool(1);
        let died = pool.run(NEVER, |_| -> () { panic!("deliberate") }).await;
        assert!(matches!(died, Err(Abandoned::Died)));
        assert_eq!(pool.run(NEVER, |_| 1).await.unwrap(), 1);
    }
}
