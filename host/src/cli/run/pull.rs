//! The image of a container that the agent in this process launches: pulled before, if that is needed.

use std::path::Path;

use crate::cli::failure::Failure;
use crate::cli::foreground::Signals;
use crate::cli::pull;
use crate::cli::registry;
use crate::config::Environment;
use crate::image::{Limits, LocalRequest, PullRequest};
use cofferdam_core::provisioner::document::Platform;
use cofferdam_core::provisioner::{ImageName, Store};

/// When the registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PullPolicy {
    /// If the store does not have it for this machine
    #[default]
    Missing,
    /// Always, also for a newer one
    Always,
    /// Never
    Never,
}

/// Pulls the image of a container if the policy says so, or imports it if it is an absolute path. An id names no registry.
///
/// Returns the exit status if a signal arrives meanwhile: the pull ends with this process, and the next one continues it.
pub(super) async fn pull(
    text: &str,
    policy: PullPolicy,
    store: Store,
    config: Option<&Path>,
    environment: &Environment,
    signals: &mut Signals,
) -> Result<Option<u8>, Failure> {
    if text.starts_with('/') && policy != PullPolicy::Never && environment.is_root() {
        // Who runs this may read whatever it is.
        let is_forced = policy == PullPolicy::Always;
        let request = LocalRequest { path: text.into(), permitted: None, is_forced };
        return Ok(pull::import(store, request, signals).await?.status());
    }
    let platform = Platform::host();
    let is_needed = match policy {
        PullPolicy::Never => false,
        PullPolicy::Always => true,
        PullPolicy::Missing => store.find(text).map_or(true, |image| !platform.runs(&image.platform)),
    };
    let Some(name) = text.parse::<ImageName>().ok().filter(|_| is_needed && environment.is_root()) else {
        return Ok(None);
    };
    let (registry, credentials) = registry::load(config, environment)?;
    let limits = Limits::default();
    let request = PullRequest { name, platform, limits, registry, credentials, own_credentials: None };
    Ok(pull::pull(store, request, false, signals).await?.status())
}
