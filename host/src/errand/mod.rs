//! Threads for work that may block, and the patience to leave one behind.
//!
//! Plugin code and the kernel may block for as long as they like, so neither runs on a thread of the
//! runtime. An errand is a closure on a thread of this pool; inside it, every plugin call is a [`Step`]
//! with a deadline. A watchdog looks at the step in hand when a deadline may have passed, and no earlier,
//! so a call that answers in time pays for one hop and nothing else.
//!
//! ```text
//!   run ──▶ pool: a thread works, step by step ──▶ the outcome ─┐
//!     └───▶ watchdog: sleeps until a step may be late ─▶ "late" ─┴─▶ whoever waits, the first of the two
//! ```
//!
//! A thread cannot be killed. When a step is late, the errand is abandoned: its thread stops before the
//! next step whenever it comes back, its place in the pool is given to a new thread, and the waiter gets
//! the step that was late. That happens whether or not somebody waits: a client may go away at any time,
//! and a thread that never comes back must be replaced all the same.

mod pool;
mod watchdog;

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use pool::Pool;
use watchdog::Watchdog;

/// The pool, and who watches over it.
#[derive(Clone)]
pub struct Errands {
    pool: Arc<Pool>,
    watchdog: Arc<Watchdog>,
}

/// An errand, as seen from inside.
pub struct Errand {
    hand: Mutex<Hand>,
}

/// What an errand has in hand. Both are under one lock: an errand is abandoned in the middle of a step, or
/// not at all.
#[derive(Default)]
struct Hand {
    step: Option<Step>,
    abandoned: bool,
}

/// One call inside an errand.
#[derive(Debug, Clone)]
pub struct Step {
    /// Who was called.
    pub plugin: Arc<str>,
    /// What was called.
    pub method: &'static str,
    /// How long it may take.
    pub allowed: Duration,
    until: Instant,
}

/// An errand that was left behind.
#[derive(Debug, thiserror::Error)]
pub enum Abandoned {
    /// A call took too long.
    #[error("`{}` did not answer `{}` within {:?}; the call was abandoned", .0.plugin, .0.method, .0.allowed)]
    Late(Step),
    /// The thread died under it, or there was none.
    #[error("a thread of the agent died while it worked, or could not be started; see the agent's log")]
    Died,
}

/// A step that was not begun because nobody waits for its errand any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NobodyWaits;

impl Errands {
    /// A pool of at most `most` threads that are not abandoned.
    #[must_use]
    pub fn new(most: NonZeroUsize) -> Self {
        Self { pool: Arc::new(Pool::new(most)), watchdog: Arc::new(Watchdog::default()) }
    }

    /// Runs `work` on a thread of the pool.
    ///
    /// `patience` is the shortest deadline of any step in it.
    ///
    /// # Errors
    /// [`Abandoned`] when a step was late, or the work panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(&Errand) -> T + Send + 'static,
    ) -> Result<T, Abandoned> {
        let errand = Arc::new(Errand::unwatched());
        let (answer, outcome) = oneshot::channel();
        // Whoever comes first takes it: the work with its outcome, or the watchdog with bad news.
        let answer = Arc::new(Mutex::new(Some(answer)));
        let tell = move |answer: &Mutex<Option<oneshot::Sender<_>>>, outcome| {
            if let Some(answer) = lock(answer).take() {
                // The waiter may have gone away.
                drop(answer.send(outcome));
            }
        };

        let (pool, late) = (Arc::downgrade(&self.pool), Arc::clone(&answer));
        let on_late = Box::new(move |step: Step| {
            if let Some(pool) = pool.upgrade() {
                pool.give_up_on_one();
            }
            tell(&late, Err(Abandoned::Late(step)));
        });
        self.watchdog.watch(&errand, patience, on_late);

        let span = tracing::Span::current();
        self.pool.submit(Box::new(move || {
            let _in_span = span.entered();
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&errand))).map_err(|_| {
                tracing::error!("an errand panicked; this is a bug of the agent");
                Abandoned::Died
            });
            // What an abandoned errand brings is not what its waiter is to hear: the watchdog tells of the late step.
            let abandoned = errand.is_abandoned();
            if !abandoned {
                tell(&answer, outcome);
            }
            abandoned
        }));
        // Without a thread the job is dropped, and with it the last who could answer but for the watchdog.
        outcome.await.unwrap_or(Err(Abandoned::Died))
    }

    /// Has a thread of the pool do work that nobody waits for, and that calls no plugin.
    pub fn send(&self, work: impl FnOnce() + Send + 'static) {
        self.pool.submit(Box::new(|| {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("work that nobody waits for panicked; this is a bug of the agent");
            }
            false
        }));
    }
}

