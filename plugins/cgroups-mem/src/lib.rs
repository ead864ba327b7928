//! Protects and limits a container's memory by control groups, and says when a limit killed.
//!
//! Everything is read back from the kernel, so nothing is lost when the agent restarts. The one thing kept
//! is that a container lives in its parent's control groups, because later calls do not say so.

mod limits;
mod oom;
mod usage;

use std::os::fd::OwnedFd;

use cofferdam_plugin_api::cgroup::CgroupVersion;
use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::event;
use cofferdam_plugin_api::prelude::*;

use crate::limits::Limits;

const CONTROLLER: &str = "memory";

struct Mem {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// No container gets less than this, whatever it asked for: below it, hardly a shell starts.
    minimum: Size,
    /// Whether swap counts against the limit too. Without it, a container may swap without end.
    limit_swap: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { minimum: Size(32 << 20), limit_swap: false }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Whether the container lives in its parent's control groups.
    shared: bool,
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
        if container.shares_cgroups() {
            return Prepared::new().state(&Kept { shared: true });
        }
        let cgroup = Cgroup::of(&container.cgroups, CONTROLLER)?;
        cgroup.create()?;
        let mut prepared = Prepared::new();
        if cgroup.version() == CgroupVersion::V1 {
            prepared = prepared.cgroup(cgroup.directory());
        }
        if let Some(limits) = Limits::of(&container.resources, self.config.minimum.0) {
            limits.apply(&cgroup, self.config.limit_swap)?;
            prepared.launch().oom_score_adj = limits.oom_score_adj()?;
        }
        Ok(prepared)
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        Ok(own(container)?.map(|cgroup| oom::watch(&cgroup)).transpose()?)
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        let notified = match container.descriptor(0) {
            Some(watching) => event::drain(watching)?,
            None => false,
        };
        let Some(cgroup) = own(container)? else { return Ok(None) };
        match oom::judge(&cgroup, notified) {
            // The descriptor tells of the control group's end as well.
            Err(error) if error.is_missing() => Ok(None),
            judged => Ok(judged?),
        }
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let Some(cgroup) = own(container)? else {
            return Err(Error::new(format!(
                "container `{}` lives in the control groups of its parent: update the parent instead",
                container.id()
            )));
        };
        if let Some(limits) = Limits::of(resources, self.config.minimum.0) {
            limits.apply(&cgroup, self.config.limit_swap)?;
        }
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        match own(container)? {
            Some(cgroup) => Ok(usage::read(&cgroup)?),
            // It is part of its parent's usage.
            None => Ok(Usage::default()),
        }
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        if container.state::<Kept>()?.shared {
            return Ok(());
        }
        // A container that was never seen, or an agent that manages no control groups any more.
        Cgroup::find(&container.details()?.cgroups, CONTROLLER).map_or(Ok(()), |cgroup| cgroup.remove())
    }
}

/// The container's own control group; none if it lives in its parent's.
fn own(container: &ContainerRef) -> Result<Option<Cgroup>> {
    if container.state::<Kept>()?.shared {
        return Ok(None);
    }
    container.cgroup(CONTROLLER).map(Some)
}

#[cfg(test)]
mod tests;
