//! The calls of executors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use serde::Deserialize;
use serde_json::Value as Json;

use super::events;
use crate::api::context::ApiContext;
use crate::api::encoding::Encoding;
use crate::api::operator::decode::task::{decode_status, typed};
use crate::api::operator::error::ApiError;
use crate::api::operator::media::ResponseMedia;
use crate::api::operator::routes::too_large;
use crate::api::operator::stream::Records;
use crate::api::operator::types as wire;
use crate::api::protobuf::schema::executor::{CALL, EVENT};
use cofferdam_core::executor::{Event, Events, Executor, TaskId, Update};

type Result<T = HttpResponse> = std::result::Result<T, ApiError>;

/// How often an executor gets a heartbeat, as in Mesos.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// A call. The field that has the name of its type is its body.
#[derive(Deserialize)]
struct Call {
    #[serde(rename = "type")]
    kind: String,
    framework_id: wire::FrameworkId,
    executor_id: wire::ExecutorId,
    #[serde(default)]
    subscribe: Option<Subscribe>,
    #[serde(default)]
    update: Option<UpdateCall>,
    #[serde(default)]
    message: Option<MessageCall>,
}

#[derive(Default, Deserialize)]
struct Subscribe {
    #[serde(default)]
    unacknowledged_tasks: Option<Vec<UnacknowledgedTask>>,
    #[serde(default)]
    unacknowledged_updates: Option<Vec<UpdateCall>>,
}

#[derive(Deserialize)]
struct UnacknowledgedTask {
    task_id: wire::TaskId,
}

#[derive(Deserialize)]
struct UpdateCall {
    status: Json,
}

#[derive(Deserialize)]
struct MessageCall {
    data: wire::Bytes,
}

/// Carries out one call.
pub(super) async fn dispatch(
    context: &Arc<ApiContext>,
    executor: &Executor,
    encoding: Encoding,
    media: ResponseMedia,
    body: &[u8],
) -> Result {
    let is_long = body.len() > context.config.api.max_body;
    let body: Json =
        encoding.of(&CALL).read(body).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, &error))?;
    let call: Call = typed("call", &body)?;
    // The library of Mesos does not know its ids when it sends these.
    if call.kind != "HEARTBEAT" {
        check_identity(executor, &call)?;
    }
    if is_long && call.kind != "SUBSCRIBE" {
        return Err(too_large(context.config.api.max_body));
    }
    let missing =
        |field: &str| ApiError::bad_request(format!("`{}` requires the field `{field}`", call.kind));
    match call.kind.as_str() {
        "SUBSCRIBE" => subscribe(context, executor, media, call.subscribe.unwrap_or_default()).await,
        "UPDATE" => {
            let update = call.update.ok_or_else(|| missing("update"))?;
            executor.update(decode_status("update.status", &update.status, now())?).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        "MESSAGE" => {
            executor.message(call.message.ok_or_else(|| missing("message"))?.data.0);
            Ok(StatusCode::ACCEPTED.into_response())
        }
        "HEARTBEAT" => Ok(StatusCode::ACCEPTED.into_response()),
        other => Err(ApiError::bad_request(format!(
            "`{other}` is not a known type; expected `SUBSCRIBE`, `UPDATE`, `MESSAGE` or `HEARTBEAT`"
        ))),
    }
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
    call: Subscribe,
) -> Result {
    let mut known = BTreeSet::new();
    for task in call.unacknowledged_tasks.unwrap_or_default() {
        let id = TaskId::new(task.task_id.value)
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, &error))?;
        known.insert(id);
    }
    let mut updates: Vec<Update> = Vec::new();
    for update in call.unacknowledged_updates.unwrap_or_default() {
        updates.push(decode_status("subscribe.unacknowledged_updates.status", &update.status, now())?);
    }
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
