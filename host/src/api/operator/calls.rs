//! The calls of `POST /api/v1`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response as HttpResponse;

use super::decode::{self, decode_id, decode_nested_id};
use super::error::{ApiError, not_launched};
use super::files::{self, Sandboxes};
use super::listing;
use super::media::ResponseMedia;
use super::stream::{self, Disconnected, Records};
use super::types::{self as wire, Call, Response};
use super::{attach, encode, reply, subscribe, tasks};
use crate::api::context::ApiContext;
use crate::api::encoding::{Codec, Encoding};
use crate::api::protobuf::schema::agent::CALL_TYPE;
use cofferdam_core::model::view::{Summary, WantedReports};
use cofferdam_core::model::{ContainerId, Request, Termination};
use cofferdam_core::switchboard::Attachment;

type Result<T = HttpResponse> = std::result::Result<T, ApiError>;

/// Carries out one call, and answers with what the client accepts.
pub(in crate::api) async fn dispatch(context: &Arc<ApiContext>, media: ResponseMedia, call: Call) -> Result {
    let media = media_for(media, &call)?;
    let message = |response: Response| Ok(reply::message(Response::codec(media.message), &response));
    match call {
        Call::LaunchContainer(call) => launch(context, decode::decode_launch(&call)?).await,
        Call::RunContainer(call) => run(context, media, decode::decode_launch(&call)?).await,
        Call::LaunchNestedContainer(call) => launch(context, decode::decode_nested_launch(&call)?).await,
        Call::LaunchNestedContainerSession(call) => {
            attach::session(context, media, decode::decode_session(&call)?).await
        }
        Call::AttachContainerOutput(call) => {
            let id = decode_id("attach_container_output.container_id", &call.container_id)?;
            attach::output(context, media, &id)
        }
        Call::AttachContainerInput(_) => Err(ApiError::message(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "`ATTACH_CONTAINER_INPUT` is a stream of records: send `Content-Type: application/recordio`",
        )),
        Call::WaitContainer(call) => {
            let id = decode_id("wait_container.container_id", &call.container_id)?;
            message(Response::WaitContainer(encode::termination(&wait(context, &id).await?)))
        }
        Call::WaitNestedContainer(call) => {
            let id = decode_nested_id("wait_nested_container.container_id", &call.container_id)?;
            message(Response::WaitNestedContainer(encode::termination(&wait(context, &id).await?)))
        }
        Call::KillContainer(call) => {
            let id = decode_id("kill_container.container_id", &call.container_id)?;
            kill(context, &id, &call).await
        }
        Call::KillNestedContainer(call) => {
            let id = decode_nested_id("kill_nested_container.container_id", &call.container_id)?;
            kill(context, &id, &call).await
        }
        Call::KillContainers(call) => {
            let decode = |id| decode_id("kill_containers.container_ids", id);
            let ids = call.container_ids.iter().map(decode);
            let mut killed = Ok(());
            for id in ids.collect::<std::result::Result<Vec<_>, _>>()? {
                // One that cannot be killed does not keep the others alive.
                let outcome = context.agent.kill(&id, libc::SIGKILL).await;
                killed = killed.and(outcome.map(drop));
            }
            killed?;
            Ok(reply::empty())
        }
        Call::RemoveContainer(call) => {
            remove(context, &decode_id("remove_container.container_id", &call.container_id)?).await
        }
        Call::RemoveNestedContainer(call) => {
            let id = decode_nested_id("remove_nested_container.container_id", &call.container_id)?;
            remove(context, &id).await
        }
        Call::UpdateContainer(call) => {
            let id = decode_id("update_container.container_id", &call.container_id)?;
            let resources = decode::decode_resources(&id, &call.resources, &call.limits)?;
            context.agent.update(&id, resources).await?;
            Ok(reply::empty())
        }
        Call::InspectContainer(call) => {
            let id = decode_id("inspect_container.container_id", &call.container_id)?;
            let inspection = context.agent.inspect(&id).ok_or_else(|| ApiError::unknown_container(&id))?;
            message(Response::InspectContainer(Box::new(encode::inspection(&inspection))))
        }
        Call::Subscribe(call) => subscribe::subscribe(context, media, &call),
        Call::GetContainers(call) => {
            let wanted = WantedReports {
                usage: call.show_statistics.unwrap_or(true),
                status: call.show_status.unwrap_or(true),
                within: None,
            };
            let decode = |id| decode_id("get_containers.container_ids", id);
            let only: BTreeSet<ContainerId> =
                call.container_ids.iter().map(decode).collect::<std::result::Result<_, _>>()?;
            let select = |summary: &Summary| {
                let show = if summary.id.is_nested() { call.show_nested } else { call.show_standalone };
                show.unwrap_or(false) && (only.is_empty() || only.contains(&summary.id))
            };
            let containers = listing::containers(context, wanted, select).await;
            message(Response::GetContainers(wire::Containers { containers }))
        }
        Call::GetState => {
            let containers = listing::containers(context, WantedReports::ALL, |_| true).await;
            let (tasks, executors, frameworks) = encode::task::all(context.agent.executors());
            message(Response::GetState(wire::State {
                get_tasks: Some(tasks),
                get_executors: Some(executors),
                get_frameworks: Some(frameworks),
                get_containers: Some(wire::Containers { containers }),
            }))
        }
        Call::GetTasks => message(Response::GetTasks(encode::task::tasks(context.agent.executors()))),
        Call::GetExecutors => {
            message(Response::GetExecutors(encode::task::executors(context.agent.executors())))
        }
        Call::GetFrameworks => {
            message(Response::GetFrameworks(encode::task::frameworks(context.agent.executors())))
        }
        Call::GetOperations => message(Response::GetOperations(wire::OperationList::default())),
        Call::GetResourceProviders => {
            message(Response::GetResourceProviders(wire::ResourceProviderList::default()))
        }
        Call::GetAgent => message(Response::GetAgent(wire::AgentDescription {
            agent_info: Some(encode::agent_info(&context.agent)),
        })),
        Call::LaunchTask(call) => tasks::launch(context, &call).await,
        Call::LaunchTaskGroup(call) => tasks::launch_group(context, &call).await,
        Call::KillTask(call) => tasks::kill(context, *call).await,
        Call::ShutdownExecutor(call) => tasks::shutdown(context, &call).await,
        Call::MessageExecutor(call) => tasks::message(context, call),
        Call::SubscribeStatusUpdates(call) => tasks::subscribe(context, media, &call),
        Call::AcknowledgeStatusUpdate(call) => tasks::acknowledge(context, &call).await,
        Call::GetFlags => {
            let flags = encode::flags(&context.config).into_iter();
            let flags = flags.map(|(name, value)| wire::Flag { name, value: Some(value) }).collect();
            message(Response::GetFlags(wire::Flags { flags }))
        }
        Call::GetLoggingLevel => {
            message(Response::GetLoggingLevel(wire::LoggingLevel { level: context.verbosity.level() }))
        }
        Call::SetLoggingLevel(call) => {
            let duration = u64::try_from(call.duration.nanoseconds)
                .map_err(|_| ApiError::bad_request("`set_logging_level.duration` is negative"))?;
            context.verbosity.set(call.level, Duration::from_nanos(duration))?;
            Ok(reply::empty())
        }
        Call::GetHealth => {
            message(Response::GetHealth(wire::Health { healthy: true, ..wire::Health::default() }))
        }
        Call::GetVersion => message(Response::GetVersion(wire::Version { version_info: encode::version() })),
        // The timeout is for metrics that are slow to collect. There are none here.
        Call::GetMetrics(_) => {
            let metrics = context.metrics().flatten().into_iter();
            let metrics = metrics.map(|(name, value)| wire::Metric { name, value: Some(value) }).collect();
            message(Response::GetMetrics(wire::Metrics { metrics }))
        }
        Call::GetPlugins => {
            let plugins = context.agent.plugins().iter().map(encode::plugin).collect();
            message(Response::GetPlugins(wire::Plugins { plugins }))
        }
        Call::ListFiles(call) => {
            let list = move |sandboxes: &Sandboxes| sandboxes.list(&call.path);
            let file_infos = files::run_blocking(context, list).await?;
            message(Response::ListFiles(wire::FileList { file_infos }))
        }
        Call::ReadFile(call) => {
            let read = move |sandboxes: &Sandboxes| sandboxes.read(&call.path, call.offset, call.length);
            message(Response::ReadFile(files::run_blocking(context, read).await?))
        }
        Call::PruneImages(call) => {
            let pruned = context.agent.prune_images(decode::decode_prune(&call)?).await;
            let pruned = pruned.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error))?;
            // An extension: Mesos has no response for it.
            match media.message {
                Encoding::Json => message(Response::PruneImages(encode::pruned(&pruned))),
                Encoding::Protobuf => Ok(reply::empty()),
            }
        }
    }
}

