//! Each call of `POST /api/v1`: one question to the agent, one message back.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response as HttpResponse};
use tokio::task::JoinSet;

use super::error::ApiError;
use super::launch::{self, id, nested_id};
use super::routes::json;
use super::types::{self as wire, Call, Response};
use super::{Api, files, show};
use cofferdam_core::model::view::Summary;
use cofferdam_core::model::{ContainerId, Phase, Request, Termination};

/// Says which command could not be executed for what reason: a header of ours on a failed launch, so that a
/// client need not read the text. Its value is `not found` or `not executable`.
pub(crate) const EXEC_FAILURE: &str = "x-cofferdam-exec-failure";

type Answer = Result<HttpResponse, ApiError>;

pub(super) async fn answer(api: &Arc<Api>, call: Call) -> Answer {
    match call {
        Call::LaunchContainer(launch) => self::launch(api, launch::to_request(&launch)?).await,
        Call::LaunchNestedContainer(launch) => self::launch(api, launch::to_nested_request(&launch)?).await,
        Call::WaitContainer(call) => {
            let ended = wait(api, &id("wait_container.container_id", &call.container_id)?).await?;
            message(Response::WaitContainer(show::termination(&ended)))
        }
        Call::WaitNestedContainer(call) => {
            let id = nested_id("wait_nested_container.container_id", &call.container_id)?;
            let ended = wait(api, &id).await?;
            message(Response::WaitNestedContainer(show::termination(&ended)))
        }
        Call::KillContainer(call) => {
            kill(api, &id("kill_container.container_id", &call.container_id)?, call.signal()).await
        }
        Call::KillNestedContainer(call) => {
            let id = nested_id("kill_nested_container.container_id", &call.container_id)?;
            kill(api, &id, call.signal()).await
        }
        Call::RemoveContainer(call) => {
            remove(api, &id("remove_container.container_id", &call.container_id)?).await
        }
        Call::RemoveNestedContainer(call) => {
            remove(api, &nested_id("remove_nested_container.container_id", &call.container_id)?).await
        }
        Call::UpdateContainer(call) => {
            let id = id("update_container.container_id", &call.container_id)?;
            let resources = launch::resources(&id, &call.resources, &call.limits)?;
            api.agent.update(&id, resources).await?;
            done()
        }
        Call::InspectContainer(call) => {
            let id = id("inspect_container.container_id", &call.container_id)?;
            let inspection = api.agent.inspect(&id).ok_or_else(|| ApiError::unknown(&id))?;
            message(Response::InspectContainer(Box::new(show::inspected(&inspection))))
        }
        Call::GetContainers(call) => {
            let shown = |summary: &Summary| {
                let shown = if summary.id.is_nested() { call.show_nested } else { call.show_standalone };
                shown.unwrap_or(false)
            };
            message(Response::GetContainers(wire::Containers { containers: containers(api, shown).await }))
        }
        Call::GetState => {
            let containers = wire::Containers { containers: containers(api, |_| true).await };
            message(Response::GetState(wire::State {
                get_tasks: Some(wire::TaskList::default()),
                get_executors: Some(wire::ExecutorList::default()),
                get_frameworks: Some(wire::FrameworkList::default()),
                get_containers: Some(containers),
            }))
        }
        Call::GetFlags => {
            let flags = show::flags(&api.config).into_iter();
            let flags = flags.map(|(name, value)| wire::Flag { name, value: Some(value) }).collect();
            message(Response::GetFlags(wire::Flags { flags }))
        }
        Call::GetHealth => message(Response::GetHealth(wire::Health { healthy: true })),
        Call::GetVersion => message(Response::GetVersion(wire::Version { version_info: show::version() })),
        // All metrics are at hand, so the timeout of the call never cuts anything off.
        Call::GetMetrics(_) => {
            let metrics = api.metrics().flatten().into_iter();
            let metrics = metrics.map(|(name, value)| wire::Metric { name, value: Some(value) }).collect();
            message(Response::GetMetrics(wire::Metrics { metrics }))
        }
        Call::GetPlugins => {
            let plugins = api.agent.plugins().iter().map(show::plugin).collect();
            message(Response::GetPlugins(wire::Plugins { plugins }))
        }
        Call::ListFiles(call) => {
            let file_infos = files::on_a_thread(api, move |sandboxes| sandboxes.list(&call.path)).await?;
            message(Response::ListFiles(wire::FileList { file_infos }))
        }
        Call::ReadFile(call) => {
            let read =
                move |sandboxes: &files::Sandboxes| sandboxes.read(&call.path, call.offset, call.length);
            message(Response::ReadFile(files::on_a_thread(api, read).await?))
        }
        Call::PruneImages(_) => {
            Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "`PRUNE_IMAGES`: this agent keeps no images"))
        }
    }
}

