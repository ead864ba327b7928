//! Usage of single containers. Plugins measure it, so that it is as fresh as the request.

use std::fmt;
use std::time::Duration;

use cofferdam_core::agent::Agent;
use cofferdam_core::model::view::{UsageView, WantedReports};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::number::count;
use super::usage;

/// How many containers have series of their own. Those of more would be too many for whoever stores them.
pub(super) const MAX_CONTAINERS: usize = 1000;

/// How long the usage is awaited. Those who collect metrics wait for all of them, for ten seconds as a rule.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// Usage of single containers.
#[derive(Debug, Default)]
pub(super) struct ContainerUsage {
    /// By their ids.
    containers: Vec<(String, UsageView)>,
    /// Running containers that are not among them.
    omitted: u64,
}

impl ContainerUsage {
    /// Asks the plugins about running containers, those that were launched first if there are too many.
    pub(super) async fn take(agent: &Agent) -> Self {
        let mut running: Vec<_> =
            agent.containers().into_iter().filter(|container| container.pid.is_some()).collect();
        running.sort_by_key(|container| container.created_unix_ms);
        let omitted = running.len().saturating_sub(MAX_CONTAINERS);
        running.truncate(MAX_CONTAINERS);
        let ids: Vec<_> = running.into_iter().map(|container| container.id).collect();
        let wanted = WantedReports { within: Some(MAX_WAIT), ..WantedReports::USAGE };
        let reports = agent.reports(&ids, wanted).await;
        let usage = ids.iter().zip(reports).filter_map(|(id, report)| Some((id.to_string(), report.usage?)));
        let containers: Vec<_> = usage.collect();
        let omitted = omitted + ids.len() - containers.len();
        Self { containers, omitted: u64::try_from(omitted).unwrap_or(u64::MAX) }
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, unit, kind, value) in METRICS {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for (id, usage) in &self.containers {
                let Some(value) = value(usage).filter(|value| value.is_finite()) else { continue };
                let labels = [("container", id.as_str())];
                let family = metric.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(family)?,
                    _ => ConstGauge::new(value).encode(family)?,
                }
            }
        }
        ConstGauge::new(count(self.omitted)).encode(encoder.encode_descriptor(
            "containers_without_series",
            "Running containers that have no series: there are too many, or their usage was not known in time",
            None,
            MetricType::Gauge,
        )?)
    }
}

type Metric = (&'static str, &'static str, Option<Unit>, MetricType, fn(&UsageView) -> Option<f64>);

const METRICS: [Metric; 9] = [
    ("container_cpu", "CPU time of a container", Some(Unit::Seconds), MetricType::Counter, |stats| {
        usage::cpu_time(stats.number("cpus_user_time_secs"), stats.number("cpus_system_time_secs"))
    }),
    ("container_cpu_limit", "CPUs that a container may use", None, MetricType::Gauge, |usage| {
        usage.number("cpus_limit")
    }),
    (
        "container_throttled",
        "Time for which a container was throttled",
        Some(Unit::Seconds),
        MetricType::Counter,
        |usage| usage.number("cpus_throttled_time_secs"),
    ),
    (
        "container_memory",
        "Memory that is charged to a container",
        Some(Unit::Bytes),
        MetricType::Gauge,
        |stats| usage::memory(stats.number("mem_total_bytes"), stats.number("mem_rss_bytes")),
    ),
    (
        "container_memory_limit",
        "Memory limit of a container",
        Some(Unit::Bytes),
        MetricType::Gauge,
        |usage| usage.number("mem_limit_bytes"),
    ),
    ("container_processes", "Processes of a container", None, MetricType::Gauge, |usage| {
        usage.number("processes")
    }),
    ("container_disk", "Disk space that a container uses", Some(Unit::Bytes), MetricType::Gauge, |usage| {
        usage.number("disk_used_bytes")
    }),
    (
        "container_network_received",
        "Bytes that a container has received",
        Some(Unit::Bytes),
        MetricType::Counter,
        |usage| usage.number("net_rx_bytes"),
    ),
    (
        "container_network_sent",
        "Bytes that a container has sent",
        Some(Unit::Bytes),
        MetricType::Counter,
        |usage| usage.number("net_tx_bytes"),
    ),
];

#[cfg(test)]
impl ContainerUsage {
    pub(super) fn sample() -> Self {
        let statistics = serde_json::json!({
            "cpus_user_time_secs": 1.5, "cpus_system_time_secs": 0.5, "mem_total_bytes": 1024, "processes": 3,
            "mem_limit_bytes": "none",
        });
        let statistics = serde_json::from_value(statistics).expect("an object");
        Self {
            containers: vec![("pod.web".to_owned(), UsageView { statistics, ..UsageView::default() })],
            omitted: 2,
        }
    }
}
