//! The instance of a plugin, and whether it is called.
//!
//! ```text
//!            panic                    third panic
//!    Ok ───────────────▶ restarted ───────────────▶ Quarantined ─ only cleanup is still called
//!    │                      │
//!    │ recover failed       │ create or recover failed
//!    └──────────────────────┴──────────▶ OutOfService ─ only cleanup is still called
//! ```
//!
//! Calls for different containers overlap. When one of them panics, the instance is poisoned; a call that a
//! poisoned instance rejected did not run and is repeated on the next instance.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::placement::Instance;
use crate::events::{EventKind, Events, PluginChange};

/// A plugin is quarantined at this number of panics.
const MAX_PANICS: u64 = 3;

/// Whether a plugin is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is.
    Ok,
    /// It panicked too often; only `cleanup` is called.
    Quarantined(String),
    /// It could not be restarted or failed to recover; only `cleanup` is called.
    OutOfService(String),
}

/// The current instance of a plugin and its health.
pub(super) struct Lifecycle {
    instance: RwLock<Arc<dyn Instance>>,
    /// Whether a thread is restarting the plugin; the others wait for it.
    restarting: Mutex<bool>,
    restarted: Condvar,
    condition: Mutex<Condition>,
    plugin: Arc<str>,
    /// Where changes are reported.
    events: Events,
}

struct Condition {
    health: Health,
    panics: u64,
}

impl Lifecycle {
    /// Of a plugin that was loaded in a version.
    pub(super) fn new(instance: Box<dyn Instance>, plugin: Arc<str>, version: &str, events: Events) -> Self {
        let this = Self {
            instance: RwLock::new(instance.into()),
            restarting: Mutex::new(false),
            restarted: Condvar::new(),
            condition: Mutex::new(Condition { health: Health::Ok, panics: 0 }),
            plugin,
            events,
        };
        this.report(PluginChange::Loaded, format!("version {version}"));
        this
    }

    fn report(&self, change: PluginChange, message: String) {
        self.events.record(EventKind::Plugin { plugin: Arc::clone(&self.plugin), change, message });
    }

    pub(super) fn instance(&self) -> Arc<dyn Instance> {
        Arc::clone(&self.instance.read())
    }

    pub(super) fn health(&self) -> Health {
        self.condition.lock().health.clone()
    }

    pub(super) fn disable(&self, reason: String) {
        self.condition.lock().health = Health::OutOfService(reason.clone());
        self.report(PluginChange::OutOfService, reason);
    }

    /// Quarantines the plugin if it has panicked too often.
    pub(super) fn count_panic(&self, description: &str) {
        let mut condition = self.condition.lock();
        condition.panics += 1;
        self.report(PluginChange::Panicked, description.to_owned());
        if condition.panics >= MAX_PANICS {
            let reason = format!("it panicked {} times, last: {description}", condition.panics);
            condition.health = Health::Quarantined(reason.clone());
            if condition.panics == MAX_PANICS {
                self.report(PluginChange::Quarantined, reason);
            }
        }
    }

    /// The restart, if it is up to this thread. Waits while another thread restarts the plugin; if that takes too long,
    /// the call fails like any other on a poisoned instance.
    pub(super) fn claim_restart(
        &self,
        panicked: &Arc<dyn Instance>,
        timeout: Duration,
    ) -> Option<Restart<'_>> {
        let mut restarting = self.restarting.lock();
        self.restarted.wait_while_for(&mut restarting, |restarting| *restarting, timeout);
        if *restarting || !Arc::ptr_eq(panicked, &self.instance()) {
            return None;
        }
        *restarting = true;
        Some(Restart(self))
    }
}

/// A restart in progress. It ends when this is dropped.
pub(super) struct Restart<'a>(&'a Lifecycle);

impl Restart<'_> {
    /// Calls go to the new instance from now on.
    pub(super) fn replace(&self, instance: Arc<dyn Instance>) {
        *self.0.instance.write() = instance;
        if self.0.health() == Health::Ok {
            self.0.report(PluginChange::Restarted, String::new());
        }
    }
}

impl Drop for Restart<'_> {
    fn drop(&mut self) {
        *self.0.restarting.lock() = false;
        self.0.restarted.notify_all();
    }
}
