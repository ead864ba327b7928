//! Restricts the capabilities of a container to what it requests, within what the operator allows.
//!
//! The plugin only decides. The sets are applied by the process that becomes the command, and inherited from then on, so
//! nothing has to be recovered or undone.

mod sets;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use cofferdam_plugin_api::capability::NAMES;
use cofferdam_plugin_api::config::Schema;
use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;

use crate::sets::{Set, Sets};

struct Capabilities {
    /// Of containers that request none, and the upper bound of what they may request.
    configured: Sets,
    /// Permitted capabilities of the agent, which are the most that it can give.
    agent: u64,
}

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Effective capabilities of containers that request none; an empty list for none. Without this key they have those of
    /// their user.
    effective_capabilities: Option<BTreeSet<Name>>,
    /// The older name of `effective_capabilities`.
    allowed_capabilities: Option<BTreeSet<Name>>,
    /// Bounding capabilities: the most that any container can have or request, by whatever way; an empty list for none.
    bounding_capabilities: Option<BTreeSet<Name>>,
}

/// A name of a capability, such as `NET_RAW`.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
struct Name(String);

impl PluginConfig for Name {
    const SCHEMA: &'static Schema = &Schema::Choice(NAMES);
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Capabilities {
    const NAME: &'static str = "linux/capabilities";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["agent.process", "launch.capabilities"];
    const HANDLES: &'static [&'static str] = &["capabilities"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let Config { effective_capabilities, allowed_capabilities, bounding_capabilities } = config;
        if effective_capabilities.is_some() && allowed_capabilities.is_some() {
            return Err(Error::new(
                "`allowed_capabilities` is the older name of `effective_capabilities`; set one of them",
            ));
        }
        let configured = Sets {
            effective: known("effective_capabilities", effective_capabilities.or(allowed_capabilities))?,
            bounding: known("bounding_capabilities", bounding_capabilities)?,
        };
        if let Some(excess) = configured.excess() {
            return Err(Error::new(format!(
                "`effective_capabilities` has {excess}, which `bounding_capabilities` has not; add it there, or remove it"
            )));
        }
        let agent = host.agent().process.permitted_capabilities;
        if let Some(missing) = configured.missing(agent) {
            return Err(Error::new(format!(
                "`effective_capabilities` has {missing}, which the agent itself has not; remove it, or start the agent with it"
            )));
        }
        Ok(Self { configured, agent })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let requested = Sets {
            effective: requested("effective", container.linux.effective_capabilities.as_ref())?,
            bounding: requested("bounding", container.linux.bounding_capabilities.as_ref())?,
        };
        let sets = match self.of_parent(container)? {
            // It executes files of its parent, so it has no more capabilities unless it requests them.
            Some(parent) if requested.is_empty() => parent,
            _ => requested.within(&self.configured)?,
        };
        if let Some(missing) = sets.missing(self.agent) {
            return Err(Error::invalid(format!(
                "the container requests {missing} as effective, which the agent itself has not"
            )));
        }
        Prepared::new().capabilities(sets.to_launch(self.agent)).state(&sets)
    }
}

impl Capabilities {
    /// The sets of the container that a debug container enters, if this plugin has restricted them.
    fn of_parent(&self, container: &NewContainer) -> Result<Option<Sets>> {
        match container.class {
            ContainerClass::Debug => container.parent_state(),
            _ => Ok(None),
        }
    }
}

/// A set of the configuration.
fn known(key: &str, names: Option<BTreeSet<Name>>) -> Result<Option<Set>> {
    let Some(names) = names else { return Ok(None) };
    let set = sets::known(names.iter().map(|Name(name)| name.as_str()));
    set.map(Some).context(format!("`{key}` is invalid"))
}

/// A set of a request.
fn requested(kind: &str, names: Option<&BTreeSet<String>>) -> Result<Option<Set>> {
    let Some(names) = names else { return Ok(None) };
    let set = sets::known(names.iter().map(String::as_str));
    set.map(Some).context(format!("the container requests invalid {kind} capabilities"))
}
