//! A plugin as the rest of the house knows it: something that can be called, and that may be unwell.
//!
//! ```text
//!            panic                    third panic
//!    Ok ───────────────▶ made anew ───────────────▶ Quarantined ─ only cleanup is still tried
//!    │                      │
//!    │ recover failed       │ recover failed
//!    └──────────────────────┴──────────▶ OutOfService ─ only cleanup is still tried
//! ```
//!
//! Calls for different containers overlap. When one of them panics, the others are not to notice: a call
//! that finds the instance poisoned was not made, so it is made on the next one.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_plugin_abi::{Failure, ModuleRef};
use cofferdam_plugin_model::{
    CreateRequest, Kind, Manifest, Method, Methods, RecoverReply, RecoverRequest, Verdict,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::instance::{Instance, Reaction, Trouble};
use super::preflight::{Candidate, PreflightError, examine};
use super::store::{Store, StoreError};
use super::{LoadError, load, log};
use crate::config::{FailPolicy, PluginConfig};
use crate::errand::{Errand, NobodyWaits};
use crate::view::{CallCount, PluginView};

/// A plugin that panics this often is not made anew again.
const PANICS_FORGIVEN: u64 = 3;

/// Says which containers a plugin has to be told of when it is made anew, and keeps what it answers.
pub trait Recoverer: Send + Sync {
    /// What `recover` is to be told.
    fn request(&self, plugin: &str) -> RecoverRequest;
    /// What it answered.
    fn settle(&self, plugin: &str, reply: RecoverReply);
}

/// A plugin of this agent.
pub struct Plugin {
    name: Arc<str>,
    manifest: Manifest,
    file: PathBuf,
    sha256: String,
    config: PluginConfig,
    request: Vec<u8>,
    module: ModuleRef,
    instance: RwLock<Arc<Instance>>,
    /// Whether a thread is making it anew; the others wait for that.
    renewing: Mutex<bool>,
    renewed: Condvar,
    condition: Mutex<Condition>,
    counters: [Counters; Method::ALL.len()],
}

struct Condition {
    health: Health,
    panics: u64,
}

/// How a plugin is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Ok,
    /// It panicked too often.
    Quarantined(String),
    /// It could not be made anew, or did not recover.
    OutOfService(String),
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    late: AtomicU64,
    panics: AtomicU64,
    nanos: AtomicU64,
}

/// Why a call did not bring what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The plugin said no.
    #[error("`{plugin}` failed in `{method}`: {reason}")]
    Refused {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// Its words, the causes in order.
        reason: String,
        /// Whether it may do better later.
        retryable: bool,
    },
    /// Its code panicked.
    #[error("`{plugin}` {reason} (at {location}); {aftermath}")]
    Panicked {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// What the panic said.
        reason: String,
        /// Where.
        location: String,
        /// What became of the plugin.
        aftermath: String,
    },
    /// It is not called any more.
    #[error("`{plugin}` is {state}, so `{method}` was not called: {reason}")]
    Unwell {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// `quarantined` or `out of service`.
        state: &'static str,
        /// Why.
        reason: String,
    },
    /// What it answered cannot be read.
    #[error("`{plugin}` answered `{method}` with something this agent cannot read: {reason}")]
    Malformed {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// What is wrong with it.
        reason: String,
    },
    /// It did not answer in time.
    #[error("{reason}")]
    Late {
        /// The plugin.
        plugin: String,
        /// In words.
        reason: String,
    },
    /// The launch or destroy that this call belongs to was given up before it.
    #[error("`{plugin}` was not asked to `{method}`: an earlier call took too long")]
    NotBegun {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
    },
}

impl CallError {
    /// The plugin that did not deliver.
    #[must_use]
    pub fn plugin(&self) -> &str {
        match self {
            Self::Refused { plugin, .. }
            | Self::Panicked { plugin, .. }
            | Self::Unwell { plugin, .. }
            | Self::Malformed { plugin, .. }
            | Self::Late { plugin, .. }
            | Self::NotBegun { plugin, .. } => plugin,
        }
    }
}

