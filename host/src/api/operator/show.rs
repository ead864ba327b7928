//! What the agent shows of itself, in the words of the wire.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::launch::{from_request, wire_id, wire_limits, wire_resource, wire_resources};
use super::types as wire;
use crate::config::Config;
use cofferdam_core::model::view::{Inspection, PluginView, StatusView, Summary, UsageView};
use cofferdam_core::model::{Reason, Termination};

/// How a container ended. Reasons that Mesos has no word for leave theirs out; the message says it.
pub(super) fn termination(ended: &Termination) -> wire::Termination {
    use wire::TaskState as State;
    let (state, reason) = match &ended.reason {
        None => (None, None),
        Some(Reason::Killed | Reason::ParentEnded) => (Some(State::TaskKilled), None),
        Some(Reason::LaunchFailed) => {
            (Some(State::TaskFailed), Some(wire::Reason::ReasonContainerLaunchFailed))
        }
        Some(Reason::Limitation(word)) => {
            let known = serde_json::from_value(Json::from(word.as_str()));
            (Some(State::TaskFailed), Some(known.unwrap_or(wire::Reason::ReasonContainerLimitation)))
        }
        Some(Reason::Unrecoverable | Reason::Rebooted) => {
            (Some(State::TaskLost), Some(wire::Reason::ReasonAgentRestarted))
        }
    };
    let resources: Vec<_> =
        ended.limited.iter().filter_map(|(name, value)| wire_resource(name, value)).collect();
    wire::Termination {
        exit_status: ended.status,
        state,
        reason,
        limitation: (!resources.is_empty()).then_some(wire::TaskResourceLimitation { resources }),
        message: ended.message.clone(),
    }
}

/// A container in a list.
pub(super) fn container(
    summary: &Summary,
    usage: Option<UsageView>,
    status: Option<StatusView>,
) -> wire::Container {
    let mut failures = Vec::new();
    for (method, failed) in [
        ("usage", usage.as_ref().map(|usage| &usage.failed)),
        ("status", status.as_ref().map(|status| &status.failed)),
    ] {
        failures.extend(failed.into_iter().flatten().map(|(plugin, message)| wire::PluginFailure {
            plugin: plugin.clone(),
            method: method.to_owned(),
            message: message.clone(),
        }));
    }
    wire::Container {
        container_id: wire_id(&summary.id),
        container_status: Some(container_status(summary, status.as_ref())),
        resource_statistics: usage.as_ref().map(statistics),
        state: Some(summary.phase.name().to_owned()),
        command: Some(summary.command.clone()),
        launched: Some(time(summary.created_unix_ms)),
        termination: summary.termination.as_ref().map(termination),
        stuck: summary.cleanup_errors.clone(),
        failures,
        ..wire::Container::default()
    }
}

/// How a container stands: what plugins say, and its first process.
pub(super) fn container_status(summary: &Summary, view: Option<&StatusView>) -> wire::ContainerStatus {
    let said = view.into_iter().flat_map(|view| &view.status);
    let readable = said.filter(|(name, value)| {
        serde_json::from_value::<wire::ContainerStatus>(json!({name.as_str(): value})).is_ok()
    });
    let entries: Map<String, Json> = readable.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut status: wire::ContainerStatus = serde_json::from_value(entries.into()).unwrap_or_default();
    status.container_id = Some(wire_id(&summary.id));
    status.executor_pid = summary.pid.and_then(|pid| pid.try_into().ok());
    status
}

/// What a container uses. Numbers become what the wire has under their name; structured values must fit as they are.
pub(super) fn statistics(view: &UsageView) -> wire::ResourceStatistics {
    let fits = |name: &str, number: &Json| {
        serde_json::from_value::<wire::ResourceStatistics>(json!({"timestamp": 0, name: number})).is_ok()
    };
    let mut entries = Map::new();
    for (name, value) in view.statistics.iter().filter(|(name, _)| *name != "timestamp") {
        let forms = match value.as_f64() {
            Some(number) => [exact(number), exact(number.round())],
            None => [Some(value.clone()), None],
        };
        match forms.into_iter().flatten().find(|form| fits(name, form)) {
            Some(form) => {
                entries.insert(name.clone(), form);
            }
            None => tracing::debug!(name, %value, "a statistic does not fit the wire"),
        }
    }
    entries.insert("timestamp".to_owned(), json!(finite(view.timestamp)));
    serde_json::from_value(entries.into()).unwrap_or_default()
}

