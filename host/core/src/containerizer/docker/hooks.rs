//! Calls of hooks during a launch.

use std::collections::BTreeMap;

use cofferdam_plugin_model::{DockerLaunch, DockerParameter, ExecutorDetails, Method};

use super::record::{DockerRecord, Handle};
use super::spec::OWN_VARIABLES;
use super::{LaunchError, Shared};
use crate::containerizer::fetched::fetched;
use crate::hooks::HookError;
use crate::model::{DockerNetwork, Record};

/// Asks hooks for the environment of a container, before anything is fetched: that of its executor, and that of its task,
/// which takes precedence. They are one environment, as the container has either.
pub(super) async fn pre_launch(
    shared: &Shared,
    handle: &Handle,
    executor: Option<ExecutorDetails>,
) -> Result<BTreeMap<String, String>, LaunchError> {
    if !shared.hooks.has(Method::PreLaunchDocker) {
        return Ok(BTreeMap::new());
    }
    let launch = described(shared, &handle.record(), executor);
    let reply = shared.hooks.pre_launch_docker(handle.id(), &launch).await;
    let reply = reply.map_err(|source| hook_error(handle, source))?;
    let mut environment = reply.executor_environment;
    environment.extend(reply.task_environment);
    for name in OWN_VARIABLES {
        if environment.remove(name).is_some() {
            tracing::warn!(container = %handle.id(), "`{name}` is set by the agent, and not by hooks");
        }
    }
    Ok(environment)
}

/// Shows hooks the sandbox, when the image is there.
pub(super) async fn post_fetch(shared: &Shared, handle: &Handle) -> Result<(), LaunchError> {
    if !shared.hooks.has(Method::PostFetch) {
        return Ok(());
    }
    let record = handle.record();
    let outcome = shared.hooks.post_fetch(handle.id(), &fetched(&record, true), &record.sandbox).await;
    outcome.map_err(|source| hook_error(handle, source))
}

/// A container as hooks see it.
fn described(
    shared: &Shared,
    record: &Record<DockerRecord>,
    executor: Option<ExecutorDetails>,
) -> DockerLaunch {
    let request = &record.request;
    let options = request.docker.clone().unwrap_or_default();
    let parameter = |parameter: crate::model::DockerParameter| DockerParameter {
        key: parameter.key,
        value: parameter.value,
    };
    DockerLaunch {
        name: record.part.name.clone(),
        image: options.image,
        privileged: options.privileged,
        network: match options.network {
            DockerNetwork::Host => "host",
            DockerNetwork::Bridge => "bridge",
            DockerNetwork::None => "none",
            DockerNetwork::User => "user",
        }
        .to_owned(),
        port_mappings: options.port_mappings,
        parameters: options.parameters.into_iter().map(parameter).collect(),
        command: request.command.clone(),
        resources: request.resources.clone(),
        labels: request.labels.clone(),
        volumes: request.volumes.clone(),
        networks: request.networks.clone(),
        sandbox_path: shared.backend.config.sandbox_directory.clone(),
        executor,
    }
}

fn hook_error(handle: &Handle, source: HookError) -> LaunchError {
    LaunchError::Hook { id: handle.id().clone(), phase: handle.phase(), source }
}
