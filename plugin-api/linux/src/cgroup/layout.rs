//! Which cgroup hierarchies are mounted, and in which one a controller is.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cgroup, CgroupError, Version};
use crate::mounts::{Mount, mounts};

/// The hierarchies of this machine. The agent detects them once and passes them to its plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroups {
    /// The v2 hierarchy, wherever it is mounted.
    pub unified: Option<Hierarchy>,
    /// The v1 hierarchies, in mount order.
    pub legacy: Vec<Hierarchy>,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Its mount point.
    pub mount: PathBuf,
    /// Its controllers, such as `memory`; several if they are co-mounted. For a v1 hierarchy without controllers, its
    /// name, such as `name=systemd`.
    pub controllers: Vec<String>,
}

/// Which versions of cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// No hierarchy is mounted.
    Absent,
    /// Only v1 hierarchies.
    Legacy,
    /// v1 hierarchies and the v2 hierarchy.
    Hybrid,
    /// Only v2.
    Unified,
}

impl Cgroups {
    /// Detects the mounted hierarchies, from `/proc/self/mountinfo` and `cgroup.controllers`.
    pub fn detect() -> io::Result<Self> {
        let mut found = Self::from_mounts(&mounts()?);
        if let Some(unified) = &mut found.unified {
            let controllers = std::fs::read_to_string(unified.mount.join("cgroup.controllers"))?;
            unified.controllers = controllers.split_ascii_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    /// The hierarchies in a mount table, without the controllers of v2, which it does not contain.
    ///
    /// If a hierarchy is mounted more than once, a mount of its root is preferred, then the first mount.
    pub fn from_mounts(mounts: &[Mount]) -> Self {
        let mut found = Self::default();
        let whole_first = |mount: &&Mount| mount.root != Path::new("/");
        let mut sorted: Vec<&Mount> = mounts.iter().collect();
        sorted.sort_by_key(whole_first);
        for mount in sorted {
            match mount.kind.as_str() {
                "cgroup2" if found.unified.is_none() => {
                    found.unified = Some(Hierarchy { mount: mount.target.clone(), controllers: Vec::new() });
                }
                "cgroup" => {
                    let controllers = controllers(&mount.super_options);
                    if !found.legacy.iter().any(|known| known.controllers == controllers) {
                        found.legacy.push(Hierarchy { mount: mount.target.clone(), controllers });
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Which versions of cgroups are mounted.
    pub fn layout(&self) -> Layout {
        match (&self.unified, self.legacy.as_slice()) {
            (None, []) => Layout::Absent,
            (None, _) => Layout::Legacy,
            (Some(_), []) => Layout::Unified,
            (Some(_), _) => Layout::Hybrid,
        }
    }

    /// The hierarchy that has `controller`, and its version. A controller is in at most one hierarchy.
    pub fn hierarchy(&self, controller: &str) -> Option<(&Hierarchy, Version)> {
        let has = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
        let legacy = self.legacy.iter().find(has).map(|hierarchy| (hierarchy, Version::V1));
        legacy.or_else(|| self.unified.iter().find(has).map(|hierarchy| (hierarchy, Version::V2)))
    }

    /// The cgroup at `relative` in the hierarchy of `controller`. `None` if no mounted hierarchy has it.
    pub fn cgroup(&self, controller: &str, relative: impl AsRef<Path>) -> Option<Cgroup> {
        let (hierarchy, version) = self.hierarchy(controller)?;
        Some(hierarchy.cgroup(relative, version))
    }

    /// The v2 cgroup at `relative`, whatever its controllers. `None` if v2 is not mounted.
    pub fn unified(&self, relative: impl AsRef<Path>) -> Option<Cgroup> {
        self.unified.as_ref().map(|hierarchy| hierarchy.cgroup(relative, Version::V2))
    }

    /// v2: makes `controllers` available in the cgroup at `relative`, by enabling them in all its ancestors. The
    /// ancestors must exist and, except for the root, must not contain processes.
    pub fn delegate<S: AsRef<str>>(
        &self,
        relative: impl AsRef<Path>,
        controllers: &[S],
    ) -> Result<(), CgroupError> {
        let Some(root) = self.unified("") else { return Ok(()) };
        let above: Vec<&Path> = relative.as_ref().ancestors().skip(1).collect();
        above.into_iter().rev().try_for_each(|path| root.child(path).enable(controllers))
    }
}

impl Hierarchy {
    fn cgroup(&self, relative: impl AsRef<Path>, version: Version) -> Cgroup {
        let relative = relative.as_ref();
        // Paths in /proc/PID/cgroup are absolute, but relative to the mount point.
        Cgroup::at(self.mount.join(relative.strip_prefix("/").unwrap_or(relative)), version)
    }
}

/// The controllers among the options of a v1 mount: all except the generic options of the kernel.
fn controllers(options: &[String]) -> Vec<String> {
    const GENERIC: [&str; 8] =
        ["rw", "ro", "none", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods"];
    let is_controller = |option: &&String| {
        let named = option.starts_with("name=");
        named || !(GENERIC.contains(&option.as_str()) || option.contains('='))
    };
    options.iter().filter(is_controller).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Cgroups, Layout};
    use crate::cgroup::Version;
    use crate::mounts::parse;

    const LEGACY: &str = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory,release_agent=/sbin/x
33 30 0:29 / /sys/fs/cgroup/systemd rw shared:12 - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/net_cls,net_prio rw shared:13 - cgroup cgroup rw,net_cls,net_prio
";
    const UNIFIED: &str = "40 25 0:33 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const BESIDE: &str = "41 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn co_mounted_controllers_share_a_directory() {
        let cgroups = Cgroups::from_mounts(&parse(LEGACY));
        assert_eq!(cgroups.layout(), Layout::Legacy);
        for controller in ["cpu", "cpuacct"] {
            let cgroup = cgroups.cgroup(controller, "a/b").unwrap();
            assert_eq!(cgroup.path(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
            assert_eq!(cgroup.version(), Version::V1);
        }
        assert_eq!(cgroups.legacy[1].controllers, ["memory"]);
        assert_eq!(cgroups.legacy[2].controllers, ["name=systemd"]);
        assert_eq!(cgroups.legacy[3].controllers, ["net_cls", "net_prio"]);
        assert!(cgroups.cgroup("pids", "a").is_none());
        assert!(cgroups.unified("a").is_none());
    }

    #[test]
    fn v2_alone_has_the_controllers_it_lists() {
        let mut cgroups = Cgroups::from_mounts(&parse(UNIFIED));
        cgroups.unified.as_mut().unwrap().controllers = vec!["memory".into()];
        assert_eq!(cgroups.layout(), Layout::Unified);
        let memory = cgroups.cgroup("memory", "/a").unwrap();
        assert_eq!((memory.path(), memory.version()), (Path::new("/sys/fs/cgroup/a"), Version::V2));
        assert!(cgroups.cgroup("cpu", "a").is_none());
    }

    #[test]
    fn v2_beside_v1_is_found_wherever_it_is_mounted() {
        let mut cgroups = Cgroups::from_mounts(&parse(&format!("{LEGACY}{BESIDE}")));
        cgroups.unified.as_mut().unwrap().controllers = vec!["hugetlb".into()];
        assert_eq!(cgroups.layout(), Layout::Hybrid);
        assert_eq!(cgroups.hierarchy("memory").unwrap().1, Version::V1);
        assert_eq!(cgroups.hierarchy("hugetlb").unwrap().1, Version::V2);
        assert_eq!(cgroups.unified("x").unwrap().path(), Path::new("/sys/fs/cgroup/unified/x"));
    }

    #[test]
    fn a_mount_of_the_root_is_preferred_to_a_mount_of_a_subdirectory() {
        let part = "20 1 0:33 /docker/1 /part rw - cgroup2 cgroup2 rw\n";
        let cgroups = Cgroups::from_mounts(&parse(&format!("{part}{BESIDE}")));
        assert_eq!(cgroups.unified.unwrap().mount, Path::new("/sys/fs/cgroup/unified"));
        let cgroups = Cgroups::from_mounts(&parse(part));
        assert_eq!(cgroups.unified.unwrap().mount, Path::new("/part"));
    }

    #[test]
    fn cgroups_are_serialised_and_deserialised() {
        let cgroups = Cgroups::from_mounts(&parse(&format!("{LEGACY}{BESIDE}")));
        let wire = serde_json::to_string(&cgroups).unwrap();
        assert_eq!(serde_json::from_str::<Cgroups>(&wire).unwrap(), cgroups);
        assert_eq!(serde_json::from_str::<Cgroups>("{}").unwrap().layout(), Layout::Absent);
    }

    #[test]
    fn controllers_are_enabled_from_the_root_down() {
        let directory = tempfile::tempdir().unwrap();
        let mut cgroups = Cgroups::from_mounts(&parse(UNIFIED));
        cgroups.unified.as_mut().unwrap().mount = directory.path().to_owned();
        let knob = "cgroup.subtree_control";
        for path in ["", "a", "a/b", "a/b/c"] {
            std::fs::create_dir_all(directory.path().join(path)).unwrap();
            std::fs::write(directory.path().join(path).join(knob), "").unwrap();
        }
        cgroups.delegate("a/b/c", &["memory", "pids"]).unwrap();
        for (path, enabled) in
            [("", "+memory +pids"), ("a", "+memory +pids"), ("a/b", "+memory +pids"), ("a/b/c", "")]
        {
            assert_eq!(cgroups.unified(path).unwrap().read(knob).unwrap(), enabled, "{path}");
        }
    }
}
