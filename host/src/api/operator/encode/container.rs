//! Containers, in lists and one by one.

use std::path::Path;

use super::id::encode_id;
use super::image::{encode_fetch, pull};
use super::launch::encode_launch;
use super::reports;
use super::resources::{encode_limits, encode_resources};
use super::termination::termination;
use crate::api::operator::types as wire;
use cofferdam_core::model::view::{Inspection, ParticipantView, PlanEntry, Report, Summary};

/// Encodes an entry of a list.
pub(in crate::api::operator) fn container(
    summary: &Summary,
    Report { usage, status }: &Report,
) -> wire::Container {
    let (usage, status) = (usage.as_ref(), status.as_ref());
    wire::Container {
        container_id: encode_id(&summary.id),
        container_status: Some(reports::status(summary, status)),
        resource_statistics: usage.map(|usage| reports::statistics(usage, &summary.resources)),
        state: Some(summary.phase.name().to_owned()),
        command: Some(summary.command.clone()),
        launched: launched(summary),
        termination: summary.termination.as_ref().map(termination),
        cleanup_errors: summary.cleanup_errors.clone(),
        pull: summary.pull.as_ref().map(pull),
        fetch: summary.fetch.as_ref().map(encode_fetch),
        failures: reports::failures(usage, status),
        ..wire::Container::default()
    }
}

/// Encodes the details of one container.
pub(in crate::api::operator) fn inspection(inspection: &Inspection) -> wire::InspectedContainer {
    let summary = &inspection.summary;
    let path = |path: &Path| path.to_string_lossy().into_owned();
    wire::InspectedContainer {
        container_id: encode_id(&summary.id),
        state: summary.phase.name().to_owned(),
        pid: summary.pid,
        command: summary.command.clone(),
        launched: launched(summary),
        pull: summary.pull.as_ref().map(pull),
        fetch: summary.fetch.as_ref().map(encode_fetch),
        sandbox: path(&inspection.sandbox),
        stdout: inspection.logs.stdout.as_deref().map(path),
        stderr: inspection.logs.stderr.as_deref().map(path),
        stdout_file: inspection.logs.stdout_file.map(String::from),
        stderr_file: inspection.logs.stderr_file.map(String::from),
        log_times: inspection.logs.times.then_some(true),
        uid: Some(inspection.uid),
        request: encode_launch(&inspection.request),
        resources: encode_resources(&summary.resources),
        limits: encode_limits(&summary.resources),
        plan: inspection.plan.iter().map(plan_entry).collect(),
        plugins: inspection.plugins.iter().map(participant).collect(),
        cleanup_errors: summary.cleanup_errors.clone(),
        termination: summary.termination.as_ref().map(termination),
    }
}

/// Unknown for one of which only the id is known.
fn launched(summary: &Summary) -> Option<wire::TimeInfo> {
    (summary.created_unix_ms > 0).then(|| time(summary.created_unix_ms))
}

fn plan_entry(entry: &PlanEntry) -> wire::PlanEntry {
    wire::PlanEntry { field: entry.field.clone(), value: entry.value.clone(), owner: entry.owner.clone() }
}

fn participant(participant: &ParticipantView) -> wire::Participant {
    wire::Participant {
        plugin: participant.plugin.clone(),
        version: participant.version.clone(),
        state: participant.state.clone(),
        unavailable: participant.unavailable.clone(),
    }
}

fn time(unix_ms: u64) -> wire::TimeInfo {
    let nanoseconds = unix_ms.checked_mul(1_000_000).and_then(|nanoseconds| nanoseconds.try_into().ok());
    wire::TimeInfo { nanoseconds: nanoseconds.unwrap_or(i64::MAX) }
}
