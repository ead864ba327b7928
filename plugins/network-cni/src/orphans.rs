//! Networks of containers that the agent does not know, which could not be released when it started: released later, by a
//! thread that tries again with growing intervals and ends with the last of them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_plugin_api::prelude::*;

use crate::attach::Attacher;
use crate::networks::Networks;
use crate::store::Store;

const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(60);

/// What the thread needs.
pub struct Shared {
    pub networks: Option<Networks>,
    pub store: Store,
    pub timeout: Duration,
    pending: Mutex<Pending>,
    changed: Condvar,
    /// Held while a container's networks are released.
    working: Mutex<()>,
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
            timeout,
            pending: Mutex::default(),
            changed: Condvar::new(),
            working: Mutex::default(),
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

    /// Releases what an unknown container has left, as a container of its id is launched.
    pub fn release_now(&self, id: &str, attacher: &Attacher<'_>) -> Result<()> {
        let _working = lock(&self.working);
        attacher.delete(id)?;
        lock(&self.pending).ids.retain(|pending| pending != id);
        Ok(())
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
            let ids = lock(&self.pending).ids.clone();
            for id in ids {
                self.release(&id);
            }
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
        let _working = lock(&self.working);
        // A container of that id may have been launched meanwhile.
        if !lock(&self.pending).ids.iter().any(|pending| pending == id) {
            return;
        }
        let attacher = Attacher {
            networks: self.networks.as_ref(),
            store: &self.store,
            timeout: self.timeout,
            deadline: None,
        };
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
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves nothing half done in what these protect.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
