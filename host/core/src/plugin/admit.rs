//! From an entry of the configuration to a plugin that can be called.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_plugin_model::{AgentInfo, CreateRequest, Kind, Method};

use super::LoadError;
use super::health::Lifecycle;
use super::placement::{InProcess, Placement};
use super::plugin::Plugin;
use super::preflight::{Candidate, PreflightError, examine};
use super::services::Services;
use super::store::{Store, StoreError};
use crate::blocking::{Cancelled, Job};
use crate::config::PluginConfig;

/// Why a configured plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The file is not suitable.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The file is not the configured one.
    #[error("plugin file `{path}` has SHA-256 {found}, expected {wanted} ({origin}); no plugin code was run")]
    Hash {
        /// The file.
        path: PathBuf,
        /// Its SHA-256.
        found: String,
        /// The configured SHA-256.
        wanted: String,
        /// Where it is configured.
        origin: String,
    },
    /// The file contains another plugin.
    #[error("`{path}` is {found_kind} `{found}`, expected {wanted_kind} `{wanted}` ({origin})")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Its kind.
        found_kind: Kind,
        /// Its name.
        found: String,
        /// The configured kind.
        wanted_kind: Kind,
        /// The configured name.
        wanted: String,
        /// Where it is configured.
        origin: String,
    },
    /// The private copy could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The library could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The plugin could not be created.
    #[error("cannot create {kind} `{name}` {version} ({origin}): {reason}")]
    Create {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// The version.
        version: String,
        /// Where it is configured.
        origin: String,
        /// The plugin's error with its causes.
        reason: String,
    },
}

/// What the agent provides to plugins when they are created.
pub struct PluginEnv<'a> {
    /// The agent's runtime directory.
    pub runtime_dir: &'a Path,
    /// The agent's work directory.
    pub work_dir: &'a Path,
    /// What the agent is and provides.
    pub agent: AgentInfo,
    /// Holds private copies of plugin files.
    pub store: &'a Store,
    /// What plugins can call.
    pub services: Arc<Services>,
}

impl Plugin {
    /// Checks a plugin file, loads a private copy of it and creates an instance, as a step of a job.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit(
        job: &Job,
        config: &PluginConfig,
        kind: Kind,
        file: &Path,
        env: &PluginEnv<'_>,
    ) -> Result<Self, AdmitError> {
        let candidate = examine(file)?;
        check_identity(&candidate, config, kind)?;
        let copy = env.store.keep(&candidate)?;
        let Candidate { path, manifest, sha256, .. } = candidate;
        let placement = InProcess::load(&manifest.name, kind, &copy, Arc::clone(&env.services))?;
        let create_error = |reason: String| AdmitError::Create {
            kind,
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            origin: config.origin.clone(),
            reason,
        };
        let request = serde_json::to_vec(&create_request(&manifest.name, config, env))
            .map_err(|error| create_error(error.to_string()))?;
        let name: Arc<str> = manifest.name.as_str().into();
        let _span = tracing::info_span!("call", plugin = %name, method = %Method::Create).entered();
        let instance = job
            .step(&name, Method::Create, "", config.timeout(Method::Create), || placement.create(&request))
            .map_err(|Cancelled| create_error("the start was abandoned".into()))?
            .map_err(|failure| create_error(failure.describe()))?;
        Ok(Self {
            name,
            file: path,
            sha256,
            config: config.clone(),
            request,
            placement: Box::new(placement),
            lifecycle: Lifecycle::new(instance),
            counters: Default::default(),
            in_flight: Default::default(),
            manifest,
        })
    }
}

fn create_request(name: &str, config: &PluginConfig, env: &PluginEnv<'_>) -> CreateRequest {
    let directory = name.replace('/', "-");
    CreateRequest {
        config: config.table.clone(),
        name: name.to_owned(),
        agent: env.agent.clone(),
        runtime_directory: env.runtime_dir.join("isolators").join(&directory),
        work_directory: env.work_dir.join("isolators").join(&directory),
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
            origin: config.origin.clone(),
        });
    }
    let manifest = &candidate.manifest;
    if manifest.name != config.name || manifest.kind != kind {
        return Err(AdmitError::Mismatch {
            path: candidate.path.clone(),
            found_kind: manifest.kind,
            found: manifest.name.clone(),
            wanted_kind: kind,
            wanted: config.name.clone(),
            origin: config.origin.clone(),
        });
    }
    Ok(())
}
