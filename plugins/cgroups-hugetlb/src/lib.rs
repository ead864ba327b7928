//! Limits the huge pages of containers with cgroups, and reports them.
//!
//! There is no state: everything is read from the kernel, so nothing is lost when the agent restarts.

mod limits;
mod page;

use std::collections::BTreeMap;

use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::prelude::*;

use crate::limits::{Limits, usage};
use crate::page::PageSize;

const CONTROLLERS: Controllers = Controllers::new("hugetlb");

struct Hugetlb {
    /// Those that the host has.
    sizes: Vec<PageSize>,
    limits: Limits,
}

#[derive(Deserialize, PluginConfig, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Limits of containers that request none, by page size as the kernel names it: `2MB`, `1GB`.
    limits: BTreeMap<String, Size>,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Hugetlb {
    const NAME: &'static str = "cgroups/hugetlb";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let sizes = page::sizes()?;
        let limits = Limits::configured(&config.limits, &sizes)?;
        Ok(Self { sizes, limits })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let requested = Limits::requested(&container.resources, &self.sizes)?;
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        self.limits.with(&requested).apply(cgroups.main())?;
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let cgroups = CONTROLLERS.require(container)?;
        let changed = resources.differing(&container.resources()?);
        let mut new = resources.clone();
        new.retain(|name| changed.contains(name));
        let mut limits = Limits::requested(&new, &self.sizes)?;
        for size in &self.sizes {
            let resource = limits::resource(*size);
            if changed.contains(&resource) && !new.has(&resource) {
                limits.set(*size, self.limits.of(*size));
            }
        }
        limits.apply(cgroups.main())?;
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(Usage::default()) };
        Ok(usage(cgroups.main(), &self.sizes)?)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

#[cfg(test)]
mod tests;
