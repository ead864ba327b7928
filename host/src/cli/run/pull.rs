//! The image of a container that the agent in this process launches: pulled before, if that is needed.

use std::path::Path;
use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::failure::Failure;
use crate::cli::progress::Reporter;
use crate::cli::registry;
use crate::config::Environment;
use crate::image::{self, Limits, PullRequest};
use cofferdam_core::provisioner::document::Platform;
use cofferdam_core::provisioner::{ImageName, Store};

/// When the registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PullPolicy {
    /// If the store does not have it
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
) -> Result<Option<u8>, Failure> {
    let is_needed = match policy {
        PullPolicy::Never => false,
        PullPolicy::Always => true,
        PullPolicy::Missing => store.find(text).is_err(),
    };
    let Some(name) = text.parse::<ImageName>().ok().filter(|_| is_needed && environment.is_root()) else {
        return Ok(None);
    };
    let (registry, credentials) = registry::load(config, environment)?;
    let (platform, limits) = (Platform::host(), Limits::default());
    let request = PullRequest { name, platform, limits, registry, credentials };
    let failed = |source| Failure::system("cannot wait for signals", source);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
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
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
        _ = hangup.recv() => libc::SIGHUP,
    };
    Ok(Some(SIGNALLED.saturating_add(u8::try_from(number).unwrap_or_default())))
}