/// A number as JSON: a whole one if it is one, since counters are whole on the wire. None if not finite.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
fn exact(number: f64) -> Option<Json> {
    const END: f64 = u64::MAX as f64;
    match number {
        number if !number.is_finite() => None,
        number if number.fract() == 0.0 && (0.0..END).contains(&number) => Some(json!(number as u64)),
        number => Some(json!(number)),
    }
}

fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

/// Everything about one container.
pub(super) fn inspected(inspection: &Inspection) -> wire::InspectedContainer {
    let summary = &inspection.summary;
    let path = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    wire::InspectedContainer {
        container_id: wire_id(&summary.id),
        state: summary.phase.name().to_owned(),
        pid: summary.pid,
        command: summary.command.clone(),
        launched: time(summary.created_unix_ms),
        sandbox: path(&inspection.sandbox),
        stdout: inspection.logs.stdout.as_ref().map(path),
        stderr: inspection.logs.stderr.as_ref().map(path),
        request: from_request(&inspection.request),
        resources: wire_resources(&summary.resources),
        limits: wire_limits(&summary.resources),
        plan: inspection
            .plan
            .iter()
            .map(|entry| wire::PlanEntry {
                field: entry.field.clone(),
                value: entry.value.clone(),
                owner: entry.owner.clone(),
            })
            .collect(),
        plugins: inspection
            .plugins
            .iter()
            .map(|served| wire::ServingPlugin {
                plugin: served.plugin.clone(),
                version: served.version.clone(),
                state: served.state.clone(),
                refused: served.unavailable.clone(),
            })
            .collect(),
        stuck: summary.cleanup_errors.clone(),
        termination: summary.termination.as_ref().map(termination),
    }
}

/// A plugin.
pub(super) fn plugin(view: &PluginView) -> wire::PluginInfo {
    let calls = view.calls.iter().map(|(method, count)| {
        let count = wire::CallCount {
            calls: count.calls,
            failures: count.failures,
            timeouts: count.timeouts,
            panics: count.panics,
            seconds: std::time::Duration::from_micros(count.micros).as_secs_f64(),
        };
        (method.clone(), count)
    });
    wire::PluginInfo {
        name: view.name.clone(),
        kind: match view.kind.as_str() {
            "logger" => wire::PluginKind::Logger,
            _ => wire::PluginKind::Isolator,
        },
        version: view.version.clone(),
        api_version: Some(view.api.clone()),
        description: Some(view.description.clone()).filter(|text| !text.is_empty()),
        path: view.file.to_string_lossy().into_owned(),
        sha256: view.sha256.clone(),
        nesting: view.nesting,
        standalone: view.standalone,
        health: match view.health.as_str() {
            "ok" => wire::PluginHealth::Healthy,
            "quarantined" => wire::PluginHealth::Quarantined,
            _ => wire::PluginHealth::OutOfService,
        },
        message: view.health_reason.clone(),
        methods: view.methods.clone(),
        calls: calls.collect(),
    }
}