/// What a look at an errand shows.
enum Look {
    /// No step is in hand.
    Idle,
    /// The step in hand has until then.
    Until(Instant),
    /// The step in hand had until now; the errand is abandoned.
    Late(Step),
}

impl Errand {
    /// An errand that nobody watches, for work that is done where it is asked for.
    #[must_use]
    pub fn unwatched() -> Self {
        Self { hand: Mutex::default() }
    }

    /// Makes one call, under a deadline.
    ///
    /// # Errors
    /// [`NobodyWaits`] when the errand was abandoned before this step; the call was not made.
    pub fn step<T>(
        &self,
        plugin: &Arc<str>,
        method: &'static str,
        allowed: Duration,
        call: impl FnOnce() -> T,
    ) -> Result<T, NobodyWaits> {
        let until = Instant::now() + allowed;
        {
            let mut hand = lock(&self.hand);
            if hand.abandoned {
                return Err(NobodyWaits);
            }
            hand.step = Some(Step { plugin: Arc::clone(plugin), method, allowed, until });
        }
        let value = call();
        lock(&self.hand).step = None;
        Ok(value)
    }

    /// Whether nobody waits for this errand any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        lock(&self.hand).abandoned
    }

    fn look(&self) -> Look {
        let mut hand = lock(&self.hand);
        match hand.step.clone() {
            None => Look::Idle,
            Some(step) if step.until <= Instant::now() => {
                hand.abandoned = true;
                Look::Late(step)
            }
            Some(step) => Look::Until(step.until),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const NEVER: Duration = Duration::from_secs(3600);

    fn pool(most: usize) -> Errands {
        Errands::new(NonZeroUsize::new(most).unwrap())
    }

    #[tokio::test]
    async fn an_errand_brings_back_what_its_steps_made() {
        let name: Arc<str> = "p".into();
        let errands = pool(2);
        let sum = errands.run(NEVER, move |errand| {
            (1..=3).map(|n| errand.step(&name, "count", NEVER, || n).unwrap()).sum::<i32>()
        });
        assert_eq!(sum.await.unwrap(), 6);
    }

    #[tokio::test]
    async fn a_late_step_is_left_behind_and_the_next_one_is_not_begun() {
        let (release, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let name: Arc<str> = "slow".into();
        let errands = pool(1);
        let outcome = errands
            .run(SOON, move |errand| {
                errand.step(&name, "prepare", SOON, || held.recv()).unwrap().unwrap_err();
                tell.send(errand.step(&name, "isolate", SOON, || ())).unwrap();
            })
            .await;
        assert!(matches!(outcome, Err(Abandoned::Late(step)) if &*step.plugin == "slow"));

        // Its place was given away: another errand runs in a pool of one.
        assert_eq!(errands.run(NEVER, |_| 7).await.unwrap(), 7);

        drop(release);
        assert_eq!(told.recv().unwrap(), Err(NobodyWaits));
    }

    #[tokio::test]
    async fn a_thread_that_comes_back_counts_again() {
        let name: Arc<str> = "slow".into();
        let errands = pool(1);
        for _ in 0..4 {
            let (release, held) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel::<()>();
            let name = Arc::clone(&name);
            let late = errands.run(SOON, move |errand| {
                let _tell = tell;
                errand.step(&name, "prepare", SOON, || held.recv()).map(drop)
            });
            assert!(matches!(late.await, Err(Abandoned::Late(_))));
            drop(release);
            // Closed when the thread is done with it.
            told.recv().unwrap_err();
        }
        // There is still only room for one at a time.
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let crowd: Vec<_> = (0..64)
            .map(|_| {
                let (errands, inside, most) = (errands.clone(), Arc::clone(&inside), Arc::clone(&most));
                tokio::spawn(async move {
                    let work = move |_: &Errand| {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    };
                    errands.run(NEVER, work).await.unwrap();
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
        let errands = pool(1);
        let (begun, began) = oneshot::channel();
        let work = errands.run(SOON, move |errand| {
            errand
                .step(&name, "usage", SOON, || {
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
        assert_eq!(errands.run(NEVER, |_| 7).await.unwrap(), 7);
        drop(release);
    }

    #[tokio::test]
    async fn a_panic_ends_the_errand_and_not_the_pool() {
        let errands = pool(1);
        let died = errands.run(NEVER, |_| -> () { panic!("deliberate") }).await;
        assert!(matches!(died, Err(Abandoned::Died)));
        assert_eq!(errands.run(NEVER, |_| 1).await.unwrap(), 1);
    }
}
