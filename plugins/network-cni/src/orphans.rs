//! Networks of containers that the agent does not know, which could not be released when it started: released later, by
//! threads that try again with growing intervals and end with the last of them. One that hangs delays nobody but a container
//! of its id.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_plugin_api::Deadline;
use cofferdam_plugin_api::prelude::*;

use crate::attach::{Attacher, Failures};
use crate::networks::Networks;
use crate::store::Store;

const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(60);

/// Most containers whose networks are released at the same time.
const MAX_THREADS: usize = 8;

/// What the thread needs.
pub struct Shared {
    pub networks: Option<Networks>,
    pub store: Store,
    pub failures: Failures,
    pub timeout: Duration,
    pending: Mutex<Pending>,
    changed: Condvar,
    /// Containers whose networks are being released.
    busy: Mutex<BTreeSet<String>>,
    released: Condvar,
}

#[derive(Default)]
struct Pending {
    ids: Vec<String>,
    is_stopped: bool,
}

impl Shared {
    pub fn new(networks: Option<Networks>, store: Store, timeout: Duration) -> Self {
        Self {
            networks,
            store,
            failures: Failures::default(),
            timeout,
            pending: Mutex::default(),
            changed: Condvar::new(),
            busy: Mutex::default(),
            released: Condvar::new(),
        }
    }

    /// Releases these containers later.
    pub fn release_later(self: &Arc<Self>, ids: Vec<String>) -> Result<()> {
        lock(&self.pending).ids.extend(ids);
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("network/cni".to_owned());
        thread.spawn(move || shared.run()).context("cannot start a thread")?;
        Ok(())
    }

    /// Releases the networks of a container: one that ends, or an unknown one, as a container of its id is launched.
    pub fn release_now(&self, id: &str, attacher: &Attacher<'_>) -> Result<()> {
        let _turn = self.turn(id, attacher.remaining())?;
        attacher.delete(id)?;
        lock(&self.pending).ids.retain(|pending| pending != id);
        Ok(())
    }

    /// Waits until nobody else releases the networks of a container.
    fn turn(&self, id: &str, timeout: Duration) -> Result<Turn<'_>> {
        let end = Instant::now().checked_add(timeout);
        let mut busy = lock(&self.busy);
        while !busy.insert(id.to_owned()) {
            let left = end.map_or(LAST_INTERVAL, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::new("its networks are being released, which takes long").retryable());
            }
            busy = self.released.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Turn { shared: self, id: id.to_owned() })
    }

    /// Ends the thread before its next attempt.
    pub fn stop(&self) {
        lock(&self.pending).is_stopped = true;
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut interval = FIRST_INTERVAL;
        while self.wait(interval) {
            interval = (interval * 2).min(LAST_INTERVAL);
            let ids: VecDeque<String> = lock(&self.pending).ids.iter().cloned().collect();
            let threads = ids.len().min(MAX_THREADS);
            let ids = Mutex::new(ids);
            let next = || lock(&ids).pop_front().filter(|_| !lock(&self.pending).is_stopped);
            let release = || {
                while let Some(id) = next() {
                    self.release(&id);
                }
            };
            std::thread::scope(|scope| {
                // Without a thread, this one does it.
                for _ in 1..threads {
                    let thread = std::thread::Builder::new().name("network/cni".to_owned());
                    drop(thread.spawn_scoped(scope, release));
                }
                release();
            });
        }
    }

    /// Returns whether there is something to do.
    fn wait(&self, interval: Duration) -> bool {
        let pending = lock(&self.pending);
        let is_over = |pending: &mut Pending| !pending.is_stopped && !pending.ids.is_empty();
        let waited = self.changed.wait_timeout_while(pending, interval, is_over);
        let (pending, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !pending.is_stopped && !pending.ids.is_empty()
    }

    fn release(&self, id: &str) {
        // Otherwise a container of that id is being launched.
        let Ok(_turn) = self.turn(id, Duration::ZERO) else { return };
        // It may have been launched meanwhile.
        if !lock(&self.pending).ids.iter().any(|pending| pending == id) {
            return;
        }
        let attacher = self.attacher(None);
        match attacher.delete(id) {
            Ok(()) => {
                info!(container = id, "released the networks of an unknown container");
                lock(&self.pending).ids.retain(|pending| pending != id);
            }
            Err(error) => {
                warn!(container = id, "cannot release the networks of an unknown container: {error}");
            }
        }
    }

    pub fn attacher(&self, deadline: Option<Deadline>) -> Attacher<'_> {
        Attacher {
            networks: self.networks.as_ref(),
            store: &self.store,
            failures: &self.failures,
            timeout: self.timeout,
            end: None,
            deadline,
        }
    }
}

/// The only one to release the networks of a container, until this is dropped.
struct Turn<'a> {
    shared: &'a Shared,
    id: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.shared.busy).remove(&self.id);
        self.shared.released.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves nothing half done in what these protect.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
