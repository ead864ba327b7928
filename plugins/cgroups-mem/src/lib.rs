//! Protects and limits a container's memory with cgroups, and reports when it has reached its limit.
//!
//! There is no state: everything is read from the kernel, so nothing is lost when the agent restarts.

mod limits;
mod oom;
mod usage;

use std::os::fd::OwnedFd;

use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::event;
use cofferdam_plugin_api::prelude::*;

use crate::limits::Limits;

const CONTROLLERS: Controllers = Controllers::new("memory");

struct Mem {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// The smallest memory limit; a smaller request is raised to it.
    minimum: Size,
    /// Whether swap counts against the limit. Otherwise a container may use all swap of the host.
    limit_swap: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { minimum: Size(32 << 20), limit_swap: false }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Mem {
    const NAME: &'static str = "cgroups/mem";
    const NESTING: bool = true;
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config })
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
        if let Some(limits) = Limits::of(resources, self.config.minimum.0) {
            limits.apply(cgroups.main(), self.config.limit_swap)?;
        }
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(Usage::default()) };
        Ok(usage::read(cgroups.main())?)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

#[cfg(test)]
mod tests;
