//! Who looks when a step may be late.
//!
//! One thread sleeps until the earliest moment at which any errand can have a late step. Errands that are over by
//! then are dropped from its list; the others are looked at, and come back onto it. So an errand costs an entry in a
//! list, and wakes nobody as long as the watchdog is to wake up no later anyway.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Errand, Look, Step, lock};

/// Who looks when a step may be late.
#[derive(Default)]
pub(super) struct Watchdog(Arc<Kennel>);

#[derive(Default)]
struct Kennel {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    watched: BinaryHeap<Reverse<Watched>>,
    /// When the thread wakes up by itself; `None` for not at all.
    wakes: Option<Instant>,
    running: bool,
    closed: bool,
}

/// What to do with a late step.
type OnLate = Box<dyn FnOnce(Step) + Send>;

struct Watched {
    look: Instant,
    patience: Duration,
    errand: Weak<Errand>,
    on_late: OnLate,
}

impl Watchdog {
    /// Watches over an errand for as long as it lives. No step of it has less than `patience`.
    pub(super) fn watch(&self, errand: &Arc<Errand>, patience: Duration, on_late: OnLate) {
        let look = Instant::now() + patience;
        let mut state = lock(&self.0.state);
        state.watched.push(Reverse(Watched { look, patience, errand: Arc::downgrade(errand), on_late }));
        if !state.running {
            let kennel = Arc::clone(&self.0);
            match std::thread::Builder::new().name("watchdog".into()).spawn(move || kennel.patrol()) {
                Ok(_) => state.running = true,
                Err(error) => tracing::error!(%error, "cannot start a thread; late calls are not noticed"),
            }
        } else if state.wakes.is_none_or(|wakes| look < wakes) {
            self.0.bell.notify_one();
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.bell.notify_one();
    }
}

impl Kennel {
    fn patrol(&self) {
        let mut state = lock(&self.state);
        while !state.closed {
            let now = Instant::now();
            let mut late = Vec::new();
            while state.watched.peek().is_some_and(|Reverse(next)| next.look <= now) {
                let Some(Reverse(mut watched)) = state.watched.pop() else { break };
                // Whoever works on it holds it.
                let Some(errand) = watched.errand.upgrade() else { continue };
                watched.look = match errand.look() {
                    Look::Idle => now + watched.patience,
                    Look::Until(until) => until,
                    Look::Late(step) => {
                        late.push((watched.on_late, step));
                        continue;
                    }
                };
                state.watched.push(Reverse(watched));
            }
            if !late.is_empty() {
                drop(state);
                late.into_iter().for_each(|(on_late, step)| on_late(step));
                state = lock(&self.state);
                continue;
            }
            state.wakes = state.watched.peek().map(|Reverse(next)| next.look);
            state = match state.wakes {
                Some(wakes) => {
                    let waited = self.bell.wait_timeout(state, wakes.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.bell.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.look == other.look
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
        self.look.cmp(&other.look)
    }
}
