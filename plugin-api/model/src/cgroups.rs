//! Where a container's control groups are on this host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which kind of hierarchy a controller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupVersion {
    /// A hierarchy of its own.
    V1,
    /// The unified hierarchy.
    V2,
}

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

impl Cgroups {
    /// The directory that holds the container's knobs of `controller`, and the kind of hierarchy it is on.
    ///
    /// `None` when the host offers the controller nowhere. On v1 the directory may not exist yet; on v2
    /// it exists, and the controller may not be enabled in it yet.
    #[must_use]
    pub fn controller(&self, controller: &str) -> Option<(CgroupVersion, PathBuf)> {
        if let Some(mount) = self.v1.get(controller) {
            return Some((CgroupVersion::V1, mount.join(&self.path)));
        }
        let mount = self.v2.as_ref()?;
        self.v2_controllers
            .iter()
            .any(|offered| offered == controller)
            .then(|| (CgroupVersion::V2, mount.join(&self.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_hybrid_host_each_controller_is_found_where_it_is() {
        let cgroups = Cgroups {
            v1: [("memory".to_owned(), PathBuf::from("/cg/memory"))].into(),
            v2: Some("/cg/unified".into()),
            v2_controllers: vec!["hugetlb".into()],
            path: "c/1/web".into(),
        };
        assert_eq!(cgroups.controller("memory"), Some((CgroupVersion::V1, "/cg/memory/c/1/web".into())));
        assert_eq!(cgroups.controller("hugetlb"), Some((CgroupVersion::V2, "/cg/unified/c/1/web".into())));
        assert_eq!(cgroups.controller("pids"), None);
    }
}
