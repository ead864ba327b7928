//! The pages that are fetched with GET.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::http::StatusCode;
use serde_json::{Value as Json, json};

use super::error::ApiError;
use super::types as wire;
use super::{Api, calls, show};
use cofferdam_core::model::ContainerId;

/// `GET /containers`: every top-level container, or the one that is asked for.
pub(super) async fn containers(
    api: &Arc<Api>,
    asked: Option<&str>,
) -> Result<Vec<wire::ContainerEntry>, ApiError> {
    let asked = asked
        .map(ContainerId::parse)
        .transpose()
        .map_err(|error| ApiError::of(StatusCode::BAD_REQUEST, &error))?;
    let shown = calls::containers(api, |summary| match &asked {
        Some(id) => summary.id == *id,
        None => !summary.id.is_nested(),
    });
    Ok(shown.await.into_iter().map(entry).collect())
}

fn entry(container: wire::Container) -> wire::ContainerEntry {
    let mut parents = Vec::new();
    let mut level = container.container_id.parent.as_deref();
    while let Some(id) = level {
        parents.insert(0, id.value.clone());
        level = id.parent.as_deref();
    }
    wire::ContainerEntry {
        container_id: container.container_id.value,
        parents,
        status: container.container_status,
        statistics: container.resource_statistics,
        ..wire::ContainerEntry::default()
    }
}

/// `GET /monitor/statistics`: every top-level container as if it were an executor, since collectors expect
/// those.
pub(super) async fn statistics(api: &Arc<Api>) -> Vec<wire::StatisticsEntry> {
    let shown = calls::containers(api, |summary| !summary.id.is_nested()).await;
    let entries = shown.into_iter().filter_map(|container| {
        Some(wire::StatisticsEntry {
            executor_id: container.container_id.value,
            statistics: container.resource_statistics?,
            ..wire::StatisticsEntry::default()
        })
    });
    entries.collect()
}

/// `GET /flags`.
pub(super) fn flags(api: &Api) -> wire::FlagsPage {
    wire::FlagsPage { flags: show::flags(&api.config) }
}

/// `GET /state`.
pub(super) fn state(api: &Api) -> wire::StatePage {
    let config = &api.config;
    let version = show::version();
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    wire::StatePage {
        version: version.version,
        start_time: api.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        id: machine().unwrap_or_else(|| hostname.clone()),
        pid: config.socket.display().to_string(),
        hostname,
        resources: resources(api),
        flags: show::flags(config),
        ..wire::StatePage::default()
    }
}

/// What systemd calls this machine: it outlives restarts of the agent and of the machine.
fn machine() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// What the host has, in the units of resources.
#[expect(clippy::cast_precision_loss, reason = "nobody has so much that a byte counts")]
fn resources(api: &Api) -> BTreeMap<String, Json> {
    const MIB: f64 = 1024.0 * 1024.0;
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = rustix::system::sysinfo();
    let mem = info.totalram as f64 * f64::from(info.mem_unit) / MIB;
    let disk = rustix::fs::statvfs(&api.agent.config().work_dir)
        .map_or(0.0, |disk| disk.f_blocks as f64 * disk.f_frsize as f64 / MIB);
    [("cpus", json!(cpus)), ("gpus", json!(0)), ("mem", json!(mem.floor())), ("disk", json!(disk.floor()))]
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), amount))
        .collect()
}
