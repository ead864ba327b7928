//! What the agent counts, for Prometheus. Everything is declared here, with its help text.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::container::Phase;
use crate::view::PluginView;

/// What the agent counts.
pub struct Metrics {
    launches: Family<Outcome, Counter>,
    launch_seconds: Histogram,
    containers: Family<InPhase, Gauge>,
    calls: Family<CallLabels, Gauge>,
    failures: Family<CallLabels, Gauge>,
    late: Family<CallLabels, Gauge>,
    panics: Family<CallLabels, Gauge>,
    seconds: Family<CallLabels, Gauge<f64, AtomicU64>>,
    registry: Registry,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: Launch,
}

/// How a launch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Launch {
    /// The command runs.
    Started,
    /// It does not.
    Failed,
}

impl EncodeLabelValue for Launch {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Started => "started",
            Self::Failed => "failed",
        }
        .encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    plugin: Arc<str>,
    method: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cofferdam");
        let launches = Family::default();
        registry.register("launches", "Launches that came to an end, by outcome", launches.clone());
        // 0.5 ms to 16 s.
        let launch_seconds = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        registry.register_with_unit(
            "launch",
            "From the request to the running command",
            Unit::Seconds,
            launch_seconds.clone(),
        );
        let containers = Family::default();
        registry.register("containers", "Containers, by phase", containers.clone());
        let mut by_call = |name: &str, help: &str| {
            let family = Family::<CallLabels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let calls = by_call("plugin_calls", "Calls of a plugin's method since the agent started");
        let failures = by_call("plugin_failures", "Calls that answered with an error");
        let late = by_call("plugin_late", "Calls that were given up on");
        let panics = by_call("plugin_panics", "Calls that panicked");
        let seconds = Family::default();
        registry.register_with_unit(
            "plugin_call",
            "Time spent in calls of a plugin's method",
            Unit::Seconds,
            seconds.clone(),
        );
        Self { launches, launch_seconds, containers, calls, failures, late, panics, seconds, registry }
    }
}

impl Metrics {
    /// Counts a launch.
    pub fn launched(&self, outcome: Launch, took: Duration) {
        self.launches.get_or_create(&Outcome { outcome }).inc();
        if outcome == Launch::Started {
            self.launch_seconds.observe(took.as_secs_f64());
        }
    }

    /// Takes over what the house knows by itself: how many containers are in which phase, and how the
    /// plugins' calls went.
    pub fn refresh(&self, phases: impl Iterator<Item = Phase>, plugins: &[PluginView]) {
        let mut counts = [0i64; Phase::ALL.len()];
        for phase in phases {
            counts[phase as usize] += 1;
        }
        for (phase, count) in Phase::ALL.into_iter().zip(counts) {
            self.containers.get_or_create(&InPhase { phase: phase.name().to_owned() }).set(count);
        }
        for plugin in plugins {
            let name: Arc<str> = plugin.name.as_str().into();
            for (method, count) in &plugin.calls {
                let labels = CallLabels { plugin: Arc::clone(&name), method: method.clone() };
                let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
                self.calls.get_or_create(&labels).set(whole(count.calls));
                self.failures.get_or_create(&labels).set(whole(count.failures));
                self.late.get_or_create(&labels).set(whole(count.late));
                self.panics.get_or_create(&labels).set(whole(count.panics));
                let seconds = Duration::from_micros(count.micros).as_secs_f64();
                self.seconds.get_or_create(&labels).set(seconds);
            }
        }
    }

    /// Everything, in the text format of Prometheus.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
