//! Distributes and limits CPU time with cgroups, and reports it.
//!
//! On cgroup v1 there are two controllers: `cpu` limits, `cpuacct` counts. On v2 `cpu` does both.

mod share;
mod usage;

use cofferdam_plugin_api::Pressure;
use cofferdam_plugin_api::prelude::*;

use crate::share::Share;

const ACCOUNTING: &str = "cpuacct";
const CONTROLLERS: Controllers = Controllers::new("cpu").with_optional(&[ACCOUNTING]).delegated();

struct Cpu {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Whether a container without a `cpus` limit is limited to what it requests. Otherwise it may use all CPU time that
    /// others leave idle.
    #[serde(alias = "cgroups_enable_cfs")]
    cfs: bool,
    /// Whether usage includes the numbers of processes and threads.
    #[serde(alias = "cgroups_cpu_enable_pids_and_tids_count")]
    count_processes: bool,
    /// Whether usage has for how long processes waited for a CPU.
    psi: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { cfs: true, count_processes: false, psi: false }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Cpu {
    const NAME: &'static str = "cgroups/cpu";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        if let Some(share) = Share::of(&container.resources, self.config.cfs) {
            share.apply(cgroups.main())?;
        }
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let cgroups = CONTROLLERS.require(container)?;
        if container.changes(resources, "cpus")? {
            let share = Share::of(resources, self.config.cfs).unwrap_or_default();
            share.complete().apply(cgroups.main())?;
        }
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(Usage::default()) };
        let mut usage = usage::read(cgroups.main(), cgroups.optional(ACCOUNTING))?;
        if let Some(limit) = usage::limit(cgroups.main())? {
            usage = usage.with("cpus_limit", limit);
        }
        if let Some(requested) = container.resources()?.cpus() {
            usage = usage.with("cpus_soft_limit", requested);
        }
        if self.config.count_processes {
            usage = usage::count(usage, cgroups.main())?;
        }
        if self.config.psi
            && let Some(waited) = Pressure::read(container, "cpu")?
        {
            usage = usage
                .with("cpus_pressure_some_secs", waited.some.as_secs_f64())
                .with("cpus_pressure_full_secs", waited.full.as_secs_f64());
        }
        Ok(usage)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

#[cfg(test)]
mod tests;