async fn launch(api: &Api, request: Request) -> Answer {
    let agent = api.agent.clone();
    // A client that goes away must not leave a launch half done, so it does not run in the request.
    let launched = tokio::spawn(async move { agent.launch(request).await });
    match launched.await {
        Ok(Ok(_)) => done(),
        Ok(Err(error)) if error.is_duplicate() => Ok(StatusCode::ACCEPTED.into_response()),
        Ok(Err(error)) => {
            let failure = error.exec_error().and_then(exec_failure);
            let mut response = ApiError::from(error).into_response();
            if let Some(word) = failure {
                response.headers_mut().insert(EXEC_FAILURE, axum::http::HeaderValue::from_static(word));
            }
            Ok(response)
        }
        Err(error) => Err(ApiError::of(StatusCode::INTERNAL_SERVER_ERROR, &error)),
    }
}

/// The word for why a command could not be executed, if it is one of the two that shells tell apart.
pub(crate) fn exec_failure(error: &std::io::Error) -> Option<&'static str> {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Some("not found"),
        std::io::ErrorKind::PermissionDenied => Some("not executable"),
        // ENOEXEC, a file that is no program, has no kind of its own.
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => Some("not executable"),
        _ => None,
    }
}

/// Waits for the end of a container, for as long as that takes; but not past the end of the agent.
async fn wait(api: &Api, id: &ContainerId) -> Result<Termination, ApiError> {
    tokio::select! {
        ended = api.agent.wait(id) => ended.ok_or_else(|| ApiError::unknown(id)),
        () = api.stopped() => Err(ApiError::stopping()),
    }
}

async fn kill(api: &Api, id: &ContainerId, signal: i32) -> Answer {
    if !(1..=libc::SIGRTMAX()).contains(&signal) {
        return Err(ApiError::bad(format!("there is no signal {signal}")));
    }
    if api.agent.kill(id, signal).await? { done() } else { Err(ApiError::unknown(id)) }
}

/// Removing twice is no error for a nested container whose root is known, as in Mesos.
async fn remove(api: &Api, id: &ContainerId) -> Answer {
    let known = api.agent.remove(id).await?;
    if known || (id.is_nested() && api.agent.inspect(&id.root()).is_some()) {
        done()
    } else {
        Err(ApiError::unknown(id))
    }
}

/// Containers with status and use, asked for all at once.
pub(super) async fn containers(api: &Arc<Api>, shown: impl Fn(&Summary) -> bool) -> Vec<wire::Container> {
    /// Containers asked at the same time: each asks every plugin.
    const AT_ONCE: usize = 32;
    let mut waiting = api.agent.containers().into_iter().filter(|summary| shown(summary));
    let mut asked = JoinSet::new();
    let mut answers = Vec::new();
    loop {
        while asked.len() < AT_ONCE
            && let Some(summary) = waiting.next()
        {
            let agent = api.agent.clone();
            asked.spawn(async move {
                let live = !matches!(summary.phase, Phase::Ended);
                let (usage, status) = if live {
                    tokio::join!(agent.usage(&summary.id), agent.status(&summary.id))
                } else {
                    (None, None)
                };
                show::container(&summary, usage, status)
            });
        }
        match asked.join_next().await {
            Some(Ok(container)) => answers.push(container),
            Some(Err(error)) => tracing::error!(%error, "a container could not be shown"),
            None => break,
        }
    }
    answers.sort_by_cached_key(|container| container.container_id.to_string());
    answers
}

fn done() -> Answer {
    Ok(StatusCode::OK.into_response())
}

#[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "reads best at its callers")]
fn message(response: Response) -> Answer {
    Ok(json(&response))
}
