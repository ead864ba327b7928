//! A launch by a daemon, which may have to pull the image or to fetch files first: the progress is shown, and a signal ends
//! it.

use crate::api::operator::encode_id;
use crate::api::operator::types::{Event, EventKind, Subscribe};
use crate::cli::client::{Client, ClientError, EventStream};
use crate::cli::failure::Failure;
use crate::cli::foreground::{Signals, not_launched};
use crate::cli::kill;
use crate::cli::progress::LaunchReporter;
use crate::cli::pull::signalled;
use cofferdam_core::model::Request;

/// How a launch ended.
pub(super) enum Launch<T> {
    Done(T),
    /// A signal has ended it: the exit status for that.
    Signalled(u8),
}

/// Waits for a launch from images, or with files. The first signal ends it, and the second one does not wait for that. What
/// has neither is launched soon, and signals are forwarded to its command then.
pub(super) async fn launch<T>(
    client: &Client,
    request: &Request,
    signals: &mut Signals,
    launching: impl Future<Output = Result<T, ClientError>>,
) -> Result<Launch<T>, Failure> {
    if request.image.is_none() && request.volume_images() == 0 && request.uris.is_empty() {
        return launching.await.map(Launch::Done).map_err(not_launched);
    }
    let id = encode_id(&request.id);
    // Before the launch, so that its events are received.
    let events = client.subscribe(Subscribe::default()).await.ok();
    let mut watch = Watch { id: id.to_string(), events, reporter: None };
    let mut signal: Option<i32> = None;
    tokio::pin!(launching);
    loop {
        tokio::select! {
            launched = &mut launching => return match (launched, signal) {
                (Ok(launched), _) => Ok(Launch::Done(launched)),
                (Err(_), Some(number)) => Ok(Launch::Signalled(signalled(number))),
                (Err(error), None) => Err(not_launched(error)),
            },
            () = watch.next(), if watch.events.is_some() => {}
            number = signals.next() => {
                // The daemon does not end the launch.
                if signal.replace(number).is_some() {
                    return Ok(Launch::Signalled(signalled(number)));
                }
                if let Err(error) = kill::kill(client, &id, number).await {
                    // It is not known yet, or has ended; another signal does not wait for it.
                    tracing::debug!("cannot end the launch: {error}");
                }
            }
        }
    }
}

/// The events of one container.
struct Watch {
    id: String,
    /// `None` after their end.
    events: Option<EventStream>,
    /// Once its image is being pulled, or its files are being fetched.
    reporter: Option<LaunchReporter>,
}

impl Watch {
    /// Waits for the next event. Nothing is lost if the future is dropped.
    async fn next(&mut self) {
        let Some(events) = &mut self.events else { return };
        match events.next().await {
            Ok(Some(event)) => self.note(&event),
            // Without events, there is no progress to show.
            Ok(None) | Err(_) => self.events = None,
        }
    }

    fn note(&mut self, event: &Event) {
        let Some(container) = event.container.as_ref().filter(|of| of.container_id.to_string() == self.id)
        else {
            return;
        };
        if let (EventKind::ContainerImagePull, Some(pull)) = (event.kind, &container.pull) {
            self.reporter.get_or_insert_with(LaunchReporter::new).pull(pull);
        }
        if let (EventKind::ContainerFetch, Some(fetch)) = (event.kind, &container.fetch) {
            self.reporter.get_or_insert_with(LaunchReporter::new).fetch(fetch);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(reporter) = &self.reporter {
            reporter.finish();
        }
    }
}