/// What the client accepts for a call. Extensions have no published form in protocol buffers.
fn media_for(media: ResponseMedia, call: &Call) -> Result<ResponseMedia> {
    let name = call.type_name();
    if CALL_TYPE.number_of(name).is_some() {
        return Ok(media);
    }
    media.json_only().ok_or_else(|| {
        let text = format!("`{name}` is an extension, which exists in JSON only; accept `application/json`");
        ApiError::message(StatusCode::NOT_ACCEPTABLE, text)
    })
}

async fn launch(context: &ApiContext, request: Request) -> Result {
    Ok(start(context, request).await?.unwrap_or_else(reply::empty))
}

/// Launches a container and answers when it runs, with its output if requested, and when it has ended. There is no last
/// message if the agent stops before the container ends.
async fn run(context: &Arc<ApiContext>, media: ResponseMedia, request: Request) -> Result {
    let (id, attached) = (request.id.clone(), request.attached);
    if let Some(refused) = start(context, request).await? {
        return Ok(refused);
    }
    let attachment = attached.then(|| context.agent.attach_first(&id)).transpose()?;
    let logs = context.agent.inspect(&id).map(|inspection| inspection.logs).unwrap_or_default();
    let path = |path: Option<std::path::PathBuf>| path.map(|path| path.to_string_lossy().into_owned());
    let launched = wire::LaunchedContainer {
        stdout: path(logs.stdout),
        stderr: path(logs.stderr),
        stdout_file: logs.stdout_file.map(String::from),
        stderr_file: logs.stderr_file.map(String::from),
    };
    let context = Arc::clone(context);
    Ok(stream::respond(media, Codec::Json, async move |records| {
        drop(report_run(&context, &id, launched, attachment, &records).await);
    }))
}

