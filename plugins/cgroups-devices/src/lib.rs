//! Restricts the devices that a container can use with cgroups: to the standard ones, and those that the operator permits.
//!
//! The state of a container is what it is permitted, so that a nested container never gets more, and so that the next
//! instance can tell whether it is still in force.

mod policy;

use cofferdam_plugin_api::devices::Rules;
use cofferdam_plugin_api::prelude::*;

use crate::policy::Device;

const CONTROLLERS: Controllers = Controllers::new("devices");

struct Devices {
    rules: Rules,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Whether the standard devices are permitted: `null`, `zero`, `full`, `random`, `urandom`, `tty`, `console`, `ptmx`,
    /// pseudoterminals, and the creation of any device file.
    standard: bool,
    /// Further devices of the host, each with a `path` and, optionally, an `access` of `r`, `w` and `m`.
    #[serde(alias = "allowed_devices")]
    allowed: Vec<Device>,
    /// Further devices by number, such as `c 195:* rw`.
    rules: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { standard: true, allowed: Vec::new(), rules: Vec::new() }
    }
}

/// What is kept of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    permitted: Rules,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Devices {
    const NAME: &'static str = "cgroups/devices";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { rules: policy::rules(config.standard, &config.allowed, &config.rules)? })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let mut recovery = Recovery::new();
        for Recovered { id, details, .. } in &request.containers {
            // It was launched without this plugin, or shares the cgroups of its parent.
            if details.state.is_null() || details.shares_cgroups {
                continue;
            }
            let State { permitted } = match State::deserialize(&details.state) {
                Ok(state) => state,
                Err(error) => {
                    recovery.refuse(id, format!("cannot read the plugin's own state: {error}"));
                    continue;
                }
            };
            let Some(cgroup) = Cgroup::find(&details.cgroups, CONTROLLERS.main()) else { continue };
            if let Err(error) = restore(id, &permitted, &cgroup) {
                error!(container = %id, "cannot restrict the devices of the container again: {error}");
            }
        }
        Ok(recovery)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let parent: Option<State> = container.parent_state()?;
        let Some(cgroups) = CONTROLLERS.create(container)? else {
            // For containers nested in it.
            return match parent {
                Some(parent) => Prepared::new().state(&parent),
                None => Ok(Prepared::new()),
            };
        };
        let permitted = match parent {
            Some(parent) => self.rules.intersection(&parent.permitted),
            None => self.rules.clone(),
        };
        cgroups.main().permit_devices(&permitted)?;
        Prepared::new().cgroups(&cgroups).state(&State { permitted })
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

/// Enforces the rules of a running container again, should somebody have changed them.
fn restore(id: &ContainerId, permitted: &Rules, cgroup: &Cgroup) -> Result<()> {
    if !cgroup.permits_devices(permitted)? {
        warn!(container = %id, "the permitted devices of the container were changed; restricting it again");
        cgroup.permit_devices(permitted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
