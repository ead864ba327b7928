//! Health of a plugin and its restart after a panic.
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
use std::sync::atomic::Ordering;

use cofferdam_plugin_model::{Method, RecoverReply, Verdict};
use parking_lot::{Condvar, Mutex, RwLock};

use super::error::{CallError, in_one_line};
use super::placement::{Failure, FailureKind, Instance, InvokeError};
use super::plugin::Plugin;
use super::recoverer::Recoverer;
use crate::blocking::{Cancelled, Job};

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
}

struct Condition {
    health: Health,
    panics: u64,
}

impl Lifecycle {
    pub(super) fn new(instance: Box<dyn Instance>) -> Self {
        Self {
            instance: RwLock::new(instance.into()),
            restarting: Mutex::new(false),
            restarted: Condvar::new(),
            condition: Mutex::new(Condition { health: Health::Ok, panics: 0 }),
        }
    }

    pub(super) fn instance(&self) -> Arc<dyn Instance> {
        Arc::clone(&self.instance.read())
    }
}

impl Plugin {
    /// Whether the plugin is called.
    #[must_use]
    pub fn health(&self) -> Health {
        self.lifecycle.condition.lock().health.clone()
    }

    /// Takes the plugin out of service.
    pub fn disable(&self, reason: String) {
        self.lifecycle.condition.lock().health = Health::OutOfService(reason);
    }

    /// `cleanup` is always called: what a plugin did must be undone, whatever its health.
    pub(super) fn check_health(&self, method: Method) -> Result<(), CallError> {
        if method == Method::Cleanup {
            return Ok(());
        }
        let (state, reason) = match self.health() {
            Health::Ok => return Ok(()),
            Health::Quarantined(reason) => ("quarantined", reason),
            Health::OutOfService(reason) => ("out of service", reason),
        };
        Err(CallError::Unavailable { plugin: self.name().to_string(), method, state, reason })
    }

    /// Turns a failure into an error. After a panic the plugin is restarted first.
    pub(super) fn handle_failure(
        &self,
        job: &Job,
        recoverer: &dyn Recoverer,
        method: Method,
        instance: &Arc<dyn Instance>,
        failure: &Failure,
    ) -> CallError {
        let plugin = self.name().to_string();
        let reason = in_one_line(&failure.message);
        if failure.kind != FailureKind::Panicked {
            return CallError::Refused { plugin, method, reason, retryable: failure.retryable };
        }
        self.counters(method).panics.fetch_add(1, Ordering::Relaxed);
        self.count_panic(method, failure);
        // A panic in `recover` would repeat itself; the caller decides what follows.
        if method != Method::Recover {
            self.restart(job, recoverer, instance);
        }
        let aftermath = self.aftermath(method, instance);
        CallError::Panicked { plugin, method, reason, location: failure.location.clone(), aftermath }
    }

    fn count_panic(&self, method: Method, failure: &Failure) {
        let description = failure.describe();
        tracing::error!(plugin = %self.name(), %method, "{description}");
        let mut condition = self.lifecycle.condition.lock();
        condition.panics += 1;
        if condition.panics >= MAX_PANICS {
            let reason = format!("it panicked {} times, last: {description}", condition.panics);
            condition.health = Health::Quarantined(reason);
        }
    }

    /// State of the plugin after a panic, as part of a sentence.
    fn aftermath(&self, method: Method, panicked: &Arc<dyn Instance>) -> String {
        match self.health() {
            Health::Ok if method == Method::Recover => "it is no longer called".into(),
            Health::Ok if Arc::ptr_eq(panicked, &self.lifecycle.instance()) => {
                "it will be restarted before its next call".into()
            }
            Health::Ok => "it was restarted and has recovered its containers".into(),
            Health::Quarantined(_) => "it panicked too often and is quarantined".into(),
            Health::OutOfService(reason) => format!("it is out of service: {reason}"),
        }
    }

