//! Paths of cgroups on this host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Mount points of the cgroup hierarchies on this host, and the path of a cgroup in them. Empty if the agent manages no
/// cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroups {
    /// Mount points of the v1 hierarchies, by controller name: `memory`, `cpuacct`, ….
    pub v1: BTreeMap<String, PathBuf>,
    /// Mount point of the v2 hierarchy; `None` if it is not mounted.
    pub v2: Option<PathBuf>,
    /// Controllers that the v2 hierarchy can enable.
    pub v2_controllers: Vec<String>,
    /// Path of the cgroup relative to each mount point: `cofferdam/3f2a9c01/web`.
    pub path: PathBuf,
}
