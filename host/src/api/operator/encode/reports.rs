//! What plugins report about a running container: status and usage.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::id::encode_id;
use crate::api::operator::types as wire;
use cofferdam_core::model::view::{StatusView, Summary, UsageView};
use cofferdam_core::model::{Limit, Resources};

/// Encodes the status that plugins report, and the pid. Fields of the wrong type are left out.
pub(super) fn status(summary: &Summary, reported: Option<&StatusView>) -> wire::ContainerStatus {
    let fields =
        reported.into_iter().flat_map(|view| &view.status).filter(|(name, _)| *name != "executor_pid");
    let fields: Map<String, Json> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut status: wire::ContainerStatus = match fields.is_empty() {
        true => wire::ContainerStatus::default(),
        false => decode_valid(&Map::new(), fields),
    };
    status.container_id = Some(encode_id(&summary.id));
    status.executor_pid = summary.pid.and_then(|pid| pid.try_into().ok());
    status
}

/// Encodes usage. Numbers are converted to the types of their fields. Values of the wrong type are left out. What no plugin
/// reports of limits and requests is that of the container's resources.
pub(super) fn statistics(usage: &UsageView, resources: &Resources) -> wire::ResourceStatistics {
    let mut statistics = reported_statistics(usage);
    let fill = |field: &mut Option<u64>, bytes: Option<u64>| *field = field.or(bytes);
    // A request for CPUs is no limit unless a plugin makes it one, and reports it then.
    let cpus_limit = match resources.limits.get("cpus") {
        Some(Limit::At(cpus)) => Some(*cpus),
        _ => None,
    };
    statistics.cpus_limit = statistics.cpus_limit.or(cpus_limit);
    statistics.cpus_soft_limit = statistics.cpus_soft_limit.or(resources.cpus());
    fill(&mut statistics.mem_limit_bytes, resources.mem_limit_bytes().flatten());
    fill(&mut statistics.mem_soft_limit_bytes, resources.mem_bytes());
    statistics
}

fn reported_statistics(usage: &UsageView) -> wire::ResourceStatistics {
    let reported = usage.statistics.iter().filter(|(name, _)| *name != "timestamp");
    let number = |value: &Json| value.as_f64().map_or_else(|| Some(value.clone()), to_json);
    let fields = reported.filter_map(|(name, value)| Some((name.clone(), number(value)?)));
    let timestamp = if usage.timestamp.is_finite() { usage.timestamp } else { 0.0 };
    decode_valid(&Map::from_iter([("timestamp".to_owned(), json!(timestamp))]), fields.collect())
}

/// Decodes the fields of a message. Numbers are rounded where the message has integers; other values of the wrong type are
/// left out.
fn decode_valid<T: DeserializeOwned + Default>(
    required: &Map<String, Json>,
    mut fields: Map<String, Json>,
) -> T {
    fields.extend(required.clone());
    // Mostly, all are valid.
    if let Ok(message) = T::deserialize(&fields) {
        return message;
    }
    let is_valid = |name: &str, value: &Json| {
        let mut field = required.clone();
        field.insert(name.to_owned(), value.clone());
        T::deserialize(&field).is_ok()
    };
    let mut valid = required.clone();
    for (name, value) in fields {
        let rounded = value.as_f64().and_then(|number| to_json(number.round()));
        match [Some(value.clone()), rounded].into_iter().flatten().find(|value| is_valid(&name, value)) {
            Some(value) => {
                valid.insert(name, value);
            }
            None => tracing::debug!(name, %value, "a reported value has the wrong type and is left out"),
        }
    }
    T::deserialize(&valid).unwrap_or_default()
}

/// A number as JSON: an integer if it has no fraction, as counters are integers in messages. `None` if not finite.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
fn to_json(number: f64) -> Option<Json> {
    const END: f64 = u64::MAX as f64;
    match number {
        number if !number.is_finite() => None,
        number if number.fract() == 0.0 && (0.0..END).contains(&number) => Some(json!(number as u64)),
        number => Some(json!(number)),
    }
}

