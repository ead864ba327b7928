//! A plugin as the rest of the agent knows it.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_plugin_model::{Kind, Manifest, Method, Methods, StateReply};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::counters::Counters;
use super::error::CallError;
use super::in_flight::InFlight;
use super::lifecycle::{Health, Lifecycle};
use super::placement::{Failure, FailureKind, Instance, Invocation, InvokeError, Placement, Response};
use super::recoverer::{Durability, Recoverer};
use super::reply::limited;
use super::services::{LostOutput, Services};
use crate::blocking::{Cancelled, Job};
use crate::config::{FailPolicy, PluginConfig};
use crate::error_chain;
use crate::model::view::{CallInProgress, LostOutputView, PluginView};

/// A plugin of the chain.
pub struct Plugin {
    pub(super) name: Arc<str>,
    pub(super) manifest: Manifest,
    pub(super) file: PathBuf,
    pub(super) sha256: String,
    pub(super) config: PluginConfig,
    /// Encoded `CreateRequest`.
    pub(super) request: Vec<u8>,
    pub(super) placement: Box<dyn Placement>,
    pub(super) services: Arc<Services>,
    pub(super) lifecycle: Lifecycle,
    pub(super) counters: [Counters; Method::ALL.len()],
    pub(super) in_flight: InFlight,
}

impl Plugin {
    /// The name in the chain.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The manifest in the plugin's file.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The plugin's file, with symbolic links resolved.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What happens to a launch when the plugin fails.
    #[must_use]
    pub fn policy(&self) -> FailPolicy {
        self.config.policy
    }

    /// Timeout of a method.
    #[must_use]
    pub fn timeout(&self, method: Method) -> Duration {
        self.config.timeout(method)
    }

    /// The shortest timeout of any step that a call may consist of: after a panic, the plugin is restarted and
    /// recovers.
    #[must_use]
    pub fn min_timeout(&self, method: Method) -> Duration {
        let steps = [method, Method::Create, Method::Recover];
        steps.into_iter().map(|step| self.timeout(step)).min().unwrap_or(Duration::ZERO)
    }

    /// Whether the plugin has a method. Others are never called.
    #[must_use]
    pub fn implements(&self, method: Method) -> bool {
        self.manifest.methods.contains(method)
    }

    /// Calls a method with an encoded request, as a step of a job. After a panic, the plugin has been restarted
    /// when this returns.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call_encoded(
        &self,
        job: &Job,
        recoverer: &dyn Recoverer,
        method: Method,
        container: &str,
        request: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Response, CallError> {
        self.call_with(job, recoverer, method, container, || Ok(request), descriptors)
    }

    /// Like [`Self::call_encoded`], with a request that is encoded when no other call about the container is in
    /// progress: an earlier one may have left a state.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call_with<R: AsRef<[u8]>>(
        &self,
        job: &Job,
        recoverer: &dyn Recoverer,
        method: Method,
        container: &str,
        request: impl FnOnce() -> Result<R, CallError>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Response, CallError> {
        self.check_health(method)?;
        // Released on this thread when the call has returned, even if the job was abandoned.
        let _claim = self.in_flight.claim(&self.name, container, method, self.timeout(method))?;
        let _span = tracing::info_span!("call", plugin = %self.name, %method, container).entered();
        let request = request()?;
        self.counters(method).calls.fetch_add(1, Ordering::Relaxed);
        let invoke_on = |instance: &Arc<dyn Instance>| {
            self.invoke_on(job, &**instance, method, container, request.as_ref(), descriptors)
        };
        let mut instance = self.lifecycle.instance();
        let mut outcome = invoke_on(&instance);
        if matches!(&outcome, Ok(Err(InvokeError::Failure(Failure { kind: FailureKind::Poisoned, .. })))) {
            self.restart(job, recoverer, &instance);
            instance = self.lifecycle.instance();
            self.check_health(method)?;
            outcome = invoke_on(&instance);
        }
        let Ok(outcome) = outcome else {
            return Err(CallError::Cancelled { plugin: self.name.to_string(), method });
        };
        outcome.map_err(|error| {
            self.counters(method).failures.fetch_add(1, Ordering::Relaxed);
            match error {
                InvokeError::Failure(failure) => {
                    self.keep_state_of_failure(recoverer, method, container, &failure);
                    self.handle_failure(job, recoverer, method, &instance, &failure)
                }
                InvokeError::Reply(reason) => {
                    CallError::Malformed { plugin: self.name.to_string(), method, reason }
                }
            }
        })
    }

