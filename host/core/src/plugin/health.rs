//! What a failed call means for a plugin: it is restarted after a panic, and no longer called when that does not help.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cofferdam_plugin_model::{Method, RecoverReply, Verdict};

use super::error::{CallError, in_one_line};
use super::lifecycle::Health;
use super::placement::{Failure, FailureKind, Instance, InvokeError};
use super::plugin::Plugin;
use super::recoverer::Recoverer;
use crate::blocking::{Cancelled, Job};

impl Plugin {
    /// Whether the plugin is called.
    #[must_use]
    pub fn health(&self) -> Health {
        self.lifecycle.health()
    }

    /// Takes the plugin out of service.
    pub fn disable(&self, reason: String) {
        self.lifecycle.disable(reason);
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
        match failure.kind {
            FailureKind::Panicked => {}
            FailureKind::Invalid => return CallError::Invalid { plugin, method, reason },
            _ => return CallError::Refused { plugin, method, reason, retryable: failure.retryable },
        }
        self.counters(method).panics.fetch_add(1, Ordering::Relaxed);
        let description = failure.describe();
        tracing::error!(plugin = %self.name(), %method, "{description}");
        self.lifecycle.count_panic(&description);
        // A panic in `recover` would repeat itself; the caller decides what follows.
        if method != Method::Recover {
            self.restart(job, recoverer, instance);
        }
        let aftermath = self.aftermath(method, instance);
        CallError::Panicked { plugin, method, reason, location: failure.location.clone(), aftermath }
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
        let timeout = self.timeout(Method::Create) + self.timeout(Method::Recover);
        let Some(restart) = self.lifecycle.claim_restart(panicked, timeout) else { return };
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
                restart.replace(instance);
            }
            Ok(Err(failure)) => {
                self.disable(format!("it could not be restarted after a panic: {}", failure.describe()));
            }
            // The next call finds the instance poisoned and tries again.
            Err(Cancelled) => {}
        }
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
