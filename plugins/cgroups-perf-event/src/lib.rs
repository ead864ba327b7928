//! Counts performance events of a container, such as page faults or instructions, with cgroups.
//!
//! Samples are taken by a thread, one after the other for all containers; usage has the last one. There is no state: after a
//! restart of the agent, containers have none until the next one.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use cofferdam_plugin_api::config::TimeSpan;
use cofferdam_plugin_api::perf::Event as PerfEvent;
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{PerfSample, PerfSamples};

const CONTROLLERS: Controllers = Controllers::new("perf_event");

struct PerfEvents {
    events: Vec<PerfEvent>,
    /// `None` if there is nothing to count.
    samples: Option<PerfSamples>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Names of events as in `perf list`, in lower or upper case: `page-faults`, `instructions`. Without this key, nothing is
    /// counted.
    perf_events: Vec<String>,
    /// Time from the start of a sample to that of the next one.
    perf_interval: TimeSpan,
    /// How long events are counted for a sample.
    perf_duration: TimeSpan,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            perf_events: Vec::new(),
            perf_interval: TimeSpan(Duration::from_secs(60)),
            perf_duration: TimeSpan(Duration::from_secs(10)),
        }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for PerfEvents {
    const NAME: &'static str = "cgroups/perf_event";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let Config { perf_events, perf_interval: TimeSpan(interval), perf_duration: TimeSpan(duration) } =
            config;
        if duration.is_zero() {
            return Err(Error::new("`perf_duration` is 0, so that nothing could be counted"));
        }
        if duration > interval {
            return Err(Error::new(format!(
                "`perf_duration` is {duration:?}, which is longer than `perf_interval`, {interval:?}"
            )));
        }
        let mut events: Vec<PerfEvent> = Vec::new();
        for name in &perf_events {
            let event = find(name)?;
            if events.contains(&event) {
                return Err(Error::new(format!("`perf_events` has `{name}` twice")));
            }
            events.push(event);
        }
        let samples = (!events.is_empty()).then(|| PerfSamples::new(events.clone(), interval, duration));
        Ok(Self { events, samples })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        if let Some(samples) = &self.samples
            && let Some(cgroups) = CONTROLLERS.find(container)?
            && let Err(error) = samples.add(container.id(), cgroups.main())
        {
            not_counted(container, &error.to_string());
        }
        Ok(None)
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(samples) = &self.samples else { return Ok(Usage::default()) };
        match samples.read(container.id()) {
            Ok(None) => Ok(Usage::default()),
            Ok(Some(sample)) => Ok(Usage::default().with("perf", statistics(&self.events, &sample))),
            Err(reason) => {
                not_counted(container, &reason);
                Ok(Usage::default())
            }
        }
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        if let Some(samples) = &self.samples {
            samples.remove(container.id());
        }
        CONTROLLERS.remove(container)
    }
}

/// The event of that name, if this machine can count it.
fn find(name: &str) -> Result<PerfEvent> {
    let unusable = || format!("`perf_events` has `{}`", name.escape_debug());
    let event = PerfEvent::find(name).ok_or_else(|| {
        let names: Vec<&str> = PerfEvent::names().collect();
        Error::new(format!("which is not an event; expected one of {}", names.join(", "))).context(unusable())
    })?;
    event.probe().map_err(|error| {
        let why = match error.kind() {
            ErrorKind::PermissionDenied => {
                "this agent may not count it: it needs root, or the capability PERFMON, and a sysctl `kernel.perf_event_paranoid` that \
                 permits it"
            }
            _ => {
                "this machine or its kernel cannot count it; virtual machines often have no counters of the processor, only events of \
                 the kernel such as `task-clock` and `page-faults`. Remove it"
            }
        };
        Error::from(error).context(why).context(unusable())
    })?;
    Ok(event)
}

/// The message `PerfStatistics` of Mesos.
fn statistics(events: &[PerfEvent], sample: &PerfSample) -> Json {
    let start = sample.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut statistics = json!({
        "timestamp": start.as_secs_f64(),
        "duration": sample.duration.as_secs_f64(),
    });
    for (event, count) in events.iter().zip(&sample.counts) {
        let Some(count) = *count else { continue };
        let value = if event.is_time() {
            // As perf(1) prints them, in milliseconds.
            json!(Duration::from_nanos(count).as_secs_f64() * 1e3)
        } else {
            json!(count)
        };
        statistics[event.name().replace('-', "_")] = value;
    }
    statistics
}

fn not_counted(container: &ContainerRef, reason: &str) {
    warn!(container = container.id(), reason, "performance events are not counted");
}

#[cfg(test)]
mod tests;
