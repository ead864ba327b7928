//! Sets the priority of a container's packets on each network interface of the host.
//!
//! There is no state: the kernel has the priorities, so nothing is lost when the agent restarts.

use std::collections::BTreeMap;

use cofferdam_plugin_api::prelude::*;

const CONTROLLERS: Controllers = Controllers::new("net_prio");

const PRIORITIES: &str = "net_prio.ifpriomap";

/// The kernel's limit, `IFNAMSIZ` without the NUL.
const MAX_NAME: usize = 15;

struct NetPrio {
    priorities: BTreeMap<String, u32>,
}

#[derive(Deserialize, PluginConfig, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Priority by name of a network interface of the host. On others, packets have the priority that the container
    /// chooses.
    priorities: BTreeMap<String, u32>,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for NetPrio {
    const NAME: &'static str = "cgroups/net_prio";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        for name in config.priorities.keys() {
            let is_name = !name.is_empty()
                && name.len() <= MAX_NAME
                && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if !is_name {
                return Err(Error::new(format!("`{name}` of `priorities` cannot be a network interface")));
            }
        }
        Ok(Self { priorities: config.priorities })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        for (interface, priority) in &self.priorities {
            cgroups.main().write(PRIORITIES, format!("{interface} {priority}")).context(format!(
                "cannot set the priority of packets on the network interface `{interface}`; the host must have it"
            ))?;
        }
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

#[cfg(test)]
mod tests;
