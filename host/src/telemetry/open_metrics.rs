//! Metrics in the text format of OpenMetrics. All metrics are declared here, with their help text.

use std::fmt;

use cofferdam_core::model::Phase;
use cofferdam_core::stats::LAUNCH_BUCKETS_MICROS;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::snapshot::{Snapshot, count, seconds};

/// Encodes a snapshot.
#[must_use]
pub fn encode(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("cofferdam");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
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
        self.encode_launches(&mut encoder)?;
        let mut containers = encoder.encode_descriptor(
            "containers",
            "Number of containers, by phase",
            None,
            MetricType::Gauge,
        )?;
        for (phase, number) in Phase::ALL.into_iter().zip(self.containers) {
            ConstGauge::new(count(number)).encode(containers.encode_family(&[("phase", phase.name())])?)?;
        }
        self.encode_keepers(&mut encoder)?;
        self.encode_calls(&mut encoder)
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
        type Value = fn(&cofferdam_core::model::view::CallCount) -> f64;
        let metrics: [(&str, &str, Option<Unit>, Value); 5] = [
            ("plugin_calls", "Calls of plugin methods", None, |calls| count(calls.calls)),
            ("plugin_failures", "Calls that returned an error", None, |calls| count(calls.failures)),
            ("plugin_timeouts", "Calls that timed out", None, |calls| count(calls.timeouts)),
            ("plugin_panics", "Calls that panicked", None, |calls| count(calls.panics)),
            ("plugin_call", "Total duration of calls", Some(Unit::Seconds), |calls| seconds(calls.micros)),
        ];
        for (name, help, unit, value) in metrics {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for plugin in &self.plugins {
                for (method, calls) in &plugin.calls {
                    let labels = [("plugin", plugin.name.as_str()), ("method", method.as_str())];
                    ConstCounter::new(value(calls)).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::snapshot;
    use super::*;

    #[test]
    fn every_metric_has_help_and_the_expected_value() {
        let text = encode(snapshot());
        for line in [
            "# TYPE cofferdam_launches counter",
            "cofferdam_launches_total{outcome=\"started\"} 3",
            "# HELP cofferdam_launch_seconds Duration of successful launches, from the request to the running command",
            "cofferdam_launch_seconds_sum 2.5",
            "cofferdam_launch_seconds_bucket{le=\"0.0005\"} 2",
            "cofferdam_launch_seconds_bucket{le=\"0.002\"} 3",
            "cofferdam_launch_seconds_bucket{le=\"+Inf\"} 3",
            "cofferdam_containers{phase=\"RUNNING\"} 2.0",
            "cofferdam_keepers{age=\"current\"} 1.0",
            "cofferdam_keepers{age=\"older\"} 2.0",
            "cofferdam_keepers_lost_total 3",
            "cofferdam_plugin_timeouts_total{plugin=\"cgroups/mem\",method=\"prepare\"} 1.0",
            "cofferdam_plugin_call_seconds_total{plugin=\"cgroups/mem\",method=\"prepare\"} 0.0015",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
        }
    }
}
