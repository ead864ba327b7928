//! Protects and limits a container's memory with cgroups, and reports when it has reached its limit.
//!
//! There is no state: everything is read from the kernel, so nothing is lost when the agent restarts, except for the numbers
//! of pressure events, which begin at 0 again.

mod limits;
mod oom;
mod usage;

use std::os::fd::OwnedFd;

use cofferdam_plugin_api::cgroup::CgroupVersion;
use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{EventCounters, Pressure, event};

use crate::limits::Limits;

const CONTROLLERS: Controllers = Controllers::new("memory").delegated();

/// Levels of memory pressure on v1, and their statistics.
const LEVELS: [&str; 3] = ["low", "medium", "critical"];
const LEVEL_COUNTERS: [&str; 3] =
    ["mem_low_pressure_counter", "mem_medium_pressure_counter", "mem_critical_pressure_counter"];

struct Mem {
    config: Config,
    pressure: EventCounters,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// The smallest memory limit; a smaller request is raised to it.
    minimum: Size,
    /// Whether swap counts against the limit. Otherwise a container may use all swap of the host.
    #[serde(alias = "cgroups_limit_swap")]
    limit_swap: bool,
    /// Whether usage has the numbers of pressure events: on cgroup v1 of each level, on v2 of each limit.
    pressure: bool,
    /// Whether usage has for how long processes waited for memory.
    psi: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { minimum: Size(32 << 20), limit_swap: false, pressure: false, psi: false }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Mem {
    const NAME: &'static str = "cgroups/mem";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config, pressure: EventCounters::default() })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        let mut prepared = Prepared::new().cgroups(&cgroups);
        if let Some(limits) = Limits::of(&container.resources, self.config.minimum.0) {
            limits.apply(cgroups.main(), self.config.limit_swap)?;
            prepared.launch().oom_score_adj = limits.oom_score_adj()?;
        }
        Ok(prepared)
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(None) };
        if self.config.pressure {
            let cgroup = cgroups.main();
            if let Err(error) = self.pressure.add(container.id(), cgroup, "memory.pressure_level", &LEVELS) {
                not_counted(container, &error.to_string());
            }
        }
        Ok(Some(oom::watch(cgroups.main())?))
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        let notified = container.descriptor(0).map_or(Ok(false), event::drain)?;
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(None) };
        match oom::limitation(cgroups.main(), notified) {
            // The descriptor is also readable when the cgroup was removed.
            Err(error) if error.is_missing() => Ok(None),
            limitation => Ok(limitation?),
        }
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let cgroups = CONTROLLERS.require(container)?;
        if container.changes(resources, "mem")? {
            let limits = Limits::of(resources, self.config.minimum.0).unwrap_or_default();
            limits.complete().apply(cgroups.main(), self.config.limit_swap)?;
        }
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(Usage::default()) };
        let mut usage = usage::read(cgroups.main())?;
        if let Some(requested) = container.resources()?.mem_bytes() {
            usage = usage.with("mem_soft_limit_bytes", requested.max(self.config.minimum.0));
        }
        if self.config.pressure {
            usage = match cgroups.main().version() {
                CgroupVersion::V1 => self.levels(container, usage),
                CgroupVersion::V2 => usage::events(usage, cgroups.main())?,
            };
        }
        if self.config.psi
            && let Some(waited) = Pressure::read(container, "memory")?
        {
            usage = usage
                .with("mem_pressure_some_secs", waited.some.as_secs_f64())
                .with("mem_pressure_full_secs", waited.full.as_secs_f64());
        }
        Ok(usage)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.pressure.remove(container.id());
        CONTROLLERS.remove(container)
    }
}

impl Mem {
    /// Adds the numbers of pressure events of v1, if they are counted.
    fn levels(&self, container: &ContainerRef, usage: Usage) -> Usage {
        match self.pressure.read(container.id()) {
            Ok(counted) => {
                let counted = LEVEL_COUNTERS.into_iter().zip(counted.into_iter().flatten());
                counted.fold(usage, |usage, (name, count)| usage.with(name, count))
            }
            Err(reason) => {
                not_counted(container, &reason);
                usage
            }
        }
    }
}

fn not_counted(container: &ContainerRef, reason: &str) {
    warn!(container = container.id(), reason, "memory pressure events are not counted");
}

#[cfg(test)]
mod tests;
