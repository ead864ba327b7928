//! The image of a container that the agent in this process launches: pulled before, if that is needed.

use std::path::Path;
use std::thread;

use tokio::sync::oneshot;

use crate::cli::failure::Failure;
use crate::cli::foreground::Signals;
use crate::cli::progress::Reporter;
use crate::cli::registry;
use crate::config::Environment;
use crate::image::{self, Limits, PullRequest};
use cofferdam_core::provisioner::document::Platform;
use cofferdam_core::provisioner::{Image, ImageName, Store};

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

/// Status of a command that a signal has ended, without the number of the signal.
const SIGNALLED: u8 = 128;

/// Pulls the image of a container if the policy says so. An id names no registry.
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
    let platform = Platform::host();
    let is_needed = match policy {
        PullPolicy::Never => false,
        PullPolicy::Always => true,
        PullPolicy::Missing => store.find(text).map_or(true, |image| !is_for(&image, &platform)),
    };
    let Some(name) = text.parse::<ImageName>().ok().filter(|_| is_needed && environment.is_root()) else {
        return Ok(None);
    };
    let (registry, credentials) = registry::load(config, environment)?;
    let request = PullRequest { name, platform, limits: Limits::default(), registry, credentials };
    let (done, pulled) = oneshot::channel();
    // Not of the runtime, which would wait for it at its end.
    let pulling = thread::Builder::new().name("pull".into()).spawn(move || {
        let reporter = Reporter::new(false);
        let pulled = image::pull(&store, &request, &|progress| reporter.report(&progress));
        reporter.finish();
        // After a signal, it is not received.
        drop(done.send(pulled.map(drop)));
    });
    pulling.map_err(|source| Failure::system("cannot start a thread", source))?;
    let number = tokio::select! {
        pulled = pulled => {
            let pulled = pulled.map_err(|_| Failure::message("the thread that pulls the image has panicked"))?;
            return pulled.map(|()| None).map_err(Failure::of);
        }
        number = signals.next() => number,
    };
    Ok(Some(SIGNALLED.saturating_add(u8::try_from(number).unwrap_or_default())))
}

/// Whether an image of the store is for a platform. Some images do not say what they are for.
fn is_for(image: &Image, platform: &Platform) -> bool {
    let Platform { os, architecture, .. } = platform;
    [format!("{os}/{architecture}"), format!("{os}/")].contains(&image.platform)
}
