//! Volumes without users that could not be released when the agent started: released later, by a thread that tries again with
//! growing intervals and ends with the last of them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_plugin_api::prelude::*;

use crate::volumes::Volumes;

const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Leftovers {
    is_stopped: Mutex<bool>,
    changed: Condvar,
}

impl Leftovers {
    /// Releases these volumes later.
    pub fn release_later(self: &Arc<Self>, volumes: Arc<Volumes>, keys: Vec<String>) -> Result<()> {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("docker/volume".to_owned());
        thread.spawn(move || shared.run(&volumes, keys)).context("cannot start a thread")?;
        Ok(())
    }

    /// Ends the thread before its next attempt.
    pub fn stop(&self) {
        *self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn run(&self, volumes: &Volumes, mut keys: Vec<String>) {
        let mut interval = FIRST_INTERVAL;
        while !keys.is_empty() && self.wait(interval) {
            interval = (interval * 2).min(LAST_INTERVAL);
            keys.retain(|key| match volumes.release_unused(key, volumes.unlimited()) {
                Ok(()) => false,
                Err(error) => {
                    not_released(key, &error);
                    true
                }
            });
        }
    }

    /// Returns whether to go on.
    fn wait(&self, interval: Duration) -> bool {
        let is_stopped = self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is_stopped, interval, |is_stopped| !*is_stopped);
        let (is_stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !*is_stopped
    }
}

pub fn not_released(key: &str, error: &Error) {
    let reason = error.causes().join(": ");
    warn!(
        volume = key,
        reason, "a volume that no container uses any more is not released; this is tried again"
    );
}
