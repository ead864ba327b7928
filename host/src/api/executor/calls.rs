//! The calls of executors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};

use super::decode::{Action, Call};
use super::events;
use crate::api::context::ApiContext;
use crate::api::encoding::Encoding;
use crate::api::operator::error::ApiError;
use crate::api::operator::media::ResponseMedia;
use crate::api::operator::routes::too_large;
use crate::api::operator::stream::Records;
use crate::api::protobuf::schema::executor::EVENT;
use cofferdam_core::executor::{Event, Events, Executor, TaskId, Update};

type Result<T = HttpResponse> = std::result::Result<T, ApiError>;

/// How often an executor gets a heartbeat, as in Mesos.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// Carries out one call.
pub(super) async fn dispatch(
    context: &Arc<ApiContext>,
    executor: &Executor,
    encoding: Encoding,
    media: ResponseMedia,
    body: &[u8],
) -> Result {
    let is_long = body.len() > context.config.api.max_body;
    let call = Call::read(encoding, body)?;
    // The library of Mesos does not know its ids when it sends these.
    if call.kind != "HEARTBEAT" {
        check_identity(executor, &call)?;
    }
    if is_long && call.kind != "SUBSCRIBE" {
        return Err(too_large(context.config.api.max_body));
    }
    match call.action(now())? {
        Action::Subscribe { known, updates } => {
            return subscribe(context, executor, media, known, updates).await;
        }
        Action::Update(update) => executor.update(update).await?,
        Action::Message(data) => executor.message(data),
        Action::Heartbeat => {}
    }
    Ok(StatusCode::ACCEPTED.into_response())
}

/// An executor acts for itself only.
fn check_identity(executor: &Executor, call: &Call) -> Result<()> {
    let state = executor.state();
    let (framework, own) = (state.framework.id.as_str(), state.executor.id.as_str());
    if call.framework_id.value == framework && call.executor_id.value == own {
        return Ok(());
    }
    let text = format!("the token is that of executor `{own}` of framework `{framework}`");
    Err(ApiError::message(StatusCode::FORBIDDEN, text))
}

async fn subscribe(
    context: &Arc<ApiContext>,
    executor: &Executor,
    media: ResponseMedia,
    known: BTreeSet<TaskId>,
    updates: Vec<Update>,
) -> Result {
    let subscribed = tokio::select! {
        subscribed = executor.subscribe(known, updates) => subscribed?,
        () = context.stopped() => return Err(ApiError::stopping()),
    };
    let (records, body) = Records::encoded(media.message.of(&EVENT));
    let (context, executor) = (Arc::clone(context), executor.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = send(&context, &executor, subscribed, &records) => {}
            () = records.disconnected() => {}
            () = context.stopped() => {}
        }
    });
    // As in Mesos, the type is that of the records.
    Ok(([(header::CONTENT_TYPE, media.message.media_type())], Body::new(body)).into_response())
}

async fn send(context: &ApiContext, executor: &Executor, mut subscribed: Events, records: &Records) {
    loop {
        let event = match tokio::time::timeout(HEARTBEAT_INTERVAL, subscribed.next()).await {
            Ok(Some(Event::Subscribed)) => events::subscribed(context, &executor.state()),
            Ok(Some(event)) => events::encode(event),
            Ok(None) => return,
            Err(_) => events::heartbeat(),
        };
        if records.send(&event).await.is_err() {
            return;
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
