//! Shares and limits a container's processor time by control groups, and accounts for it.
//!
//! On cgroup v1 two controllers are at work: `cpu` limits, `cpuacct` counts. On v2 `cpu` does both.

mod share;
mod usage;

use cofferdam_plugin_api::cgroup::CgroupVersion;
use cofferdam_plugin_api::prelude::*;

use crate::share::Share;

const CONTROLLER: &str = "cpu";
const ACCOUNTING: &str = "cpuacct";

struct Cpu {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Whether a container without a `cpus` limit of its own is stopped at what it requested. Otherwise it
    /// may use whatever others leave idle.
    cfs: bool,
    /// Whether usage counts processes and threads.
    count_processes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { cfs: true, count_processes: false }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Whether the container lives in its parent's control groups, because later calls do not say so.
    shared: bool,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Cpu {
    const NAME: &'static str = "cgroups/cpu";
    const NESTING: bool = true;
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        if container.shares_cgroups() {
            return Prepared::new().state(&Kept { shared: true });
        }
        let cpu = Cgroup::of(&container.cgroups, CONTROLLER)?;
        let mut prepared = Prepared::new();
        let mut joined = None;
        for cgroup in Some(&cpu).into_iter().chain(&Cgroup::find(&container.cgroups, ACCOUNTING)) {
            cgroup.create()?;
            // Where both controllers are mounted together, they are one directory.
            if cgroup.version() == CgroupVersion::V1 && joined.as_deref() != Some(cgroup.directory()) {
                prepared = prepared.cgroup(cgroup.directory());
                joined = Some(cgroup.directory().to_owned());
            }
        }
        if let Some(share) = Share::of(&container.resources, self.config.cfs) {
            share.apply(&cpu)?;
        }
        Ok(prepared)
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        if is_shared(container)? {
            return Err(Error::new(format!(
                "container `{}` lives in the control groups of its parent: update the parent instead",
                container.id()
            )));
        }
        if let Some(share) = Share::of(resources, self.config.cfs) {
            share.apply(&container.cgroup(CONTROLLER)?)?;
        }
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        if is_shared(container)? {
            // It is part of its parent's usage.
            return Ok(Usage::default());
        }
        let cgroups = &container.details()?.cgroups;
        let cpu = Cgroup::of(cgroups, CONTROLLER)?;
        let mut usage = usage::read(&cpu, Cgroup::find(cgroups, ACCOUNTING).as_ref())?;
        if self.config.count_processes {
            usage = usage::count(usage, &cpu)?;
        }
        Ok(usage)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        if is_shared(container)? {
            return Ok(());
        }
        for controller in [CONTROLLER, ACCOUNTING] {
            // None for a container that was never seen.
            if let Some(cgroup) = Cgroup::find(&container.details()?.cgroups, controller) {
                cgroup.remove()?;
            }
        }
        Ok(())
    }
}

fn is_shared(container: &ContainerRef) -> Result<bool> {
    Ok(container.state::<Kept>()?.shared)
}

#[cfg(test)]
mod tests;
