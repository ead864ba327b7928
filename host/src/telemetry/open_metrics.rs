//! Metrics in the text format of OpenMetrics. All metrics are declared here, with their help text.

use std::fmt;

use cofferdam_core::model::Phase;
use cofferdam_core::model::view::CallCount;
use cofferdam_core::plugin::API_VERSION;
use cofferdam_core::stats::LAUNCH_BUCKETS_MICROS;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::number::{count, seconds};
use super::process::ProcessCounters;
use super::snapshot::Snapshot;
use super::text;

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Text,
}

/// Encodes a snapshot.
#[must_use]
pub fn encode(snapshot: Snapshot, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCounters::read()));
    registry.sub_registry_with_prefix("cofferdam").register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    match format {
        Format::OpenMetrics => text,
        Format::Text => text::from_open_metrics(&text),
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let uptime = ConstGauge::new(self.uptime.as_secs_f64());
        uptime.encode(encoder.encode_descriptor(
            "uptime",
            "Time since the agent started",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?)?;
        let build = [("version", env!("CARGO_PKG_VERSION")), ("plugin_api", API_VERSION)];
        encoder
            .encode_descriptor("build", "Which version is running", None, MetricType::Info)?
            .encode_info(&build)?;
        self.encode_launches(&mut encoder)?;
        self.encode_fetches(&mut encoder)?;
        let mut containers = encoder.encode_descriptor(
            "containers",
            "Number of containers, by phase",
            None,
            MetricType::Gauge,
        )?;
        for (phase, number) in Phase::ALL.into_iter().zip(self.containers) {
            ConstGauge::new(count(number)).encode(containers.encode_family(&[("phase", phase.name())])?)?;
        }
        self.encode_executors(&mut encoder)?;
        self.encode_keepers(&mut encoder)?;
        self.encode_calls(&mut encoder)?;
        self.encode_lost_output(&mut encoder)?;
        self.usage.encode(&mut encoder)
    }
}

