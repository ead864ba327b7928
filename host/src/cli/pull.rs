//! A pull by this process, which a signal ends.

use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

use super::failure::Failure;
use super::foreground::Signals;
use super::progress::Reporter;
use crate::image::{self, LocalRequest, PullRequest};
use cofferdam_core::provisioner::{Image, Store};

/// Status of a command that a signal has ended, without the number of the signal.
const SIGNALLED: u8 = 128;

/// How a pull ended.
pub(super) enum Pulled {
    Image(Box<Image>),
    /// By a signal: the exit status for that. What was received stays, and the next pull continues there.
    Signalled(u8),
}

impl Pulled {
    /// The exit status, if a signal has ended it.
    pub(super) fn status(&self) -> Option<u8> {
        match self {
            Self::Image(_) => None,
            Self::Signalled(status) => Some(*status),
        }
    }
}

/// Pulls an image. After a signal, this returns at once, and the pull ends with this process.
pub(super) async fn pull(
    store: Store,
    request: PullRequest,
    is_quiet: bool,
    signals: &mut Signals,
) -> Result<Pulled, Failure> {
    let pull = move |report: &Reporter| {
        image::pull(&store, &request, &|progress| report.report(&progress)).map_err(Failure::of)
    };
    until_signal(pull, is_quiet, signals).await
}

/// Imports the image in a file or directory that a container is launched from; as [`pull`].
pub(super) async fn import(
    store: Store,
    request: LocalRequest,
    signals: &mut Signals,
) -> Result<Pulled, Failure> {
    let import = move |report: &Reporter| {
        image::import_local(&store, &request, &|progress| report.report(&progress)).map_err(Failure::of)
    };
    until_signal(import, false, signals).await
}

async fn until_signal(
    pull: impl FnOnce(&Reporter) -> Result<Image, Failure> + Send + 'static,
    is_quiet: bool,
    signals: &mut Signals,
) -> Result<Pulled, Failure> {
    let (done, pulled) = oneshot::channel();
    let reporter = Arc::new(Reporter::new(is_quiet));
    let shown = Arc::clone(&reporter);
    // Not of the runtime, which would wait for it at its end.
    let pulling = thread::Builder::new().name("pull".into()).spawn(move || {
        let pulled = pull(&shown);
        // After a signal, it is not received.
        drop(done.send(pulled));
    });
    pulling.map_err(|source| Failure::system("cannot start a thread", source))?;
    let ended = tokio::select! {
        pulled = pulled => Ok(pulled),
        number = signals.next() => Err(number),
    };
    reporter.finish();
    match ended {
        Ok(pulled) => {
            let pulled =
                pulled.map_err(|_| Failure::message("the thread that pulls the image has panicked"))?;
            pulled.map(|image| Pulled::Image(Box::new(image)))
        }
        Err(number) => Ok(Pulled::Signalled(signalled(number))),
    }
}

/// The exit status of a command that a signal has ended.
pub(super) fn signalled(number: i32) -> u8 {
    SIGNALLED.saturating_add(u8::try_from(number).unwrap_or_default())
}
