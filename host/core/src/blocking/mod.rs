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

mod pool;
mod watchdog;

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use pool::Pool;
use watchdog::Watchdog;

/// Runs blocking jobs. Cheap to clone; all clones share the threads.
#[derive(Clone)]
pub struct BlockingPool {
    pool: Arc<Pool>,
    watchdog: Arc<Watchdog>,
}

/// A running job, as its closure sees it.
pub struct Job {
    current: Mutex<Current>,
}

/// Under one lock: a job is abandoned during a step or not at all.
#[derive(Default)]
struct Current {
    step: Option<Step>,
    abandoned: bool,
}

/// One plugin call inside a job.
#[derive(Debug, Clone)]
pub struct Step {
    /// The plugin.
    pub plugin: Arc<str>,
    /// The method.
    pub method: &'static str,
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
    /// The job panicked, or no thread could be started.
    #[error("a thread of the agent panicked or could not be started; see the agent's log")]
    Died,
}

/// The job was abandoned before this step, which did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl BlockingPool {
    /// A pool of at most `max_threads` threads, not counting those of abandoned jobs.
    #[must_use]
    pub fn new(max_threads: NonZeroUsize) -> Self {
        Self { pool: Arc::new(Pool::new(max_threads)), watchdog: Arc::new(Watchdog::default()) }
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
        let job = Arc::new(Job::unwatched());
        let (sender, outcome) = oneshot::channel();
        // Taken by whoever is first: the job with its outcome, or the watchdog.
        let sender = Arc::new(Mutex::new(Some(sender)));
        let send = move |sender: &Mutex<Option<oneshot::Sender<_>>>, outcome| {
            if let Some(sender) = sender.lock().take() {
                // The caller may no longer wait.
                drop(sender.send(outcome));
            }
        };

        let (pool, watchdog_sender) = (Arc::downgrade(&self.pool), Arc::clone(&sender));
        let on_timeout = Box::new(move |step: Step| {
            if let Some(pool) = pool.upgrade() {
                pool.replace_thread();
            }
            send(&watchdog_sender, Err(Abandoned::TimedOut(step)));
        });
        self.watchdog.watch(&job, min_timeout, on_timeout);

        let span = tracing::Span::current();
        self.pool.submit(Box::new(move || {
            let _in_span = span.entered();
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&job))).map_err(|_| {
                tracing::error!("a blocking job panicked; this is a bug of the agent");
                Abandoned::Died
            });
            // The caller of an abandoned job gets the timeout from the watchdog, not this outcome.
            let abandoned = job.is_abandoned();
            if !abandoned {
                send(&sender, outcome);
            }
            abandoned
        }));
        // If no thread can be started, the task is dropped with the sender.
        outcome.await.unwrap_or(Err(Abandoned::Died))
    }

    /// Runs work that nobody waits for and that calls no plugin.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.pool.submit(Box::new(|| {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("background work panicked; this is a bug of the agent");
            }
            false
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
        Self { current: Mutex::default() }
    }

    /// Runs one plugin call with a timeout.
    ///
    /// # Errors
    /// [`Cancelled`] when the job was abandoned before this step; the call did not run.
    pub fn step<T>(
        &self,
        plugin: &Arc<str>,
        method: &'static str,
        timeout: Duration,
        call: impl FnOnce() -> T,
    ) -> Result<T, Cancelled> {
        let until = Instant::now() + timeout;
        {
            let mut current = self.current.lock();
            if current.abandoned {
                return Err(Cancelled);
            }
            current.step = Some(Step { plugin: Arc::clone(plugin), method, timeout, until });
        }
        let value = call();
        self.current.lock().step = None;
        Ok(value)
    }

    /// Whether the job was abandoned, and nobody waits for its outcome.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.current.lock().abandoned
    }

    fn check(&self) -> JobState {
        let mut current = self.current.lock();
        match current.step.clone() {
            None => JobState::Idle,
            Some(step) if step.until <= Instant::now() => {
                current.abandoned = true;
                JobState::TimedOut(step)
            }
            Some(step) => JobState::Until(step.until),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const NEVER: Duration = Duration::from_secs(3600);

    fn pool(most: usize) -> BlockingPool {
        BlockingPool::new(NonZeroUsize::new(most).unwrap())
    }

    #[tokio::test]
    async fn an_errand_brings_back_what_its_steps_made() {
        let name: Arc<str> = "p".into();
        let pool = pool(2);
        let sum = pool.run(NEVER, move |job| {
            (1..=3).map(|n| job.step(&name, "count", NEVER, || n).unwrap()).sum::<i32>()
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
                job.step(&name, "prepare", SOON, || held.recv()).unwrap().unwrap_err();
                tell.send(job.step(&name, "isolate", SOON, || ())).unwrap();
            })
            .await;
        assert!(matches!(outcome, Err(Abandoned::TimedOut(step)) if &*step.plugin == "slow"));

        // Its place was given away: another errand runs in a pool of one.
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
                job.step(&name, "prepare", SOON, || held.recv()).map(drop)
            });
            assert!(matches!(late.await, Err(Abandoned::TimedOut(_))));
            drop(release);
            // Closed when the thread is done with it.
            told.recv().unwrap_err();
        }
        // There is still only room for one at a time.
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
    async fn an_errand_whose_waiter_goes_away_is_watched_on() {
        let (release, held) = mpsc::channel::<()>();
        let name: Arc<str> = "slow".into();
        let pool = pool(1);
        let (begun, began) = oneshot::channel();
        let work = pool.run(SOON, move |job| {
            job.step(&name, "usage", SOON, || {
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
    async fn a_panic_ends_the_errand_and_not_the_pool() {
        let pool = pool(1);
        let died = pool.run(NEVER, |_| -> () { panic!("deliberate") }).await;
        assert!(matches!(died, Err(Abandoned::Died)));
        assert_eq!(pool.run(NEVER, |_| 1).await.unwrap(), 1);
    }
}
