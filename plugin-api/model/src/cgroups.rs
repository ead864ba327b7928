//! Where a container's control groups are on this host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a container's control groups are on this host. Empty when the agent manages none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroups {
    /// Controller name (`memory`, `cpuacct`, …) to the mount point of its v1 hierarchy.
    pub v1: BTreeMap<String, PathBuf>,
    /// Mount point of the v2 hierarchy.
    pub v2: Option<PathBuf>,
    /// Controllers that the v2 hierarchy can enable.
    pub v2_controllers: Vec<String>,
    /// The container's control group, relative to each mount point: `cofferdam/3f2a9c01/web`.
    pub path: PathBuf,
}
