//! Threads for work that may block, and the patience to leave one behind.
//!
//! Plugin code and the kernel may block for as long as they like, so neither runs on a thread of the
//! runtime. An errand is a closure on a thread of this pool; inside it, every plugin call is a [`Step`]
//! with a deadline. Whoever waits for the errand looks at the step in hand when a deadline may have
//! passed, and no earlier, so a call that answers in time pays for one hop and nothing else.
//!
//! A thread cannot be killed. When a step is late, the errand is abandoned: its thread stops before the
//! next step whenever it comes back, its place in the pool is given to a new thread, and the waiter gets
//! the step that was late. Somebody always looks: when whoever waits goes away, as a client may at any
//! time, the errand is watched on, or a thread that never comes back would never be replaced.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(10);

/// The pool.
#[derive(Clone)]
pub struct Errands(Arc<Pool>);

struct Pool {
    state: Mutex<State>,
    work: Condvar,
    most: usize,
}

/// Work for a thread; answers whether it was abandoned meanwhile.
type Job = Box<dyn FnOnce() -> bool + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    idle: usize,
    /// Threads that work or wait for work; the abandoned ones do not count.
    threads: usize,
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
        Self(Arc::new(Pool { state: Mutex::default(), work: Condvar::new(), most: most.get() }))
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
        let (done, outcome) = oneshot::channel();
        let inside = Arc::clone(&errand);
        let span = tracing::Span::current();
        self.0.submit(Box::new(move || {
            let _in_span = span.entered();
            // Nobody may be listening any more; then the result has no taker.
            drop(done.send(work(&inside)));
            inside.is_abandoned()
        }));
        Waiter(Some(Watch { pool: Arc::clone(&self.0), errand, outcome, patience })).wait().await
    }
}

/// Looks after one errand.
struct Watch<T> {
    pool: Arc<Pool>,
    errand: Arc<Errand>,
    outcome: oneshot::Receiver<T>,
    patience: Duration,
}

impl<T> Watch<T> {
    async fn until_done(&mut self) -> Result<T, Abandoned> {
        let mut check = tokio::time::Instant::now() + self.patience;
        loop {
            match tokio::time::timeout_at(check, &mut self.outcome).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(_)) => return Err(Abandoned::Died),
                Err(_) => match self.errand.abandon_if_late() {
                    Late::Not => check = tokio::time::Instant::now() + self.patience,
                    Late::At(until) => check = until.into(),
                    Late::Now(step) => {
                        self.pool.give_up_on_one();
                        return Err(Abandoned::Late(step));
                    }
                },
            }
        }
    }
}

/// Whoever waits for an errand, and may go away.
struct Waiter<T: Send + 'static>(Option<Watch<T>>);

impl<T: Send + 'static> Waiter<T> {
    async fn wait(mut self) -> Result<T, Abandoned> {
        let Some(watch) = &mut self.0 else { return Err(Abandoned::Died) };
        let outcome = watch.until_done().await;
        self.0 = None;
        outcome
    }
}

impl<T: Send + 'static> Drop for Waiter<T> {
    fn drop(&mut self) {
        if let Some(mut watch) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(abandoned @ Abandoned::Late(_)) = watch.until_done().await {
                    tracing::error!("{abandoned}; its thread is lost, and nobody waited for it");
                }
            });
        }
    }
}

enum Late {
    /// No step is in hand.
    Not,
    /// The step in hand has until then.
    At(Instant),
    /// The step in hand had until now.
    Now(Step),
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

    fn abandon_if_late(&self) -> Late {
        let mut hand = lock(&self.hand);
        match hand.step.clone() {
            None => Late::Not,
            Some(step) if step.until <= Instant::now() => {
                hand.abandoned = true;
                Late::Now(step)
            }
            Some(step) => Late::At(step.until),
        }
    }
}

impl Pool {
    fn submit(self: &Arc<Self>, job: Job) {
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
                // A panic ends the errand with `Died`; the thread is as good as before.
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = lock(&self.state);
                match outcome {
                    // It was given up, and has come back: it counts again.
                    Ok(abandoned) => state.threads += usize::from(abandoned),
                    Err(_) => tracing::error!("an errand panicked; this is a bug of the agent"),
                }
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
    fn give_up_on_one(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        state.threads = state.threads.saturating_sub(1);
        let waiting = !state.queue.is_empty();
        drop(state);
        if waiting {
            self.submit(Box::new(|| false));
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
