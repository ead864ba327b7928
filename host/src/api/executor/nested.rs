//! Containers that an executor nests in its own, by calls of the operator API.
//!
//! An executor must not get more than its framework was given: a nested container has the user of the executor or of one of
//! its tasks, no options that none of its tasks has, and no secrets that none of its tasks or their checks has.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::Response as HttpResponse;
use serde_json::Value as Json;

use super::requests::{InProgress, Kind, too_many};
use crate::api::context::ApiContext;
use crate::api::operator::calls;
use crate::api::operator::decode::task::{Settings, container_request, typed};
use crate::api::operator::decode::{decode_launch, decode_nested_launch, decode_session};
use crate::api::operator::error::ApiError;
use crate::api::operator::media::ResponseMedia;
use crate::api::operator::tasks::settings;
use crate::api::operator::types::{self as wire, Call};
use cofferdam_core::executor::Executor;
use cofferdam_core::model::{ContainerId, LinuxOptions, Request, Secret};

type Result<T = HttpResponse> = std::result::Result<T, ApiError>;

/// Carries out one call, if an executor may make it.
pub(super) async fn dispatch(
    context: &Arc<ApiContext>,
    executor: &Executor,
    in_progress: &InProgress,
    media: ResponseMedia,
    call: Call,
) -> Result {
    if call.is_wait() && !in_progress.becomes(Kind::Wait) {
        return Err(too_many());
    }
    let request = match &call {
        Call::LaunchContainer(call) => Some(decode_launch(call)?),
        Call::LaunchNestedContainer(call) => Some(decode_nested_launch(call)?),
        Call::LaunchNestedContainerSession(call) => Some(decode_session(call)?),
        _ => None,
    };
    let id = match &call {
        Call::LaunchContainer(call) => &call.container_id,
        Call::LaunchNestedContainer(call) | Call::LaunchNestedContainerSession(call) => &call.container_id,
        Call::WaitContainer(call) | Call::WaitNestedContainer(call) => &call.container_id,
        Call::KillContainer(call) | Call::KillNestedContainer(call) => &call.container_id,
        Call::RemoveContainer(call) | Call::RemoveNestedContainer(call) => &call.container_id,
        other => return Err(forbidden(format!("an executor must not call `{}`", other.type_name()))),
    };
    let own = executor.container();
    if id.depth() == 0 || id.root().value != own.as_str() {
        return Err(forbidden(format!("container `{id}` is not nested in `{own}`, that of the executor")));
    }
    if !executor.is_launched() {
        let text = format!("the launch of container `{own}` of the executor is not complete; try again");
        return Err(ApiError::message(StatusCode::SERVICE_UNAVAILABLE, text));
    }
    if let Some(request) = request {
        check(context, executor, &request)?;
    }
    calls::dispatch(context, media, call).await
}

/// Checks that a nested container has nothing that the executor's framework was not given.
fn check(context: &ApiContext, executor: &Executor, request: &Request) -> Result<()> {
    let own = context.agent.inspect(executor.container());
    let own_user = own.and_then(|own| own.request.command.user);
    let user = &request.command.user;
    let wanted = options(request)?;
    let is_plain = wanted == Request::shell(wanted.id.clone(), String::new());
    if is_plain && request.command.secrets.is_empty() && (user.is_none() || *user == own_user) {
        return Ok(());
    }
    let live: Vec<Json> = {
        let state = executor.state();
        let live = state.tasks.values().filter(|task| !task.state.is_terminal());
        live.map(|task| task.info.clone()).collect()
    };
    let tasks = live.iter().map(|info| typed("task_info", info));
    let tasks = tasks.collect::<std::result::Result<Vec<wire::TaskInfo>, _>>()?;
    let is_user = |info: &wire::TaskInfo| info.command.as_ref().is_some_and(|command| command.user == *user);
    if user.is_some() && *user != own_user && !tasks.iter().any(is_user) {
        return Err(forbidden("`command.user` is neither that of the executor nor that of one of its tasks"));
    }
    let mut settings = settings(context)?;
    settings.default_container = None;
    check_secrets(&live, request, &settings)?;
    if is_plain {
        return Ok(());
    }
    for info in &tasks {
        let nested =
            container_request("task_info", info.command.as_ref(), info.container.as_ref(), &settings)?;
        if wanted == options(&nested)? {
            return Ok(());
        }
    }
    Err(forbidden("`container` and `command.uris` are not those of one of the executor's tasks"))
}

fn check_secrets(tasks: &[Json], request: &Request, settings: &Settings<'_>) -> Result<()> {
    let mut missing = request.command.secrets.clone();
    for info in tasks {
        if missing.is_empty() {
            break;
        }
        for (name, given) in secrets_of(info, settings)? {
            if missing.get(&name) == Some(&given) {
                missing.remove(&name);
            }
        }
    }
    match missing.keys().next() {
        Some(name) => Err(forbidden(format!(
            "the secret for the environment variable `{name}` is not that of one of the executor's tasks"
        ))),
        None => Ok(()),
    }
}

/// The secrets in the environments of a task's command, and of those that check it.
fn secrets_of(info: &Json, settings: &Settings<'_>) -> Result<Vec<(String, Secret)>> {
    let mut secrets = Vec::new();
    for path in ["/command", "/health_check/command", "/check/command/command"] {
        if let Some(command) = info.pointer(path).filter(|command| !command.is_null()) {
            let command: wire::CommandInfo = typed("task_info", command)?;
            secrets.extend(container_request("task_info", Some(&command), None, settings)?.command.secrets);
        }
    }
    Ok(secrets)
}

/// A request without what any nested container may have: its id, its command, and what is less than its parent has.
fn options(request: &Request) -> Result<Request> {
    let id =
        ContainerId::parse("executor").map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, &error))?;
    // The agent fetches them, which has another network and other files than the container.
    let uris = request.uris.clone();
    let Request { image, force_pull_image, image_credentials, .. } = request.clone();
    let Request { volume_image_credentials, rootfs, linux, volumes, networks, rlimits, tty, docker, .. } =
        request.clone();
    // It cannot use more than the container that it is nested in.
    let linux = LinuxOptions { share_cgroups: LinuxOptions::default().share_cgroups, ..linux };
    let bare = Request::shell(id, String::new());
    Ok(Request {
        uris,
        image,
        force_pull_image,
        image_credentials,
        volume_image_credentials,
        rootfs,
        linux,
        volumes,
        networks,
        rlimits,
        tty,
        docker,
        ..bare
    })
}

fn forbidden(text: impl Into<String>) -> ApiError {
    ApiError::message(StatusCode::FORBIDDEN, text)
}
