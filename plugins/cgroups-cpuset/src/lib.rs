//! Restricts the CPUs and memory nodes that a container uses with cgroups.
//!
//! There is no state: everything is read from the kernel, so nothing is lost when the agent restarts.

mod numbers;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

use crate::numbers::Numbers;

const CONTROLLERS: Controllers = Controllers::new("cpuset");

/// What is restricted.
#[derive(Clone, Copy)]
struct Kind {
    /// The interface file.
    file: &'static str,
    /// The resource that a container requests it by.
    resource: &'static str,
    /// The key of the configuration.
    key: &'static str,
}

const CPUS: Kind = Kind { file: "cpuset.cpus", resource: "cpuset_cpus", key: "cpus" };
const MEMS: Kind = Kind { file: "cpuset.mems", resource: "cpuset_mems", key: "mems" };

struct Cpuset {
    cpus: Option<Numbers>,
    mems: Option<Numbers>,
}

#[derive(Deserialize, PluginConfig, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// CPUs that containers use, such as `2-7,10`; by default all. A container can request some of them.
    cpus: Option<String>,
    /// Memory nodes that containers use, likewise.
    mems: Option<String>,
}

impl Cpuset {
    /// What the resources request; `None` if they do not have the resource.
    fn requested(&self, resources: &Resources, kind: Kind) -> Result<Option<Numbers>> {
        let Kind { file, resource, key } = kind;
        let Some(value) = resources.requests.get(resource) else { return Ok(None) };
        let requested = Numbers::of(value).context(format!(
            "the container requests {value:?} of `{resource}`; expected ranges of numbers"
        ))?;
        match self.permitted(file) {
            Some(permitted) if !requested.is_subset(permitted) => Err(Error::invalid(format!(
                "the container requests {requested} of `{resource}`, but `{key}` of `cgroups/cpuset` permits only \
                 {permitted}"
            ))),
            _ => Ok(Some(requested)),
        }
    }

    fn permitted(&self, file: &str) -> Option<&Numbers> {
        if file == CPUS.file { self.cpus.as_ref() } else { self.mems.as_ref() }
    }

    /// What a container has that requests nothing.
    fn default(&self, cgroup: &Cgroup, file: &str, is_nested: bool) -> Result<String> {
        // A nested container has those of its parent, which may have been launched with another configuration.
        if let Some(permitted) = self.permitted(file).filter(|_| !is_nested) {
            return Ok(permitted.to_string());
        }
        match (cgroup.version(), cgroup.above().last()) {
            (CgroupVersion::V1, Some(above)) => Ok(above.read(file)?),
            // An empty write would not reach the kernel.
            _ => Ok("\n".to_owned()),
        }
    }
}

/// On v1 a cgroup must have CPUs and memory nodes before it can have processes, and so must all above it. New ones have none.
fn inherit(cgroup: &Cgroup) -> Result<(), CgroupError> {
    if cgroup.version() == CgroupVersion::V2 {
        return Ok(());
    }
    for Kind { file, .. } in [CPUS, MEMS] {
        let mut inherited = String::new();
        for cgroup in cgroup.above().iter().chain([cgroup]) {
            let own = cgroup.read(file)?;
            if own.is_empty() {
                cgroup.write(file, &inherited)?;
            } else {
                inherited = own;
            }
        }
    }
    Ok(())
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Cpuset {
    const NAME: &'static str = "cgroups/cpuset";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let parsed = |key: &str, text: Option<String>| {
            text.map(|text| text.parse::<Numbers>().context(format!("`{key}` is invalid"))).transpose()
        };
        Ok(Self { cpus: parsed(CPUS.key, config.cpus)?, mems: parsed(MEMS.key, config.mems)? })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let requested = |kind| self.requested(&container.resources, kind);
        let requested = [(CPUS, requested(CPUS)?), (MEMS, requested(MEMS)?)];
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        inherit(cgroups.main())?;
        // A nested container has those of its parent, which may have been launched with another configuration.
        let is_nested = container.id.is_nested();
        for (Kind { file, .. }, requested) in requested {
            let permitted = || self.permitted(file).filter(|_| !is_nested).cloned();
            if let Some(numbers) = requested.or_else(permitted) {
                cgroups.main().write(file, numbers)?;
            }
        }
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let cgroups = CONTROLLERS.require(container)?;
        let is_nested = container.id().contains('.');
        let mut changes = cgroups.main().changes();
        for kind in [CPUS, MEMS] {
            if !container.changes(resources, kind.resource)? {
                continue;
            }
            let value = match self.requested(resources, kind)? {
                Some(numbers) => numbers.to_string(),
                None => self.default(cgroups.main(), kind.file, is_nested)?,
            };
            changes.write(kind.file, value)?;
        }
        changes.keep();
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(Usage::default()) };
        let cgroup = cgroups.main();
        let file = match cgroup.version() {
            CgroupVersion::V1 => "cpuset.effective_cpus",
            CgroupVersion::V2 => "cpuset.cpus.effective",
        };
        let effective: Numbers = cgroup.read(file)?.parse()?;
        Ok(Usage::default().with("cpuset_cpus_effective", effective.count()))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

#[cfg(test)]
mod tests;
