//! A plugin as the rest of the house knows it: something that can be called, and that may be unwell.
//!
//! ```text
//!            panic                    third panic
//!    Ok ───────────────▶ made anew ───────────────▶ Quarantined ─ only cleanup is still tried
//!    │                      │
//!    │ recover failed       │ recover failed
//!    └──────────────────────┴──────────▶ OutOfService ─ only cleanup is still tried
//! ```

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cofferdam_plugin_abi::{Failure, ModuleRef};
use cofferdam_plugin_model::{
    CreateRequest, Kind, Manifest, Method, Methods, RecoverReply, RecoverRequest, Verdict,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::instance::{Instance, Reaction};
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
        /// Its words, one cause per line.
        reason: String,
        /// Whether it may do better later.
        retryable: bool,
    },
    /// Its code panicked.
    #[error("`{plugin}` {reason} (at {location}); it was made anew and told of its containers")]
    Panicked {
        /// The plugin.
        plugin: String,
        /// The method.
        method: Method,
        /// What the panic said.
        reason: String,
        /// Where.
        location: String,
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
    /// Checks a plugin file, loads a private copy of it and has it make itself. Blocks.
    ///
    /// # Errors
    /// [`AdmitError`] says who refused and what to do.
    pub fn admit(
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
        let instance = Instance::create(module, kind, log::host_for(&manifest.name), &request)
            .map_err(|failure| create_error(describe(&failure)))?;
        Ok(Self {
            name: manifest.name.as_str().into(),
            file: path,
            sha256,
            config: config.clone(),
            request,
            module,
            instance: RwLock::new(Arc::new(instance)),
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
    pub fn deadline(&self, method: Method) -> std::time::Duration {
        self.config.deadline(method)
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
        let allowed = self.deadline(method);
        let instance = Arc::clone(&self.instance.read().unwrap_or_else(PoisonError::into_inner));
        let deadline = unix_ms().saturating_add(u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX));
        let counters = self.count(method);
        counters.calls.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let outcome = errand.step(&self.name, method.name(), allowed, || {
            instance.call(method, container, deadline, request, descriptors)
        });
        drop(instance);
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counters.nanos.fetch_add(nanos, Ordering::Relaxed);
        let reaction = match outcome {
            Ok(reaction) => reaction,
            Err(NobodyWaits) => {
                return Err(CallError::NotBegun { plugin: self.name.to_string(), method });
            }
        };
        reaction.map_err(|failure| {
            counters.failures.fetch_add(1, Ordering::Relaxed);
            self.explain(errand, recoverer, method, &failure)
        })
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
        failure: &Failure,
    ) -> CallError {
        let plugin = self.name.to_string();
        match failure.code {
            Failure::PANICKED => {
                self.count(method).panics.fetch_add(1, Ordering::Relaxed);
                self.make_anew(errand, recoverer, method, failure);
                CallError::Panicked {
                    plugin,
                    method,
                    reason: failure.message.to_string(),
                    location: failure.location.to_string(),
                }
            }
            _ => CallError::Refused {
                plugin,
                method,
                reason: failure.message.to_string(),
                retryable: failure.retryable,
            },
        }
    }

    /// Replaces an instance that panicked by a new one, and tells that of the containers it has.
    fn make_anew(&self, errand: &Errand, recoverer: &dyn Recoverer, method: Method, failure: &Failure) {
        let trouble = describe(failure);
        tracing::error!(plugin = %self.name, %method, "{trouble}");
        let panics = {
            let mut condition = lock(&self.condition);
            condition.panics += 1;
            if condition.panics >= PANICS_FORGIVEN {
                condition.health =
                    Health::Quarantined(format!("it panicked {} times, last: {trouble}", condition.panics));
            }
            condition.panics
        };
        let created = errand.step(&self.name, Method::Create.name(), self.deadline(Method::Create), || {
            Instance::create(self.module, self.manifest.kind, log::host_for(&self.name), &self.request)
        });
        match created {
            Ok(Ok(instance)) => {
                let new = Arc::new(instance);
                let old = std::mem::replace(
                    &mut *self.instance.write().unwrap_or_else(PoisonError::into_inner),
                    new,
                );
                drop(old);
            }
            Ok(Err(failure)) => {
                let reason = format!("it could not be made anew after a panic: {}", describe(&failure));
                return self.retire(reason);
            }
            Err(NobodyWaits) => return,
        }
        // A plugin whose `recover` panics is in quarantine before this can go on for long.
        if panics < PANICS_FORGIVEN
            && method != Method::Recover
            && let Err(error) = self.recover(errand, recoverer)
        {
            self.retire(format!("it did not recover after a panic: {error}"));
        }
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
        for (container, verdict) in &reply.verdicts {
            if let Verdict::Refused { reason } = verdict {
                tracing::warn!(plugin = %self.name, %container, "refuses a running container: {reason}");
            }
        }
        recoverer.settle(&self.name, reply);
        Ok(())
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
        failure.message.to_string()
    } else {
        format!("{} (at {})", failure.message, failure.location)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
