//! Chains of isolators that are compared.

use cofferdam_core::config::PluginConfig;
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_tests::world::{World, shipped};
use serde_json::{Value as Json, json};

use crate::Outcome;

/// A chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Isolation `docker`.
    Shipped,
    /// The shipped chain and each isolator of [`optional`], with all their statistics.
    Full,
}

/// Isolators that are not in the shipped chain and can be added to it without a network, a driver or a file system of
/// their own, with configurations in which they do something for each container.
///
/// # Errors
/// If the hierarchies of this machine cannot be determined.
pub fn optional() -> Outcome<Vec<PluginConfig>> {
    let machine = Cgroups::detect()?;
    let entry = |name, table: Json| PluginConfig { table, ..shipped(name) };
    let mut all = vec![
        entry("posix/cpu", json!({})),
        entry("posix/mem", json!({})),
        entry("cgroups/blkio", json!({ "psi": true })),
        entry("cgroups/cpuset", json!({})),
        entry("cgroups/hugetlb", json!({})),
        entry("cgroups/net_cls", json!({ "primary_handle": 0x10 })),
        entry("cgroups/net_prio", json!({ "priorities": { "lo": 1 } })),
        entry("cgroups/perf_event", json!({ "perf_events": ["task-clock", "page-faults"] })),
        entry("disk/du", json!({})),
        entry("environment_secret", json!({})),
        entry("linux/devices", json!({ "allowed_devices": [{ "path": "/dev/full" }] })),
        entry("linux/nnp", json!({})),
        entry("volume/secret", json!({})),
    ];
    for controller in ["cpuset", "hugetlb", "net_cls", "net_prio", "perf_event"] {
        if machine.hierarchy(controller).is_none() {
            eprintln!("bench: SKIPPED cgroups/{controller}: this machine has no such controller");
            all.retain(|isolator| isolator.name != format!("cgroups/{controller}"));
        }
    }
    Ok(all)
}

/// Statistics that the shipped chain does not collect.
const STATISTICS: [(&str, &str); 4] = [
    ("cgroups/cpu", "psi"),
    ("cgroups/cpu", "count_processes"),
    ("cgroups/mem", "psi"),
    ("cgroups/mem", "pressure"),
];

impl Chain {
    /// Its name as an argument of this program.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Shipped => "shipped",
            Self::Full => "full",
        }
    }

    pub fn parse(argument: &str) -> Option<Self> {
        [Self::Shipped, Self::Full].into_iter().find(|chain| chain.argument() == argument)
    }

    /// An agent with this chain.
    pub fn world(self) -> Outcome<World> {
        let mut world = World::shipped();
        if self == Self::Full {
            for (name, key) in STATISTICS {
                let found = world.config.isolators.iter_mut().find(|isolator| isolator.name == name);
                found.ok_or_else(|| format!("`{name}` is not shipped"))?.table[key] = json!(true);
            }
            world.config.isolators.extend(optional()?);
        }
        Ok(world)
    }
}
