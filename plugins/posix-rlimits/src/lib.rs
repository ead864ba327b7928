//! Sets the resource limits of a container's command, which all its processes inherit.
//!
//! The plugin only decides. Its state is what it has decided, for debug containers.

mod limits;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use cofferdam_plugin_api::model::{AgentProcess, ContainerClass, Rlimit};
use cofferdam_plugin_api::prelude::*;

use crate::limits::Bounds;

struct Limits {
    defaults: BTreeMap<String, Rlimit>,
    agent: AgentProcess,
}

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Limits of containers that do not request them, by name without `RLIMIT_`: `NOFILE`, `CORE`, ….
    defaults: BTreeMap<String, Limit>,
}

/// A resource limit. Without both values it is unlimited.
#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Limit {
    /// What the kernel enforces; a process may raise it up to `hard`.
    soft: Option<u64>,
    /// The most that a process may raise `soft` to.
    hard: Option<u64>,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Limits {
    const NAME: &'static str = "posix/rlimits";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["agent.process"];
    const HANDLES: &'static [&'static str] = &["rlimits"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let limit = |(name, Limit { soft, hard })| (name, Rlimit { soft, hard });
        let defaults: BTreeMap<String, Rlimit> = config.defaults.into_iter().map(limit).collect();
        let agent = host.agent().process.clone();
        let bounds = Bounds::of(&agent)?;
        for (name, limit) in &defaults {
            bounds.check(name, limit).context(format!("`defaults.{name}` is invalid"))?;
        }
        Ok(Self { defaults, agent })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut rlimits = self.of_parent(container)?.unwrap_or_else(|| self.defaults.clone());
        rlimits.extend(container.rlimits.iter().map(|(name, limit)| (name.clone(), *limit)));
        if rlimits.is_empty() {
            return Ok(Prepared::new());
        }
        let bounds = Bounds::of(&self.agent)?;
        for (name, limit) in &rlimits {
            bounds.check(name, limit).context(format!("the resource limit `{name}` cannot be set"))?;
        }
        let mut prepared = Prepared::new().state(&rlimits)?;
        prepared.launch().rlimits = rlimits;
        Ok(prepared)
    }
}

impl Limits {
    /// The limits of the container that a debug container enters, if this plugin has set any. It executes files of its parent,
    /// so it is limited as that is.
    fn of_parent(&self, container: &NewContainer) -> Result<Option<BTreeMap<String, Rlimit>>> {
        match container.class {
            ContainerClass::Debug => container.parent_state(),
            _ => Ok(None),
        }
    }
}
