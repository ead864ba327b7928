//! The effective and the bounding set, and the rules for their combinations.

use std::collections::BTreeSet;

use cofferdam_plugin_api::capability::{self, NAMES};
use cofferdam_plugin_api::model;
use cofferdam_plugin_api::prelude::*;

/// Names of capabilities without `CAP_`.
pub type Set = BTreeSet<String>;

/// Sets of capabilities. One that is `None` is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sets {
    pub effective: Option<Set>,
    pub bounding: Option<Set>,
}

impl Sets {
    pub fn is_empty(&self) -> bool {
        self.effective.is_none() && self.bounding.is_none()
    }

    /// The sets of a container that requests these, completed from the operator's and within them. As in Mesos, the
    /// operator's effective set is a default; only the bounding set limits what can be requested.
    pub fn within(self, configured: &Self) -> Result<Self> {
        if let (Some(requested), Some(limit)) = (&self.bounding, &configured.bounding)
            && let Some(excess) = excess(requested, limit)
        {
            return Err(Error::invalid(format!(
                "the container requests {excess} in its bounding set, which `bounding_capabilities` does not allow"
            )));
        }
        let effective = self.effective.or_else(|| configured.effective.clone());
        let bounding = self.bounding.or_else(|| configured.bounding.clone()).or_else(|| effective.clone());
        let sets = Self { effective, bounding };
        match sets.excess() {
            Some(excess) => Err(Error::invalid(format!(
                "the container's effective capabilities have {excess}, which its bounding set has not; request a bounding \
                 set with it, request less, or change `bounding_capabilities`"
            ))),
            None => Ok(sets),
        }
    }

    /// What the effective set has and the bounding set has not.
    pub fn excess(&self) -> Option<String> {
        excess(self.effective.as_ref()?, self.bounding.as_ref()?)
    }

    /// What the effective set has and `available`, bit n for capability n, has not.
    pub fn missing(&self, available: u64) -> Option<String> {
        let is_missing = |name: &&String| !is_in(available, name);
        list(self.effective.iter().flatten().filter(is_missing))
    }

    /// The request for the launch. What the agent does not have cannot be obtained by anybody in the container, so it is
    /// left out of the bounding set.
    pub fn to_launch(&self, available: u64) -> model::Capabilities {
        let bounding = self.bounding.iter().map(|set| set.iter().filter(|name| is_in(available, name)));
        model::Capabilities {
            effective: self.effective.clone(),
            bounding: bounding.map(|names| names.cloned().collect()).next(),
            ..model::Capabilities::default()
        }
    }
}

/// A set of names, which may have the prefix `CAP_`.
pub fn known<'a>(names: impl Iterator<Item = &'a str>) -> Result<Set> {
    names.map(|name| canonical(name).map(str::to_owned)).collect()
}

fn canonical(name: &str) -> Result<&'static str> {
    let known = capability::number(name).and_then(|number| NAMES.get(number));
    known.copied().ok_or_else(|| {
        Error::invalid(format!(
            "there is no capability `{name}`; expected a name such as `NET_RAW`, see capabilities(7)"
        ))
    })
}

fn is_in(available: u64, name: &str) -> bool {
    capability::number(name).is_some_and(|number| capability::contains(available, number))
}

fn excess(set: &Set, limit: &Set) -> Option<String> {
    list(set.difference(limit))
}

/// The names for a message; `None` if there are none.
fn list<'a>(names: impl Iterator<Item = &'a String>) -> Option<String> {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