/// Why a plugin of the configuration is not in the house.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// Its file is not fit.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// It is not the file the operator meant.
    #[error(
        "plugin file `{path}` has SHA-256 {found}, the configuration wants {wanted}; nothing of it was run"
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it must have.
        wanted: String,
    },
    /// It is of the other kind, or has another name.
    #[error("`{path}` is {found_kind} `{found}`, the configuration names it as {wanted_kind} `{wanted}`")]
    Mistaken {
        /// The file.
        path: PathBuf,
        /// What it is.
        found_kind: Kind,
        /// What it is called.
        found: String,
        /// What it was to be.
        wanted_kind: Kind,
        /// What it was to be called.
        wanted: String,
    },
    /// No private copy could be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It did not want to be made.
    #[error("{kind} `{name}` {version} cannot be made ({place}): {reason}")]
    Create {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// Where the configuration names it.
        place: String,
        /// Its words.
        reason: String,
    },
}

/// What a plugin needs to know of the agent that makes it.
pub struct Premises<'a> {
    /// The agent's runtime directory.
    pub runtime_dir: &'a Path,
    /// The agent's work directory.
    pub work_dir: &'a Path,
    /// Where private copies are kept.
    pub store: &'a Store,
}

impl Plugin {
    /// Checks a plugin file, loads a private copy of it and has it make itself, as a step of an errand.
    ///
    /// # Errors
    /// [`AdmitError`] says who refused and what to do.
    pub fn admit(
        errand: &Errand,
        config: &PluginConfig,
        kind: Kind,
        file: &Path,
        premises: &Premises<'_>,
    ) -> Result<Self, AdmitError> {
        let candidate = examine(file)?;
        check_identity(&candidate, config, kind)?;
        let copy = premises.store.keep(&candidate)?;
        let Candidate { path, manifest, sha256, .. } = candidate;
        let module = load::load(&manifest.name, &copy)?;
        let private = manifest.name.replace('/', "-");
        let request = CreateRequest {
            config: config.table.clone(),
            name: manifest.name.clone(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_directory: premises.runtime_dir.join("isolators").join(&private),
            work_directory: premises.work_dir.join("isolators").join(&private),
        };
        let create_error = |reason: String| AdmitError::Create {
            kind,
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            place: config.place.to_string(),
            reason,
        };
        let request = serde_json::to_vec(&request).map_err(|error| create_error(error.to_string()))?;
        let name: Arc<str> = manifest.name.as_str().into();
        let _span = tracing::info_span!("call", plugin = %name, method = %Method::Create).entered();
        let instance = errand
            .step(&name, Method::Create.name(), config.deadline(Method::Create), || {
                Instance::create(module, kind, log::host_for(&name), &request)
            })
            .map_err(|NobodyWaits| create_error("nobody waits for it any more".into()))?
            .map_err(|failure| create_error(describe(&failure)))?;
        Ok(Self {
            name,
            file: path,
            sha256,
            config: config.clone(),
            request,
            module,
            instance: RwLock::new(Arc::new(instance)),
            renewing: Mutex::new(false),
            renewed: Condvar::new(),
            condition: Mutex::new(Condition { health: Health::Ok, panics: 0 }),
            counters: Default::default(),
            manifest,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What its file says of it.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether a launch fails when it does.
    #[must_use]
    pub fn policy(&self) -> FailPolicy {
        self.config.policy
    }

    /// How long a method may take.
    #[must_use]
    pub fn deadline(&self, method: Method) -> Duration {
        self.config.deadline(method)
    }

    /// The shortest deadline of any step that a call may come to: after a panic, it is made anew and told
    /// of its containers.
    #[must_use]
    pub fn patience(&self, method: Method) -> Duration {
        let steps = [method, Method::Create, Method::Recover];
        steps.into_iter().map(|step| self.deadline(step)).min().unwrap_or(Duration::ZERO)
    }

    /// Whether it has a method; one it does not have costs nothing.
    #[must_use]
    pub fn implements(&self, method: Method) -> bool {
        self.manifest.methods.contains(method)
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        lock(&self.condition).health.clone()
    }

    /// Takes it out of service.
    pub fn retire(&self, reason: String) {
        lock(&self.condition).health = Health::OutOfService(reason);
    }

    /// Calls a method as a step of an errand, with a request that is already written.
    ///
    /// After a panic the plugin has been made anew when this returns.
    ///
    /// # Errors
    /// [`CallError`] says what became of it.
    pub fn call_raw(
        &self,
        errand: &Errand,
        recoverer: &dyn Recoverer,
        method: Method,
        container: &str,
        request: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reaction, CallError> {
        self.check_health(method)?;
        let _span = tracing::info_span!("call", plugin = %self.name, %method, container).entered();
        self.count(method).calls.fetch_add(1, Ordering::Relaxed);
        let attempt = |instance: &Arc<Instance>| {
            self.attempt(errand, instance, method, container, request, descriptors)
        };
        let mut instance = self.instance();
        let mut outcome = attempt(&instance);
        if matches!(&outcome, Ok(Err(Trouble::Failure(failure))) if failure.code == Failure::POISONED) {
            self.renew(errand, recoverer, &instance);
            instance = self.instance();
            self.check_health(method)?;
            outcome = attempt(&instance);
        }
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(NobodyWaits) => {
                return Err(CallError::NotBegun { plugin: self.name.to_string(), method });
            }
        };
        outcome.map_err(|trouble| {
            self.count(method).failures.fetch_add(1, Ordering::Relaxed);
            match trouble {
                Trouble::Failure(failure) => self.explain(errand, recoverer, method, &instance, &failure),
                Trouble::Answer(reason) => {
                    CallError::Malformed { plugin: self.name.to_string(), method, reason }
                }
            }
        })
    }

    fn attempt(
        &self,
        errand: &Errand,
        instance: &Instance,
        method: Method,
        container: &str,
        request: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Result<Reaction, Trouble>, NobodyWaits> {
        let allowed = self.deadline(method);
        let deadline = unix_ms().saturating_add(u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX));
        let started = Instant::now();
        let outcome = errand.step(&self.name, method.name(), allowed, || {
            instance.call(method, container, deadline, request, descriptors)
        });
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.count(method).nanos.fetch_add(nanos, Ordering::Relaxed);
        outcome
    }

    /// The instance that is called now.
    fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls a method as a step of an errand.
    ///
    /// # Errors
    /// [`CallError`] says what became of it.
    pub fn call<T: DeserializeOwned + Default>(
        &self,
        errand: &Errand,
        recoverer: &dyn Recoverer,
        method: Method,
        container: &str,
        request: &impl Serialize,
    ) -> Result<T, CallError> {
        let request = serde_json::to_vec(request).map_err(|error| self.malformed(method, &error))?;
        let reaction = self.call_raw(errand, recoverer, method, container, &request, &[])?;
        self.read(method, &reaction)
    }

    /// Reads what a call brought back.
    ///
    /// # Errors
    /// [`CallError::Malformed`].
    pub fn read<T: DeserializeOwned + Default>(
        &self,
        method: Method,
        reaction: &Reaction,
    ) -> Result<T, CallError> {
        if reaction.payload.is_empty() {
            return Ok(T::default());
        }
        serde_json::from_slice(&reaction.payload).map_err(|error| self.malformed(method, &error))
    }

    /// Notes that a call was given up on.
    pub fn was_late(&self, method: Method) {
        self.count(method).late.fetch_add(1, Ordering::Relaxed);
    }

    /// What the agent shows of it.
    #[must_use]
    pub fn view(&self) -> PluginView {
        let (health, trouble) = match self.health() {
            Health::Ok => ("ok", None),
            Health::Quarantined(reason) => ("quarantined", Some(reason)),
            Health::OutOfService(reason) => ("out of service", Some(reason)),
        };
        let manifest = &self.manifest;
        let calls = Method::ALL.into_iter().filter_map(|method| {
            let count = self.count(method).read();
            (count.calls > 0).then(|| (method.name().to_owned(), count))
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
            trouble,
            calls: calls.collect(),
        }
    }

    /// `cleanup` is always let through: what a plugin did must be undone, even by a plugin that is unwell.
    fn check_health(&self, method: Method) -> Result<(), CallError> {
        if method == Method::Cleanup {
            return Ok(());
        }
        let (state, reason) = match self.health() {
            Health::Ok => return Ok(()),
            Health::Quarantined(reason) => ("quarantined", reason),
            Health::OutOfService(reason) => ("out of service", reason),
        };
        Err(CallError::Unwell { plugin: self.name.to_string(), method, state, reason })
    }

    fn explain(
        &self,
        errand: &Errand,
        recoverer: &dyn Recoverer,
        method: Method,
        instance: &Arc<Instance>,
        failure: &Failure,
    ) -> CallError {
        let plugin = self.name.to_string();
        match failure.code {
            Failure::PANICKED => {
                self.count(method).panics.fetch_add(1, Ordering::Relaxed);
                self.note_panic(method, failure);
                // One that panics in `recover` would do it again; whoever asked decides on it.
                if method != Method::Recover {
                    self.renew(errand, recoverer, instance);
                }
                CallError::Panicked {
                    plugin,
                    method,
                    reason: in_one_line(&failure.message),
                    location: failure.location.to_string(),
                    aftermath: self.aftermath(method, instance),
                }
            }
            _ => CallError::Refused {
                plugin,
                method,
                reason: in_one_line(&failure.message),
                retryable: failure.retryable,
            },
        }
    }

    fn note_panic(&self, method: Method, failure: &Failure) {
        let trouble = describe(failure);
        tracing::error!(plugin = %self.name, %method, "{trouble}");
        let mut condition = lock(&self.condition);
        condition.panics += 1;
        if condition.panics >= PANICS_FORGIVEN {
            condition.health =
                Health::Quarantined(format!("it panicked {} times, last: {trouble}", condition.panics));
        }
    }

    /// What became of the plugin after a panic, in words.
    fn aftermath(&self, method: Method, panicked: &Arc<Instance>) -> String {
        match self.health() {
            Health::Ok if method == Method::Recover => "it is not called any more".into(),
            Health::Ok if Arc::ptr_eq(panicked, &self.instance()) => {
                "it will be made anew before its next call".into()
            }
            Health::Ok => "it was made anew and told of its containers".into(),
            Health::Quarantined(_) => "it panicked too often and is in quarantine".into(),
            Health::OutOfService(reason) => format!("it is out of service: {reason}"),
        }
    }

    /// Replaces an instance that panicked by a new one that knows of its containers, unless another thread
    /// has done so.
    fn renew(&self, errand: &Errand, recoverer: &dyn Recoverer, panicked: &Arc<Instance>) {
        if !self.claim_renewal(panicked) {
            return;
        }
        let created = errand.step(&self.name, Method::Create.name(), self.deadline(Method::Create), || {
            Instance::create(self.module, self.manifest.kind, log::host_for(&self.name), &self.request)
        });
        match created {
            Ok(Ok(instance)) => {
                let instance = Arc::new(instance);
                // One that is not to be called any more is made for `cleanup` alone, which needs to know
                // nothing; telling it of its containers may be what it panics of.
                if self.health() == Health::Ok
                    && let Err(error) = self.recover_on(&instance, errand, recoverer)
                {
                    self.retire(format!("it did not recover after a panic: {error}"));
                }
                *self.instance.write().unwrap_or_else(PoisonError::into_inner) = instance;
            }
            Ok(Err(failure)) => {
                self.retire(format!("it could not be made anew after a panic: {}", describe(&failure)));
            }
            // The next call finds it poisoned, and tries again.
            Err(NobodyWaits) => {}
        }
        *lock(&self.renewing) = false;
        self.renewed.notify_all();
    }

    /// Whether it is this thread's part to replace an instance. Waits while another thread is at it, for as
    /// long as that may take: then the call fails like any other on a poisoned instance.
    fn claim_renewal(&self, panicked: &Arc<Instance>) -> bool {
        let allowed = self.deadline(Method::Create) + self.deadline(Method::Recover);
        let renewing = lock(&self.renewing);
        let waited = self.renewed.wait_timeout_while(renewing, allowed, |renewing| *renewing);
        let (mut renewing, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *renewing || !Arc::ptr_eq(panicked, &self.instance()) {
            return false;
        }
        *renewing = true;
        true
    }

    /// Tells a new instance what is there already, before anybody else can call it.
    fn recover_on(
        &self,
        instance: &Arc<Instance>,
        errand: &Errand,
        recoverer: &dyn Recoverer,
    ) -> Result<(), CallError> {
        const METHOD: Method = Method::Recover;
        if !self.implements(METHOD) {
            return Ok(());
        }
        let request =
            serde_json::to_vec(&recoverer.request(&self.name)).map_err(|e| self.malformed(METHOD, &e))?;
        self.count(METHOD).calls.fetch_add(1, Ordering::Relaxed);
        let plugin = self.name.to_string();
        let reaction = match self.attempt(errand, instance, METHOD, "", &request, &[]) {
            Ok(Ok(reaction)) => reaction,
            Ok(Err(Trouble::Failure(failure))) => {
                self.count(METHOD).failures.fetch_add(1, Ordering::Relaxed);
                return Err(self.explain(errand, recoverer, METHOD, instance, &failure));
            }
            Ok(Err(Trouble::Answer(reason))) => {
                return Err(CallError::Malformed { plugin, method: METHOD, reason });
            }
            Err(NobodyWaits) => return Err(CallError::NotBegun { plugin, method: METHOD }),
        };
        self.settle(recoverer, self.read(METHOD, &reaction)?);
        Ok(())
    }

    /// Tells it what is there already, and keeps what it answers.
    ///
    /// # Errors
    /// [`CallError`] when it did not recover.
    pub fn recover(&self, errand: &Errand, recoverer: &dyn Recoverer) -> Result<(), CallError> {
        if !self.implements(Method::Recover) {
            return Ok(());
        }
        let request = recoverer.request(&self.name);
        let reply: RecoverReply = self.call(errand, recoverer, Method::Recover, "", &request)?;
        self.settle(recoverer, reply);
        Ok(())
    }

    fn settle(&self, recoverer: &dyn Recoverer, reply: RecoverReply) {
        for (container, verdict) in &reply.verdicts {
            if let Verdict::Refused { reason } = verdict {
                tracing::warn!(plugin = %self.name, %container, "refuses a running container: {reason}");
            }
        }
        recoverer.settle(&self.name, reply);
    }

    fn count(&self, method: Method) -> &Counters {
        &self.counters[method as usize]
    }

    fn malformed(&self, method: Method, error: &serde_json::Error) -> CallError {
        CallError::Malformed { plugin: self.name.to_string(), method, reason: error.to_string() }
    }
}

impl Counters {
    fn read(&self) -> CallCount {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CallCount {
            calls: read(&self.calls),
            failures: read(&self.failures),
            late: read(&self.late),
            panics: read(&self.panics),
            micros: read(&self.nanos) / 1000,
        }
    }
}

fn check_identity(candidate: &Candidate, config: &PluginConfig, kind: Kind) -> Result<(), AdmitError> {
    if let Some(wanted) = &config.sha256
        && !wanted.eq_ignore_ascii_case(&candidate.sha256)
    {
        return Err(AdmitError::Hash {
            path: candidate.path.clone(),
            found: candidate.sha256.clone(),
            wanted: wanted.clone(),
        });
    }
    let manifest = &candidate.manifest;
    if manifest.name != config.name || manifest.kind != kind {
        return Err(AdmitError::Mistaken {
            path: candidate.path.clone(),
            found_kind: manifest.kind,
            found: manifest.name.clone(),
            wanted_kind: kind,
            wanted: config.name.clone(),
        });
    }
    Ok(())
}

fn describe(failure: &Failure) -> String {
    if failure.location.is_empty() {
        in_one_line(&failure.message)
    } else {
        format!("{} (at {})", in_one_line(&failure.message), failure.location)
    }
}

/// A plugin's words come with one cause per line; ours are one sentence.
fn in_one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(": ")
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
