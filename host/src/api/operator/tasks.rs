//! Calls about tasks and executors.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response as HttpResponse;
use serde_json::json;

use super::decode::DecodeError;
use super::decode::task::{self as decode, AgentImage, Settings};
use super::encode::task as encode;
use super::error::ApiError;
use super::media::ResponseMedia;
use super::stream::{self, Disconnected, Records};
use super::{reply, types as wire};
use crate::api::context::ApiContext;
use crate::api::encoding::Codec;
use crate::config::Config;
use cofferdam_core::config::ContainerizerConfig;
use cofferdam_core::executor::{Kill, Notice, StatusUpdates};

type Result<T = HttpResponse> = std::result::Result<T, ApiError>;

/// How often a stream without messages gets a heartbeat, as in Mesos.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// Checks the settings that are messages of the API.
pub(crate) fn check_settings(config: &Config) -> std::result::Result<(), DecodeError> {
    decode::default_container(config.default_container_info.as_ref()).map(drop)
}

/// What decoding needs to know of the configuration.
pub(in crate::api) fn settings(context: &ApiContext) -> std::result::Result<Settings<'_>, DecodeError> {
    let executors = context.agent.executors();
    let image = context.config.agent.containerizers.iter().find_map(|containerizer| match containerizer {
        ContainerizerConfig::Docker(docker) => {
            let image = docker.mesos_image.as_deref()?;
            Some(AgentImage { image, sandbox_directory: &docker.sandbox_directory })
        }
        ContainerizerConfig::Mesos => None,
    });
    Ok(Settings {
        executors: executors.config(),
        agent_id: executors.agent_id(),
        default_container: decode::default_container(context.config.default_container_info.as_ref())?,
        agent_image: image,
    })
}

pub(super) async fn launch(context: &Arc<ApiContext>, call: &wire::LaunchTask) -> Result {
    let launch = decode::decode_task(call, &settings(context)?)?;
    context.agent.executors().launch(launch).await?;
    Ok(reply::empty())
}

pub(super) async fn launch_group(context: &Arc<ApiContext>, call: &wire::LaunchTaskGroup) -> Result {
    let launch = decode::decode_task_group(call, &settings(context)?)?;
    context.agent.executors().launch(launch).await?;
    Ok(reply::empty())
}

pub(super) async fn kill(context: &Arc<ApiContext>, call: wire::KillTask) -> Result {
    let framework =
        call.framework_id.as_ref().map(|id| decode::decode_framework_id("kill_task.framework_id", id));
    let task = decode::decode_task_id("kill_task.task_id", &call.task_id)?;
    decode::decode_kill_policy("kill_task.kill_policy", call.kill_policy.as_ref())?;
    context.agent.executors().kill(framework.transpose()?, task, Kill { policy: call.kill_policy }).await?;
    Ok(reply::empty())
}

pub(super) async fn shutdown(context: &Arc<ApiContext>, call: &wire::ShutdownExecutor) -> Result {
    let framework = decode::decode_framework_id("shutdown_executor.framework_id", &call.framework_id)?;
    let executor = decode::decode_executor_id("shutdown_executor.executor_id", &call.executor_id)?;
    context.agent.executors().shutdown(framework, executor).await?;
    Ok(reply::empty())
}

pub(super) fn message(context: &Arc<ApiContext>, call: wire::MessageExecutor) -> Result {
    let framework = decode::decode_framework_id("message_executor.framework_id", &call.framework_id)?;
    let executor = decode::decode_executor_id("message_executor.executor_id", &call.executor_id)?;
    if context.agent.executors().message(&framework, &executor, call.data.0) {
        return Ok(reply::empty());
    }
    let text = format!("executor `{executor}` of framework `{framework}` is not connected");
    Err(ApiError::message(StatusCode::NOT_FOUND, text))
}

pub(super) async fn acknowledge(context: &Arc<ApiContext>, call: &wire::AcknowledgeStatusUpdate) -> Result {
    let framework =
        decode::decode_framework_id("acknowledge_status_update.framework_id", &call.framework_id)?;
    let task = decode::decode_task_id("acknowledge_status_update.task_id", &call.task_id)?;
    let id = decode::decode_update_id("acknowledge_status_update.uuid", &call.uuid)?;
    context.agent.executors().acknowledge(framework, task, id).await?;
    Ok(reply::empty())
}

/// Streams status updates until the client disconnects or the agent stops.
pub(super) fn subscribe(
    context: &Arc<ApiContext>,
    media: ResponseMedia,
    call: &wire::SubscribeStatusUpdates,
) -> Result {
    let decode = |id| decode::decode_framework_id("subscribe_status_updates.framework_id", id);
    let framework = call.framework_id.as_ref().map(decode).transpose()?;
    let updates = context.agent.executors().updates(framework);
    let context = Arc::clone(context);
    Ok(stream::respond(media, Codec::Json, async move |records| {
        tokio::select! {
            sent = send_updates(&context, updates, &records) => drop(sent),
            () = records.disconnected() => {}
            () = context.stopped() => {}
        }
    }))
}

async fn send_updates(
    context: &ApiContext,
    mut updates: StatusUpdates,
    records: &Records,
) -> std::result::Result<(), Disconnected> {
    let event = |kind: &str| wire::UpdateEvent { kind: kind.to_owned(), ..wire::UpdateEvent::default() };
    let interval = json!({"heartbeat_interval_seconds": HEARTBEAT_INTERVAL.as_secs_f64()});
    records.send(&wire::UpdateEvent { subscribed: Some(interval), ..event("SUBSCRIBED") }).await?;
    let agent = context.agent.executors().agent_id();
    loop {
        let event = match tokio::time::timeout(HEARTBEAT_INTERVAL, updates.next()).await {
            Ok(Notice::Update(update)) => encode::status_update(&update, agent),
            Ok(Notice::Message(message)) => encode::framework_message(&message),
            Err(_) => event("HEARTBEAT"),
        };
        records.send(&event).await?;
    }
}