/// Plugins that failed to report.
pub(super) fn failures(usage: Option<&UsageView>, status: Option<&StatusView>) -> Vec<wire::PluginFailure> {
    let usage = usage.into_iter().flat_map(|usage| &usage.failed).map(|failed| ("usage", failed));
    let status = status.into_iter().flat_map(|status| &status.failed).map(|failed| ("status", failed));
    let encode = |(method, (plugin, message)): (&str, (&String, &String))| wire::PluginFailure {
        plugin: plugin.clone(),
        method: method.to_owned(),
        message: message.clone(),
    };
    usage.chain(status).map(encode).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use cofferdam_core::model::{ContainerClass, ContainerId, Phase};

    #[test]
    fn numbers_are_converted_to_the_types_of_their_fields() {
        let statistics = BTreeMap::from([
            ("mem_rss_bytes".to_owned(), json!(4096.0)),
            ("mem_limit_bytes".to_owned(), json!(1e30)),
            ("cpus_nr_periods".to_owned(), json!(7.4)),
            ("cpus_user_time_secs".to_owned(), json!(2.0)),
            ("cpus_limit".to_owned(), json!(null)),
            ("net_ephemeral_ports".to_owned(), json!({"begin": 1, "end": 2})),
            ("disk_statistics".to_owned(), json!("none")),
            ("acme_widgets".to_owned(), json!(1.5)),
            ("timestamp".to_owned(), json!(99.0)),
        ]);
        let usage = UsageView { timestamp: 5.5, statistics, ..UsageView::default() };
        let encoded = serde_json::to_value(super::statistics(&usage, &Resources::default())).unwrap();
        assert_eq!(
            encoded,
            json!({"timestamp": 5.5, "mem_rss_bytes": 4096, "cpus_nr_periods": 7, "cpus_user_time_secs": 2.0,
                   "net_ephemeral_ports": {"begin": 1, "end": 2}, "acme_widgets": 1.5})
        );
    }

    #[test]
    fn limits_are_those_of_the_resources_unless_they_are_reported() {
        let resources =
            Resources::default().with("cpus", 0.5).with("mem", 64.0).with_limit("cpus", Limit::At(2.0));
        let reported = BTreeMap::from([("mem_limit_bytes".to_owned(), json!(4096))]);
        let usage = |statistics| UsageView { statistics, ..UsageView::default() };
        let encoded = super::statistics(&usage(reported), &resources);
        assert_eq!((encoded.cpus_limit, encoded.cpus_soft_limit), (Some(2.0), Some(0.5)));
        assert_eq!((encoded.mem_limit_bytes, encoded.mem_soft_limit_bytes), (Some(4096), Some(64 << 20)));
        let unlimited = resources.with_limit("mem", Limit::Unlimited);
        assert_eq!(super::statistics(&usage(BTreeMap::new()), &unlimited).mem_limit_bytes, None);
        let requested = super::statistics(&usage(BTreeMap::new()), &Resources::default().with("cpus", 0.5));
        assert_eq!((requested.cpus_limit, requested.cpus_soft_limit), (None, Some(0.5)));
    }

    #[test]
    fn a_status_of_the_wrong_type_is_left_out() {
        let summary = Summary {
            id: ContainerId::parse("web").unwrap(),
            class: ContainerClass::default(),
            phase: Phase::Running,
            pid: Some(42),
            command: String::new(),
            created_unix_ms: 0,
            termination: None,
            resources: Resources::default(),
            cleanup_errors: Vec::new(),
            pull: None,
            fetch: None,
        };
        let view = StatusView {
            status: BTreeMap::from([
                ("cgroup_info".to_owned(), json!({"net_cls": {"classid": 7}})),
                ("network_infos".to_owned(), json!("none")),
                ("executor_pid".to_owned(), json!(1)),
            ]),
            ..StatusView::default()
        };
        let status = status(&summary, Some(&view));
        assert_eq!((status.executor_pid, status.network_infos.len()), (Some(42), 0));
        assert_eq!(status.cgroup_info.unwrap().net_cls.unwrap().classid, Some(7));
    }
}
