//! The GET endpoints.

use std::collections::BTreeMap;
use std::fs;
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
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let executors = context.agent.executors();
    let directory = |id: &ContainerId| Some(context.agent.inspect(id)?.sandbox.display().to_string());
    let (frameworks, completed_frameworks) = encode::task::state_frameworks(executors, directory);
    wire::StatePage {
        frameworks,
        completed_frameworks,
        version: encode::version().version,
        start_time: context.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        id: machine_id().unwrap_or_else(|| hostname.clone()),
        pid: config.socket.display().to_string(),
        hostname,
        resources: host_resources(context),
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

/// Content of machine-id(5), which survives restarts and reboots.
fn machine_id() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Resources of the host in Mesos units, as far as the kernel reports them.
#[expect(clippy::cast_precision_loss, reason = "rounded to MiB")]
fn host_resources(context: &ApiContext) -> BTreeMap<String, Json> {
    const MIB: f64 = 1024.0 * 1024.0;
    let cpus = std::thread::available_parallelism().ok().map(|cpus| json!(cpus.get()));
    let memory = rustix::system::sysinfo();
    let mem = memory.totalram as f64 * f64::from(memory.mem_unit) / MIB;
    let disk = rustix::fs::statvfs(&context.agent.config().work_dir).ok();
    let disk = disk.map(|disk| json!((disk.f_blocks as f64 * disk.f_frsize as f64 / MIB).floor()));
    [("cpus", cpus), ("gpus", Some(json!(0))), ("mem", Some(json!(mem.floor()))), ("disk", disk)]
        .into_iter()
        .filter_map(|(name, amount)| Some((name.to_owned(), amount?)))
        .collect()
}