/// Sends the messages about a container that runs.
async fn report_run(
    context: &ApiContext,
    id: &ContainerId,
    launched: wire::LaunchedContainer,
    attachment: Option<Attachment>,
    records: &Records,
) -> std::result::Result<(), Disconnected> {
    let message = |message| Response::RunContainer(message);
    let launched = wire::RunningContainer { launched: Some(launched), ..Default::default() };
    records.send(&message(launched)).await?;
    if let Some(mut attachment) = attachment {
        let output = async {
            // An error is its end: the container has ended, or its switchboard was killed.
            while let Ok(Some(output)) = attachment.output.next().await {
                let process_io = Some(attach::process_io(output));
                records.send(&message(wire::RunningContainer { process_io, ..Default::default() })).await?;
            }
            Ok(())
        };
        tokio::select! {
            sent = output => sent?,
            () = records.disconnected() => return Err(Disconnected),
            () = context.stopped() => return Ok(()),
        }
    }
    let Ok(termination) = wait(context, id).await else { return Ok(()) };
    let terminated = Some(encode::termination(&termination));
    records.send(&message(wire::RunningContainer { terminated, ..Default::default() })).await
}

/// Launches a container. Returns the response if it was not launched.
async fn start(context: &ApiContext, request: Request) -> Result<Option<HttpResponse>> {
    let agent = context.agent.clone();
    // A task of its own, so that disconnecting does not cancel the launch.
    let launched = tokio::spawn(async move { agent.launch(request).await });
    match launched.await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) => Ok(Some(not_launched(error))),
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error)),
    }
}

/// Waits for the end of a container, or of the agent.
async fn wait(context: &ApiContext, id: &ContainerId) -> Result<Termination> {
    tokio::select! {
        termination = context.agent.wait(id) => termination.ok_or_else(|| ApiError::unknown_container(id)),
        () = context.stopped() => Err(ApiError::stopping()),
    }
}

async fn kill(context: &ApiContext, id: &ContainerId, call: &wire::KillContainer) -> Result {
    let signal = call.signal();
    if !(1..=libc::SIGRTMAX()).contains(&signal) {
        return Err(ApiError::bad_request(format!("there is no signal {signal}")));
    }
    let is_forced = call.force.unwrap_or(false);
    if is_forced && signal != libc::SIGKILL {
        return Err(ApiError::bad_request(format!("the end can be forced with signal 9 only, not {signal}")));
    }
    let is_live =
        if is_forced { context.agent.force(id).await } else { context.agent.kill(id, signal).await? };
    if is_live {
        Ok(reply::empty())
    } else if context.agent.contains(id) {
        Err(ApiError::message(StatusCode::NOT_FOUND, format!("container `{id}` has ended")))
    } else {
        Err(ApiError::unknown_container(id))
    }
}

/// As in Mesos, removing an unknown nested container succeeds if its root is known.
async fn remove(context: &ApiContext, id: &ContainerId) -> Result {
    let removed = context.agent.remove(id).await?;
    if removed || (id.is_nested() && context.agent.contains(&id.root())) {
        Ok(reply::empty())
    } else {
        Err(ApiError::unknown_container(id))
    }
}
