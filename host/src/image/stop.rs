//! Tells work on some layers that another has failed.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Whether work has to stop.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn set(&self) {
        *self.is_set.lock() = true;
        self.changed.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        *self.is_set.lock()
    }

    /// Waits for a period, or until work has to stop. Returns whether it has.
    pub(super) fn wait(&self, period: Duration) -> bool {
        let mut is_set = self.is_set.lock();
        self.changed.wait_while_for(&mut is_set, |is_set| !*is_set, period);
        *is_set
    }
}
