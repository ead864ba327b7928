//! Clients that are informed of what happens.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::Response as HttpResponse;

use super::attach::HEARTBEAT_INTERVAL;
use super::encode;
use super::error::ApiError;
use super::media::ResponseMedia;
use super::stream::{self, Disconnected, Records};
use super::types as wire;
use crate::api::context::ApiContext;
use crate::api::encoding::Codec;
use cofferdam_core::events::{Received, Subscription};

/// Streams events until a time, or until the agent stops.
pub(super) fn subscribe(
    context: &Arc<ApiContext>,
    media: ResponseMedia,
    call: &wire::Subscribe,
) -> Result<HttpResponse, ApiError> {
    let since = call.since.as_ref().map(|since| time("since", since)).transpose()?;
    let until = call.until.as_ref().map(|until| time("until", until)).transpose()?;
    let subscription = context.agent.events().subscribe(since);
    let context = Arc::clone(context);
    Ok(stream::respond(media, Codec::Json, async move |records| {
        drop(send(&context, subscription, until, &records).await);
    }))
}

fn time(field: &str, time: &wire::TimeInfo) -> Result<SystemTime, ApiError> {
    let nanoseconds = u64::try_from(time.nanoseconds)
        .map_err(|_| ApiError::bad_request(format!("`subscribe.{field}` is before 1970")))?;
    Ok(UNIX_EPOCH + Duration::from_nanos(nanoseconds))
}

/// Sends what happens, with heartbeats in between. A client that does not read delays nobody: it misses events.
async fn send(
    context: &ApiContext,
    mut events: Subscription,
    until: Option<SystemTime>,
    records: &Records,
) -> Result<(), Disconnected> {
    records.send(&encode::subscribed(&events, HEARTBEAT_INTERVAL)).await?;
    let mut stopped = pin!(context.stopped());
    let mut over = pin!(at(until));
    loop {
        tokio::select! {
            biased;
            () = records.disconnected() => return Err(Disconnected),
            () = &mut stopped => return Ok(()),
            // Before the time is checked, so that those that are kept are sent when it is over already.
            received = events.next() => {
                if let (Received::Event(event), Some(until)) = (&received, until)
                    && event.time > until
                {
                    return Ok(());
                }
                records.send(&encode::received(&received)).await?;
            }
            () = &mut over => return Ok(()),
            () = tokio::time::sleep(HEARTBEAT_INTERVAL) => {
                let kind = wire::EventKind::Heartbeat;
                records.send(&wire::Event { kind, ..wire::Event::default() }).await?;
            }
        }
    }
}

/// Resolves when the clock shows a time, also if it is set in between; never without a time.
async fn at(time: Option<SystemTime>) {
    let Some(time) = time else { return std::future::pending().await };
    let left = || time.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero());
    while let Some(left) = left() {
        tokio::time::sleep(left.min(HEARTBEAT_INTERVAL)).await;
    }
}
