//! The real control groups of the machine that a test runs on.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use cofferdam_linux::cgroup as linux;
use cofferdam_plugin_model::Cgroups;

use crate::cgroup::{Cgroup, CgroupVersion};

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
        let machine = linux::Cgroups::detect().map_err(|error| error.to_string())?;
        let mut cgroups = Cgroups { path: PathBuf::from(name).join("web"), ..Cgroups::default() };
        // Only the hierarchies that were asked for, so that dropping leaves the others alone.
        for &controller in controllers {
            if let Some((hierarchy, CgroupVersion::V1)) = machine.hierarchy(controller) {
                cgroups.v1.insert(controller.to_owned(), hierarchy.mount.clone());
            }
        }
        if let Some(unified) = machine.unified {
            (cgroups.v2, cgroups.v2_controllers) = (Some(unified.mount), unified.controllers);
        }
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
                CgroupVersion::V1 => {
                    let _ = fs::remove_dir(cgroup.directory());
                }
                CgroupVersion::V2 => {
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