impl Snapshot {
    fn encode_launches(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let launches = &self.launches;
        let mut outcomes = encoder.encode_descriptor(
            "launches",
            "Finished launches, by outcome",
            None,
            MetricType::Counter,
        )?;
        for (outcome, number) in [("started", launches.started), ("failed", launches.failed)] {
            ConstCounter::new(number).encode(outcomes.encode_family(&[("outcome", outcome)])?)?;
        }
        let bounds = LAUNCH_BUCKETS_MICROS.iter().map(|&micros| seconds(micros)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(launches.buckets).collect();
        encoder
            .encode_descriptor(
                "launch",
                "Duration of successful launches, from the request to the running command",
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(seconds(launches.micros), launches.started, &buckets, None)
    }

    fn encode_executors(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = &self.executors;
        let help = "Number of executors that have not ended, by phase";
        let mut executors = encoder.encode_descriptor("executors", help, None, MetricType::Gauge)?;
        for (phase, number) in &stats.executors {
            let labels = [("phase", phase.name())];
            ConstGauge::new(count(*number)).encode(executors.encode_family(&labels)?)?;
        }
        let help = "Executors that have ended";
        ConstCounter::new(stats.terminated).encode(encoder.encode_descriptor(
            "executors_terminated",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let help = "Number of tasks that have not ended, by state";
        let mut tasks = encoder.encode_descriptor("tasks", help, None, MetricType::Gauge)?;
        for (state, number) in &stats.tasks {
            ConstGauge::new(count(*number)).encode(tasks.encode_family(&[("state", state.name())])?)?;
        }
        let help = "Status updates of tasks, by state";
        let mut updates = encoder.encode_descriptor("task_updates", help, None, MetricType::Counter)?;
        for (state, number) in &stats.updates {
            ConstCounter::new(*number).encode(updates.encode_family(&[("state", state.name())])?)?;
        }
        let help = "Status updates of executors that were refused";
        ConstCounter::new(stats.refused).encode(encoder.encode_descriptor(
            "task_updates_refused",
            help,
            None,
            MetricType::Counter,
        )?)
    }

    fn encode_fetches(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Containers whose files were fetched, by outcome";
        let mut outcomes = encoder.encode_descriptor("fetches", help, None, MetricType::Counter)?;
        for (outcome, number) in self.fetch_outcomes() {
            ConstCounter::new(number).encode(outcomes.encode_family(&[("outcome", outcome)])?)?;
        }
        let help = "Files that were to be cached, by what the cache had of them";
        let mut lookups =
            encoder.encode_descriptor("fetch_cache_lookups", help, None, MetricType::Counter)?;
        for (result, number) in self.cache_lookups() {
            ConstCounter::new(number).encode(lookups.encode_family(&[("result", result)])?)?;
        }
        let help = "Files that were removed from the cache for others";
        let evictions =
            encoder.encode_descriptor("fetch_cache_evictions", help, None, MetricType::Counter)?;
        ConstCounter::new(self.fetches.evictions).encode(evictions)?;
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, number) in [
            ("fetch_cache_files", "Files in the cache", None, self.fetches.cache_files),
            ("fetch_cache_used", "Size of the files in the cache", bytes, self.fetches.cache_used),
            ("fetch_cache_size", "Maximum size of the files in the cache", bytes, self.fetches.cache_size),
        ] {
            let gauge = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            ConstGauge::new(count(number)).encode(gauge)?;
        }
        Ok(())
    }

    fn encode_keepers(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let keepers = &self.keepers;
        let mut running = encoder.encode_descriptor(
            "keepers",
            "Number of running keepers: that of new containers, and older ones that only serve earlier containers",
            None,
            MetricType::Gauge,
        )?;
        for (age, number) in [("current", u64::from(keepers.pid.is_some())), ("older", keepers.older)] {
            ConstGauge::new(count(number)).encode(running.encode_family(&[("age", age)])?)?;
        }
        ConstCounter::new(keepers.lost).encode(encoder.encode_descriptor(
            "keepers_lost",
            "Keepers that were killed or did not answer",
            None,
            MetricType::Counter,
        )?)
    }

    fn encode_calls(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Value = fn(&CallCount) -> u64;
        let metrics: [(&str, &str, Value); 4] = [
            ("plugin_calls", "Calls of plugin methods", |calls| calls.calls),
            ("plugin_failures", "Calls that returned an error", |calls| calls.failures),
            ("plugin_timeouts", "Calls that timed out", |calls| calls.timeouts),
            ("plugin_panics", "Calls that panicked", |calls| calls.panics),
        ];
        for (name, help, value) in metrics {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            self.each_method(|labels, calls| {
                ConstCounter::new(value(calls)).encode(metric.encode_family(labels)?)
            })?;
        }
        let unit = Some(&Unit::Seconds);
        let mut duration =
            encoder.encode_descriptor("plugin_call", "Total duration of calls", unit, MetricType::Counter)?;
        self.each_method(|labels, calls| {
            ConstCounter::new(seconds(calls.micros)).encode(duration.encode_family(labels)?)
        })
    }

    fn encode_lost_output(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Output of containers that a logger has lost, counted when the container ends";
        let unit = Some(&Unit::Bytes);
        let mut lost = encoder.encode_descriptor("logger_lost", help, unit, MetricType::Counter)?;
        for (plugin, stream, bytes) in self.lost_output() {
            let labels = [("logger", plugin), ("stream", stream)];
            ConstCounter::new(bytes).encode(lost.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Calls `encode` with the labels and counters of every method that was called.
    fn each_method(
        &self,
        mut encode: impl FnMut(&[(&str, &str); 2], &CallCount) -> Result<(), fmt::Error>,
    ) -> Result<(), fmt::Error> {
        let mut methods =
            self.plugins.iter().flat_map(|plugin| plugin.calls.iter().map(move |calls| (plugin, calls)));
        methods.try_for_each(|(plugin, (method, calls))| {
            encode(&[("plugin", plugin.name.as_str()), ("method", method.as_str())], calls)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::snapshot;
    use super::*;

    #[test]
    fn every_metric_has_help_and_the_expected_value() {
        let text = encode(snapshot(), Format::OpenMetrics);
        for line in [
            "# TYPE cofferdam_launches counter",
            "cofferdam_launches_total{outcome=\"started\"} 3",
            "# HELP cofferdam_launch_seconds Duration of successful launches, from the request to the running command",
            "cofferdam_launch_seconds_sum 2.5",
            "cofferdam_launch_seconds_bucket{le=\"0.0005\"} 2",
            "cofferdam_launch_seconds_bucket{le=\"0.002\"} 3",
            "cofferdam_launch_seconds_bucket{le=\"+Inf\"} 3",
            "cofferdam_containers{phase=\"RUNNING\"} 2.0",
            "cofferdam_executors{phase=\"RUNNING\"} 2.0",
            "cofferdam_executors_terminated_total 4",
            "cofferdam_tasks{state=\"TASK_RUNNING\"} 3.0",
            "cofferdam_task_updates_total{state=\"TASK_FINISHED\"} 5",
            "cofferdam_task_updates_refused_total 6",
            "cofferdam_keepers{age=\"current\"} 1.0",
            "cofferdam_keepers{age=\"older\"} 2.0",
            "cofferdam_keepers_lost_total 3",
            "cofferdam_fetches_total{outcome=\"succeeded\"} 4",
            "cofferdam_fetch_cache_lookups_total{result=\"hit\"} 5",
            "cofferdam_fetch_cache_evictions_total 8",
            "cofferdam_fetch_cache_used_bytes 1024.0",
            "cofferdam_plugin_timeouts_total{plugin=\"cgroups/mem\",method=\"prepare\"} 1",
            "cofferdam_plugin_call_seconds_total{plugin=\"cgroups/mem\",method=\"prepare\"} 0.0015",
            "# TYPE cofferdam_logger_lost_bytes counter",
            "cofferdam_logger_lost_bytes_total{logger=\"journald\",stream=\"stdout\"} 5",
            "cofferdam_logger_lost_bytes_total{logger=\"journald\",stream=\"stderr\"} 0",
            "# TYPE cofferdam_container_cpu_seconds counter",
            "cofferdam_container_cpu_seconds_total{container=\"pod.web\"} 2.0",
            "cofferdam_container_memory_bytes{container=\"pod.web\"} 1024.0",
            "cofferdam_containers_without_series 2.0",
            &format!(
                "cofferdam_build_info{{version=\"{}\",plugin_api=\"{API_VERSION}\"}} 1",
                env!("CARGO_PKG_VERSION")
            ),
            "# TYPE process_cpu_seconds counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
        }
        // Of a figure that is no number, there is nothing.
        assert!(!text.contains("container_memory_limit_bytes{"), "{text}");
        let text = encode(snapshot(), Format::Text);
        for line in [
            "# TYPE cofferdam_launches_total counter",
            "cofferdam_launches_total{outcome=\"started\"} 3",
            "# TYPE process_resident_memory_bytes gauge",
            "# TYPE cofferdam_build_info gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    }
}
