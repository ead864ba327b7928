//! From an entry of the configuration to a plugin that can be called.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_plugin_model::{AgentInfo, CreateRequest, Kind, Manifest, Method};

use super::LoadError;
use super::lifecycle::Lifecycle;
use super::load::Layout;
use super::placement::{InProcess, Placement};
use super::plugin::Plugin;
use super::preflight::PreflightError;
use super::services::Services;
use super::store::{Candidate, Store, StoreError, Trust};
use crate::blocking::{Cancelled, Job};
use crate::config::PluginConfig;
use crate::events::Events;

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
    /// Where changes of a plugin's condition are reported.
    pub events: Events,
}

/// A plugin whose library is loaded, without an instance.
pub struct LoadedPlugin {
    config: PluginConfig,
    kind: Kind,
    manifest: Manifest,
    file: PathBuf,
    sha256: String,
    /// The private copy of the file.
    copy: PathBuf,
    placement: InProcess,
    services: Arc<Services>,
}

impl LoadedPlugin {
    /// Checks a plugin file and loads a private copy of it. Its constructors run; none of its methods is called.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn load(
        config: &PluginConfig,
        kind: Kind,
        file: &Path,
        store: &Store,
        services: &Arc<Services>,
    ) -> Result<Self, AdmitError> {
        let trust = if config.sha256.is_some() { Trust::Content } else { Trust::Index };
        let candidate = store.examine(file, trust)?;
        check_identity(&candidate, config, kind)?;
        let copy = store.keep(&candidate)?;
        let layout = match store.is_compatible(&candidate) {
            true => Layout::Compatible,
            false => Layout::Unknown,
        };
        let (name, sha256) = (&candidate.manifest.name, candidate.sha256());
        let placement = InProcess::load(name, kind, &copy, sha256, layout, Arc::clone(services))?;
        let services = Arc::clone(services);
        if layout == Layout::Unknown {
            store.learn_compatible(&candidate);
        }
        Ok(Self {
            config: config.clone(),
            kind,
            file: candidate.path().to_owned(),
            sha256: candidate.sha256().to_owned(),
            copy,
            placement,
            services,
            manifest: candidate.manifest,
        })
    }

    /// Creates an instance, as a step of a job.
    ///
    /// # Errors
    /// [`AdmitError::Create`].
    pub fn create(self, job: &Job, env: &PluginEnv<'_>) -> Result<Plugin, AdmitError> {
        let Self { config, kind, manifest, file, sha256, copy, placement, services } = self;
        let create_error = |reason: String| AdmitError::Create {
            kind,
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            origin: config.origin.clone(),
            reason,
        };
        if let Some(feature) = manifest.features.iter().find(|feature| !env.agent.features.contains(*feature))
        {
            return Err(create_error(format!(
                "it needs the feature `{feature}`, which the launcher `{}` does not have; configure the launcher `linux`, or \
                 leave the plugin out",
                env.agent.launcher
            )));
        }
        let request = serde_json::to_vec(&create_request(&manifest.name, kind, &config, copy, env))
            .map_err(|error| create_error(error.to_string()))?;
        let name: Arc<str> = manifest.name.as_str().into();
        let _span = tracing::info_span!("call", plugin = %name, method = %Method::Create).entered();
        let instance = job
            .step(&name, Method::Create, "", config.timeout(Method::Create), || placement.create(&request))
            .map_err(|Cancelled| create_error("the start was abandoned".into()))?
            .map_err(|failure| create_error(failure.describe()))?;
        Ok(Plugin {
            lifecycle: Lifecycle::new(
                instance,
                Arc::clone(&name),
                &manifest.version.to_string(),
                env.events.clone(),
            ),
            name,
            file,
            sha256,
            config,
            request,
            placement: Box::new(placement),
            services,
            counters: Default::default(),
            in_flight: Default::default(),
            manifest,
        })
    }
}

fn create_request(
    name: &str,
    kind: Kind,
    config: &PluginConfig,
    file: PathBuf,
    env: &PluginEnv<'_>,
) -> CreateRequest {
    // Isolators and loggers have different names.
    let parent = if kind == Kind::Hook { "hooks" } else { "isolators" };
    let directory = Path::new(parent).join(name.replace('/', "-"));
    CreateRequest {
        config: config.table.clone(),
        name: name.to_owned(),
        agent: env.agent.clone(),
        runtime_directory: env.runtime_dir.join(&directory),
        work_directory: env.work_dir.join(&directory),
        file,
    }
}

fn check_identity(candidate: &Candidate, config: &PluginConfig, kind: Kind) -> Result<(), AdmitError> {
    if let Some(wanted) = &config.sha256
        && !wanted.eq_ignore_ascii_case(candidate.sha256())
    {
        return Err(AdmitError::Hash {
            path: candidate.path().to_owned(),
            found: candidate.sha256().to_owned(),
            wanted: wanted.clone(),
            origin: config.origin.clone(),
        });
    }
    let manifest = &candidate.manifest;
    if manifest.name != config.name || manifest.kind != kind {
        return Err(AdmitError::Mismatch {
            path: candidate.path().to_owned(),
            found_kind: manifest.kind,
            found: manifest.name.clone(),
            wanted_kind: kind,
            wanted: config.name.clone(),
            origin: config.origin.clone(),
        });
    }
    Ok(())
}