    /// Replaces an instance that panicked by a new one that has recovered its containers, unless another thread
    /// already has.
    pub(super) fn restart(&self, job: &Job, recoverer: &dyn Recoverer, panicked: &Arc<dyn Instance>) {
        if !self.claim_restart(panicked) {
            return;
        }
        match self.create_instance(job) {
            Ok(Ok(instance)) => {
                let instance: Arc<dyn Instance> = instance.into();
                // A quarantined plugin is restarted for `cleanup` alone, which needs no recovery; `recover` may
                // be what it panics in.
                if self.health() == Health::Ok
                    && let Err(error) = self.recover_instance(&instance, job, recoverer)
                {
                    self.disable(format!("it did not recover after a panic: {error}"));
                }
                *self.lifecycle.instance.write() = instance;
            }
            Ok(Err(failure)) => {
                self.disable(format!("it could not be restarted after a panic: {}", failure.describe()));
            }
            // The next call finds the instance poisoned and tries again.
            Err(Cancelled) => {}
        }
        *self.lifecycle.restarting.lock() = false;
        self.lifecycle.restarted.notify_all();
    }

    /// Whether this thread has to restart the plugin. Waits while another thread does; if that takes too long, the
    /// call fails like any other on a poisoned instance.
    fn claim_restart(&self, panicked: &Arc<dyn Instance>) -> bool {
        let timeout = self.timeout(Method::Create) + self.timeout(Method::Recover);
        let mut restarting = self.lifecycle.restarting.lock();
        self.lifecycle.restarted.wait_while_for(&mut restarting, |restarting| *restarting, timeout);
        if *restarting || !Arc::ptr_eq(panicked, &self.lifecycle.instance()) {
            return false;
        }
        *restarting = true;
        true
    }

    /// Calls `recover` on a new instance before anybody else can call it.
    fn recover_instance(
        &self,
        instance: &Arc<dyn Instance>,
        job: &Job,
        recoverer: &dyn Recoverer,
    ) -> Result<(), CallError> {
        const METHOD: Method = Method::Recover;
        if !self.implements(METHOD) {
            return Ok(());
        }
        let request = self.encode(METHOD, &recoverer.request(self.name()))?;
        self.counters(METHOD).calls.fetch_add(1, Ordering::Relaxed);
        let plugin = self.name().to_string();
        let response = match self.invoke_on(job, &**instance, METHOD, "", &request, &[]) {
            Ok(Ok(response)) => response,
            Ok(Err(InvokeError::Failure(failure))) => {
                self.counters(METHOD).failures.fetch_add(1, Ordering::Relaxed);
                return Err(self.handle_failure(job, recoverer, METHOD, instance, &failure));
            }
            Ok(Err(InvokeError::Reply(reason))) => {
                return Err(CallError::Malformed { plugin, method: METHOD, reason });
            }
            Err(Cancelled) => return Err(CallError::Cancelled { plugin, method: METHOD }),
        };
        self.apply_recovery(recoverer, self.decode(METHOD, &response)?);
        Ok(())
    }

    /// Calls `recover` and stores the verdicts.
    ///
    /// # Errors
    /// [`CallError`] when the plugin did not recover.
    pub fn recover(&self, job: &Job, recoverer: &dyn Recoverer) -> Result<(), CallError> {
        if !self.implements(Method::Recover) {
            return Ok(());
        }
        let request = recoverer.request(self.name());
        let reply: RecoverReply = self.call(job, recoverer, Method::Recover, "", &request)?;
        self.apply_recovery(recoverer, reply);
        Ok(())
    }

    fn apply_recovery(&self, recoverer: &dyn Recoverer, reply: RecoverReply) {
        for (container, verdict) in &reply.verdicts {
            if let Verdict::Refused { reason } = verdict {
                tracing::warn!(plugin = %self.name(), %container, "running container refused: {reason}");
            }
        }
        recoverer.apply_recovery(self.name(), reply);
    }
}