/// Settings by name, as an operator would write them. `isolation` is what Mesos calls the chain.
pub(crate) fn flags(config: &Config) -> BTreeMap<String, String> {
    let names = |plugins: &[cofferdam_core::config::PluginConfig]| {
        plugins.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>().join(",")
    };
    let path = |path: &std::path::Path| path.display().to_string();
    let time = |time| humantime::format_duration(time).to_string();
    let mut flags = BTreeMap::from([
        ("runtime_dir", path(&config.agent.runtime_dir)),
        ("work_dir", path(&config.agent.work_dir)),
        ("socket", path(&config.socket)),
        ("plugin_dir", path(&config.agent.plugin_dir)),
        ("launcher", config.agent.launcher.name().to_owned()),
        ("cgroup_root", path(&config.agent.cgroup_root)),
        ("destroy_timeout", time(config.agent.destroy_timeout)),
        ("log", config.log.clone()),
        ("log_json", config.log_json.to_string()),
        ("api.max_body", format!("{} B", config.api.body)),
        ("api.idle_timeout", time(config.api.idle)),
        ("isolation", names(&config.agent.isolators)),
    ]);
    if let Some(file) = &config.file {
        flags.insert("config", path(file));
    }
    if let Some(logger) = &config.agent.logger {
        flags.insert("logger", logger.name.clone());
    }
    flags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Which agent this is.
pub(super) fn version() -> wire::VersionInfo {
    wire::VersionInfo { version: env!("CARGO_PKG_VERSION").to_owned(), ..wire::VersionInfo::default() }
}

fn time(unix_ms: u64) -> wire::TimeInfo {
    let nanoseconds = unix_ms.checked_mul(1_000_000).and_then(|nanoseconds| nanoseconds.try_into().ok());
    wire::TimeInfo { nanoseconds: nanoseconds.unwrap_or(i64::MAX) }
}

#[cfg(test)]
mod tests {
    use cofferdam_core::model::Value;

    use super::*;

    #[test]
    fn numbers_of_plugins_become_what_the_wire_has_under_their_names() {
        let statistics = BTreeMap::from([
            ("mem_rss_bytes".to_owned(), json!(4096.0)),
            ("mem_limit_bytes".to_owned(), json!(1e30)),
            ("cpus_nr_periods".to_owned(), json!(7.4)),
            ("cpus_user_time_secs".to_owned(), json!(2.0)),
            ("cpus_limit".to_owned(), json!("many")),
            ("acme_widgets".to_owned(), json!(1.5)),
            ("timestamp".to_owned(), json!(99.0)),
        ]);
        let view = UsageView { timestamp: 5.5, statistics, ..UsageView::default() };
        let wire = serde_json::to_value(super::statistics(&view)).unwrap();
        assert_eq!(
            wire,
            json!({"timestamp": 5.5, "mem_rss_bytes": 4096, "cpus_nr_periods": 7, "cpus_user_time_secs": 2.0,
                   "acme_widgets": 1.5})
        );
    }

    #[test]
    fn an_end_by_itself_is_a_status_and_nothing_else() {
        let ended = Termination { status: Some(256), ..Termination::default() };
        assert_eq!(serde_json::to_value(termination(&ended)).unwrap(), json!({"exit_status": 256}));
    }

    #[test]
    fn an_end_by_a_limit_keeps_the_word_of_mesos_or_falls_back_to_a_known_one() {
        let limited = |word: &str| Termination {
            status: Some(9),
            reason: Some(Reason::Limitation(word.to_owned())),
            limited: BTreeMap::from([
                ("mem".to_owned(), Value::Scalar(65.5)),
                ("odd".to_owned(), Value::Scalar(f64::NAN)),
            ]),
            ..Termination::default()
        };
        let wire = serde_json::to_value(termination(&limited("REASON_CONTAINER_LIMITATION_MEMORY"))).unwrap();
        assert_eq!(
            wire,
            json!({"exit_status": 9, "state": "TASK_FAILED", "reason": "REASON_CONTAINER_LIMITATION_MEMORY",
                   "limitation": {"resources": [{"name": "mem", "type": "SCALAR", "scalar": {"value": 65.5}}]}})
        );
        let other = termination(&limited("REASON_OF_A_PLUGIN"));
        assert_eq!(other.reason, Some(wire::Reason::ReasonContainerLimitation));
    }

    #[test]
    fn a_status_that_no_client_could_read_is_left_out() {
        let summary = Summary {
            id: cofferdam_core::model::ContainerId::parse("web").unwrap(),
            class: cofferdam_core::model::ContainerClass::default(),
            phase: cofferdam_core::model::Phase::Running,
            pid: Some(42),
            command: String::new(),
            created_unix_ms: 0,
            termination: None,
            resources: cofferdam_core::model::Resources::default(),
            cleanup_errors: Vec::new(),
        };
        let view = StatusView {
            status: BTreeMap::from([
                ("cgroup_info".to_owned(), json!({"net_cls": {"classid": 7}})),
                ("network_infos".to_owned(), json!("none")),
                ("executor_pid".to_owned(), json!(1)),
            ]),
            ..StatusView::default()
        };
        let status = container_status(&summary, Some(&view));
        assert_eq!((status.executor_pid, status.network_infos.len()), (Some(42), 0));
        assert_eq!(status.cgroup_info.unwrap().net_cls.unwrap().classid, Some(7));
    }
}
