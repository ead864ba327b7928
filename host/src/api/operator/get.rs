//! The GET endpoints.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::http::StatusCode;
use serde_json::{Value as Json, json};

use super::encode;
use super::error::ApiError;
use super::listing;
use super::types as wire;
use crate::api::context::ApiContext;
use cofferdam_core::model::ContainerId;
use cofferdam_core::model::view::WantedReports;

/// `GET /containers`: all top-level containers, or the one with the id `only`.
pub(super) async fn containers(
    context: &Arc<ApiContext>,
    only: Option<&str>,
) -> Result<Vec<wire::ContainerEntry>, ApiError> {
    let only = only
        .map(ContainerId::parse)
        .transpose()
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, &error))?;
    let containers = listing::containers(context, WantedReports::ALL, |summary| match &only {
        Some(id) => summary.id == *id,
        None => !summary.id.is_nested(),
    });
    Ok(containers.await.into_iter().map(container_entry).collect())
}

fn container_entry(container: wire::Container) -> wire::ContainerEntry {
    let ancestors =
        std::iter::successors(container.container_id.parent.as_deref(), |id| id.parent.as_deref());
    let mut parents: Vec<String> = ancestors.map(|id| id.value.clone()).collect();
    parents.reverse();
    wire::ContainerEntry {
        container_id: container.container_id.value,
        parents,
        status: container.container_status,
        statistics: container.resource_statistics,
        framework_id: container.framework_id.map(|id| id.value),
        source: container.executor_id.as_ref().map(|id| id.value.clone()),
        executor_id: container.executor_id.map(|id| id.value),
        executor_name: container.executor_name,
    }
}

/// `GET /monitor/statistics`: all executors, and the other top-level containers in the place of executors.
pub(super) async fn statistics(context: &Arc<ApiContext>) -> Vec<wire::StatisticsEntry> {
    let containers =
        listing::containers(context, WantedReports::USAGE, |summary| !summary.id.is_nested()).await;
    let entries = containers.into_iter().filter_map(|container| {
        Some(wire::StatisticsEntry {
            framework_id: container.framework_id.map(|id| id.value).unwrap_or_default(),
            source: container.executor_id.as_ref().map(|id| id.value.clone()).unwrap_or_default(),
            executor_id: container.executor_id.map_or(container.container_id.value, |id| id.value),
            executor_name: container.executor_name.unwrap_or_default(),
            statistics: container.resource_statistics?,
        })
    });
    entries.collect()
}

/// `GET /flags`.
pub(super) fn flags(context: &ApiContext) -> wire::FlagsPage {
    wire::FlagsPage { flags: encode::flags(&context.config) }
}

/// `GET /state`.
pub(super) fn state(context: &ApiContext) -> wire::StatePage {
    let config = &context.config;
    let executors = context.agent.executors();
    let resources = encode::host_resources(&context.agent).into_iter();
    let directory = |id: &ContainerId| Some(context.agent.inspect(id)?.sandbox.display().to_string());
    let (frameworks, completed_frameworks) = encode::task::state_frameworks(executors, directory);
    wire::StatePage {
        frameworks,
        completed_frameworks,
        version: encode::version().version,
        start_time: context.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        // As `agent_id` and `slave_id` elsewhere.
        id: executors.agent_id().to_owned(),
        pid: config.socket.display().to_string(),
        hostname: encode::hostname(),
        resources: resources.map(|(name, amount)| (name.to_owned(), json!(amount))).collect(),
        flags: encode::flags(config),
        ..wire::StatePage::default()
    }
}

/// `GET /containerizer/debug`: what plugins have been called for and not returned from.
pub(super) fn pending(context: &ApiContext) -> Json {
    let calls = context.agent.calls_in_progress().into_iter().map(|call| {
        let args = json!({"containerId": call.container, "seconds": format!("{:.3}", call.seconds)});
        json!({"operation": format!("{}::{}", call.plugin, call.method), "args": args})
    });
    json!({"pending": calls.collect::<Vec<_>>()})
}
