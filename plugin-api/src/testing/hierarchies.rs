//! The real control groups of the machine that a test runs on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use cofferdam_plugin_model::Cgroups;

use crate::Cgroup;

/// The real control groups of this machine, for one container of one test; removed when dropped.
///
/// The container's own are below a name that no other test has. On v2 they exist, with a `leaf` for
/// processes, as they do when the agent has made them; on v1 they are the plugin's to make.
#[derive(Debug)]
pub struct Hierarchies {
    cgroups: Cgroups,
}

impl Hierarchies {
    /// Those of this machine, if it has all of `controllers` and lets us change them. If not, says so
    /// loudly, because a test is about to be skipped.
    ///
    /// # Panics
    /// Where the environment says `CI=true`: there nothing is skipped.
    #[must_use]
    pub fn of_this_machine(controllers: &[&str]) -> Option<Self> {
        match Self::find(controllers) {
            Ok(found) => Some(found),
            Err(reason) => {
                super::skip(reason);
                None
            }
        }
    }

    /// What a container on this machine is told.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    fn find(controllers: &[&str]) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cofferdam-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let mut cgroups = Cgroups { path: PathBuf::from(name).join("web"), ..read_mounts(&mounts) };
        if let Some(mount) = &cgroups.v2 {
            let offered = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            cgroups.v2_controllers = offered.split_ascii_whitespace().map(str::to_owned).collect();
        }
        // Only the hierarchies that were asked for, so that dropping leaves the others alone.
        cgroups.v1.retain(|controller, _| controllers.contains(&controller.as_str()));
        let found = Self { cgroups };
        for &controller in controllers {
            // v2 has no such controller: `cpu` counts there.
            if controller == "cpuacct" && found.cgroups.v2_controllers.iter().any(|offered| offered == "cpu")
            {
                continue;
            }
            let cgroup = Cgroup::of(&found.cgroups, controller).map_err(|error| error.to_string())?;
            fs::create_dir_all(cgroup.directory()).map_err(|error| format!("cannot make one: {error}"))?;
            match cgroup.version() {
                // The plugin is to make it; that we could was what we wanted to know.
                cofferdam_plugin_model::CgroupVersion::V1 => {
                    let _ = fs::remove_dir(cgroup.directory());
                }
                cofferdam_plugin_model::CgroupVersion::V2 => {
                    let leaf = cgroup.directory().join("leaf");
                    fs::create_dir_all(leaf).map_err(|error| format!("cannot make a leaf: {error}"))?;
                }
            }
        }
        Ok(found)
    }
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for mount in self.cgroups.v1.values().chain(&self.cgroups.v2) {
            let web = mount.join(&self.cgroups.path);
            for directory in [Some(web.join("leaf")), Some(web.clone()), web.parent().map(Into::into)] {
                let _ = directory.map(fs::remove_dir);
            }
        }
    }
}

/// See proc_pid_mountinfo(5).
fn read_mounts(text: &str) -> Cgroups {
    let (mut v1, mut v2) = (BTreeMap::new(), None);
    for line in text.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let Some(target) = place.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut kind = kind.split(' ');
        match (kind.next(), kind.nth(1)) {
            (Some("cgroup2"), _) => v2 = v2.or(Some(target)),
            (Some("cgroup"), Some(options)) => {
                for option in options.split(',') {
                    v1.entry(option.to_owned()).or_insert_with(|| target.clone());
                }
            }
            _ => {}
        }
    }
    Cgroups { v1, v2, ..Cgroups::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_the_mount_table() {
        let text = "35 33 0:31 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    36 33 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw,nsdelegate\n\
                    37 33 0:33 / /proc rw - proc proc rw\n";
        let cgroups = read_mounts(text);
        assert_eq!(cgroups.v1["cpuacct"], PathBuf::from("/sys/fs/cgroup/cpu"));
        assert_eq!(cgroups.v2, Some("/sys/fs/cgroup/unified".into()));
    }
}
