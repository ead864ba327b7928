//! Limits the number of processes and threads of a container with cgroups, and reports it.
//!
//! There is no state: everything is read from the kernel, so nothing is lost when the agent restarts.

mod limit;
mod usage;

use cofferdam_plugin_api::prelude::*;

use crate::limit::{MAXIMUM, Policy};

const CONTROLLERS: Controllers = Controllers::new("pids").delegated();

struct Pids {
    policy: Policy,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Largest number of processes and threads of a container that requests no `pids`; 0 for no limit.
    default: u32,
    /// Largest number that a container can request; 0 for any, and for no limit at all.
    maximum: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { default: 2048, maximum: 0 }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Pids {
    const NAME: &'static str = "cgroups/pids";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let Config { default, maximum } = config;
        for (key, value) in [("default", default), ("maximum", maximum)] {
            if value > MAXIMUM {
                return Err(Error::new(format!(
                    "`{key}` is {value}, but the kernel has at most {MAXIMUM} processes"
                )));
            }
        }
        if maximum > 0 && (default == 0 || default > maximum) {
            return Err(Error::new(format!(
                "`default` is {default}, which is above `maximum`, {maximum} (0 is no limit)"
            )));
        }
        let some = |value| Some(value).filter(|&value| value > 0);
        Ok(Self { policy: Policy { default: some(default), maximum: some(maximum) } })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        let limit = self.policy.limit(&container.resources)?;
        cgroups.main().write("pids.max", limit)?;
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let cgroups = CONTROLLERS.require(container)?;
        if container.changes(resources, "pids")? {
            cgroups.main().write("pids.max", self.policy.limit(resources)?)?;
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