    /// Keeps the state that came with a failure: what `cleanup` needs to undo a call that failed half-way.
    fn keep_state_of_failure(
        &self,
        recoverer: &dyn Recoverer,
        method: Method,
        container: &str,
        failure: &Failure,
    ) {
        if failure.payload.is_empty() {
            return;
        }
        let kept = match serde_json::from_slice::<StateReply>(&failure.payload) {
            Ok(StateReply { state: None, .. }) => return,
            Ok(StateReply { state: Some(state), .. }) => recoverer
                .keep_state(&self.name, container, state, Durability::Immediate)
                .map_err(|error| error_chain::describe(&error)),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = kept {
            tracing::error!(plugin = %self.name, %method, container, "the state of a failed call is lost: {error}");
        }
    }

    /// Calls a method as a step of a job.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<T: DeserializeOwned + Default>(
        &self,
        job: &Job,
        recoverer: &dyn Recoverer,
        method: Method,
        container: &str,
        request: &impl Serialize,
    ) -> Result<T, CallError> {
        let request = self.encode(method, request)?;
        let response = self.call_encoded(job, recoverer, method, container, &request, &[])?;
        self.decode(method, &response)
    }

    /// The calls about containers that are in progress.
    pub fn calls_in_progress(&self) -> impl Iterator<Item = CallInProgress> + use<'_> {
        self.in_flight.list().into_iter().map(|(container, method, since)| CallInProgress {
            plugin: self.name.to_string(),
            method: method.to_string(),
            container: container.into(),
            seconds: since.as_secs_f64(),
        })
    }

    /// Waits until the plugin can be called about a container: no call about it is in progress.
    pub async fn callable(&self, container: &str) {
        self.in_flight.claimable(container).await;
    }

    /// Calls a method of one instance, with the method's timeout.
    pub(super) fn invoke_on(
        &self,
        job: &Job,
        instance: &dyn Instance,
        method: Method,
        container: &str,
        request: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Result<Response, InvokeError>, Cancelled> {
        let timeout = self.timeout(method);
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let deadline_unix_ms = unix_ms().saturating_add(millis);
        let started = Instant::now();
        let outcome = job.step(&self.name, method, container, timeout, || {
            limited(instance.invoke(Invocation { method, container, deadline_unix_ms, request, descriptors }))
        });
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters(method).nanos.fetch_add(nanos, Ordering::Relaxed);
        outcome
    }

    /// Creates an instance, as a step of a job.
    pub(super) fn create_instance(&self, job: &Job) -> Result<Result<Box<dyn Instance>, Failure>, Cancelled> {
        let timeout = self.timeout(Method::Create);
        job.step(&self.name, Method::Create, "", timeout, || self.placement.create(&self.request))
    }

    /// Encodes a request.
    ///
    /// # Errors
    /// [`CallError::Malformed`].
    pub fn encode(&self, method: Method, request: &impl Serialize) -> Result<Vec<u8>, CallError> {
        serde_json::to_vec(request).map_err(|error| self.malformed(method, &error))
    }

    /// Decodes a reply.
    ///
    /// # Errors
    /// [`CallError::Malformed`].
    pub fn decode<T: DeserializeOwned + Default>(
        &self,
        method: Method,
        response: &Response,
    ) -> Result<T, CallError> {
        if response.payload.is_empty() {
            return Ok(T::default());
        }
        serde_json::from_slice(&response.payload).map_err(|error| self.malformed(method, &error))
    }

    /// Counts a call that timed out.
    pub fn count_timeout(&self, method: Method) {
        self.counters(method).timeouts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that failed because of what it did to its thread.
    pub fn count_failure(&self, method: Method) {
        self.counters(method).failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The plugin as the API shows it.
    #[must_use]
    pub fn view(&self) -> PluginView {
        let (health, reason) = match self.health() {
            Health::Ok => ("ok", None),
            Health::Quarantined(reason) => ("quarantined", Some(reason)),
            Health::OutOfService(reason) => ("out of service", Some(reason)),
        };
        let manifest = &self.manifest;
        let calls = Method::ALL.into_iter().filter_map(|method| {
            let count = self.counters(method).read();
            (count.calls > 0).then(|| (method.name().to_owned(), count))
        });
        let is_logger = manifest.kind == Kind::Logger;
        let lost_output = is_logger.then(|| {
            let LostOutput { stdout, stderr } = self.services.lost_output(&self.name);
            LostOutputView { stdout, stderr }
        });
        PluginView {
            name: manifest.name.clone(),
            kind: manifest.kind.to_string(),
            version: manifest.version.to_string(),
            api: manifest.api.to_string(),
            description: manifest.description.clone(),
            file: self.file.clone(),
            sha256: self.sha256.clone(),
            methods: <Methods as Into<Vec<String>>>::into(manifest.methods),
            nesting: manifest.nesting,
            standalone: manifest.standalone,
            health: health.to_owned(),
            health_reason: reason,
            interrupted_calls: Vec::new(),
            calls: calls.collect(),
            lost_output,
        }
    }

    /// Counts output that this logger should have received, and has not. `stream` is `stdout` or `stderr`.
    pub fn count_lost_output(&self, stream: &'static str, bytes: u64) {
        self.services.count_unreceived(&self.name, stream, bytes);
    }

    pub(super) fn counters(&self, method: Method) -> &Counters {
        &self.counters[method as usize]
    }

    fn malformed(&self, method: Method, error: &serde_json::Error) -> CallError {
        CallError::Malformed { plugin: self.name.to_string(), method, reason: error.to_string() }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
