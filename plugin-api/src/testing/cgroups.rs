//! Tests of isolators on the real cgroups of the machine.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cofferdam_linux::cgroup as linux;
use cofferdam_plugin_model as model;
use model::{Container, PrepareReply, Resources};
use serde_json::Value as Json;

use super::hierarchy::{Mounted, mount_missing};
use super::{PluginHarness, Refused, Shell};
use crate::cgroup::{Cgroup, CgroupError, CgroupVersion};
use crate::{Controllers, Isolator};

/// An instance of an isolator, and a container `web` in real cgroups of this machine, which are removed when the value
/// is dropped.
///
/// The cgroups are those that the agent would describe: on v2 they exist, with a cgroup `leaf` for processes; on v1 the
/// plugin creates them. A controller that is only on v1 is mounted for the time of the test.
///
/// ```no_run
/// use cofferdam_plugin_api::prelude::*;
/// use cofferdam_plugin_api::testing::CgroupHarness;
/// # struct Pids;
/// # impl Isolator for Pids {
/// #     const NAME: &'static str = "example/pids";
/// #     type Config = ();
/// #     fn create(_: (), _: Host) -> Result<Self> { Ok(Self) }
/// # }
///
/// let Some(harness) = CgroupHarness::<Pids>::new(Controllers::new("pids"), json!({})) else { return };
/// harness.prepare().unwrap();
/// assert_eq!(harness.cgroup().read("pids.max").unwrap(), "100");
/// let shell = harness.spawn("echo ready; read end");
/// assert_eq!(harness.usage("web").unwrap().number("processes"), Some(1.0));
/// shell.end();
/// harness.cleanup("web").unwrap();
/// ```
#[must_use]
pub struct CgroupHarness<I> {
    harness: PluginHarness<I>,
    container: Container,
    controllers: Controllers,
    cgroup: Cgroup,
    // Last, so that the directories are removed when nothing uses them any more.
    directories: Directories,
}

impl<I: Isolator> CgroupHarness<I> {
    /// Creates an isolator that manages these controllers. `None` if this machine does not have the main one or does not
    /// permit the test to use it, which is reported on standard error: the test must return, it is skipped.
    ///
    /// # Panics
    /// If the configuration is refused, and with `CI=true` in the environment, where no test is skipped.
    pub fn new(controllers: Controllers, config: Json) -> Option<Self> {
        Self::in_hierarchies(linux::Cgroups::detect(), controllers, config)
    }

    /// As [`CgroupHarness::new`], but as on a host with cgroup v2 only.
    ///
    /// # Panics
    /// As [`CgroupHarness::new`].
    pub fn on_v2(controllers: Controllers, config: Json) -> Option<Self> {
        let unified = linux::Cgroups::detect().map(|found| linux::Cgroups { legacy: Vec::new(), ..found });
        Self::in_hierarchies(unified, controllers, config)
    }

    fn in_hierarchies(
        machine: std::io::Result<linux::Cgroups>,
        controllers: Controllers,
        config: Json,
    ) -> Option<Self> {
        let machine = machine.map_err(|error| error.to_string());
        match machine.and_then(|machine| Directories::create(machine, controllers)) {
            Ok(directories) => Some(Self::on(directories, controllers, config)),
            Err(reason) => {
                super::skip(reason);
                None
            }
        }
    }

    #[expect(clippy::expect_used, reason = "the test is wrong")]
    fn on(directories: Directories, controllers: Controllers, config: Json) -> Self {
        let harness = PluginHarness::isolator(config).expect("a valid configuration");
        let container = Container { cgroups: directories.cgroups.clone(), ..harness.container("web") };
        let cgroup = directories.main(controllers).expect("it was found");
        Self { harness, container, controllers, cgroup, directories }
    }

    /// Has the container request these resources.
    pub fn with_resources(mut self, resources: Resources) -> Self {
        self.container.resources = resources;
        self
    }

    /// `prepare` of the container.
    ///
    /// # Errors
    /// What would fail the launch.
    pub fn prepare(&self) -> Result<PrepareReply, Refused> {
        self.harness.prepare_container(&self.container)
    }

    /// Where the cgroups of the container are.
    #[must_use]
    pub fn cgroups(&self) -> &model::Cgroups {
        &self.container.cgroups
    }

    /// The container's cgroup of the main controller.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its cgroup of another controller, if the machine has that.
    #[must_use]
    pub fn cgroup_of(&self, controller: &str) -> Option<Cgroup> {
        Cgroup::find(&self.container.cgroups, controller)
    }

    /// Whether the main controller is on cgroup v1.
    #[must_use]
    pub fn is_v1(&self) -> bool {
        self.cgroup.version() == CgroupVersion::V1
    }

    /// Content of an interface file of the main controller, which has another name on each version.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the test cannot go on")]
    pub fn read(&self, v1: &str, v2: &str) -> String {
        self.cgroup.read(if self.is_v1() { v1 } else { v2 }).expect("the interface file")
    }

    /// A container nested in `web`, with cgroups below those of `web`. To be prepared with
    /// [`PluginHarness::prepare_container`].
    ///
    /// # Panics
    /// If `id` is not the id of such a container, or its cgroup cannot be created.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the test is wrong")]
    pub fn nested(&self, id: &str) -> Container {
        let mut container = self.sharing(id);
        container.linux.share_cgroups = false;
        container.cgroups.path.push(id.rsplit('.').next().expect("the last value of the id"));
        self.directories.create_v2(&container.cgroups).expect("the cgroup");
        container
    }

    /// A container nested in `web` that shares its cgroups.
    ///
    /// # Panics
    /// If `id` is not a container id.
    #[must_use]
    pub fn sharing(&self, id: &str) -> Container {
        let mut container = self.harness.container(id);
        container.linux.share_cgroups = true;
        container.cgroups = self.container.cgroups.clone();
        container
    }

    /// Runs `sh -c SCRIPT` in the container's cgroups and waits until it prints `ready`, as [`Shell::spawn`].
    ///
    /// # Panics
    /// If it cannot be started, or prints anything else.
    #[must_use]
    pub fn spawn(&self, script: &str) -> Shell {
        self.spawn_in(&self.container, script)
    }

    /// Likewise, in the cgroups of another container.
    ///
    /// # Panics
    /// If it cannot be started, or prints anything but `ready`.
    #[must_use]
    pub fn spawn_in(&self, container: &Container, script: &str) -> Shell {
        let cgroups = self.controllers.names().filter_map(|name| Cgroup::find(&container.cgroups, name));
        let directories: Vec<PathBuf> = cgroups
            .map(|cgroup| match cgroup.version() {
                CgroupVersion::V1 => cgroup.directory().to_owned(),
                CgroupVersion::V2 => cgroup.directory().join(LEAF),
            })
            .collect();
        let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
        Shell::spawn_in(&directories, script)
    }
}

impl<I> Deref for CgroupHarness<I> {
    type Target = PluginHarness<I>;

    fn deref(&self) -> &PluginHarness<I> {
        &self.harness
    }
}

/// Name of the v2 cgroup with a container's processes.
const LEAF: &str = "leaf";

/// Cgroups of one test, below a name that no other test has.
struct Directories {
    cgroups: model::Cgroups,
    /// Unmounted when the cgroups have been removed.
    _mounted: Vec<Arc<Mounted>>,
}

impl Directories {
    fn create(mut machine: linux::Cgroups, controllers: Controllers) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cofferdam-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mounted = mount_missing(&mut machine, controllers.names());
        let mut cgroups =
            model::Cgroups { path: PathBuf::from(name).join("web"), ..model::Cgroups::default() };
        // Other hierarchies are not touched.
        for controller in controllers.names() {
            if let Some((hierarchy, CgroupVersion::V1)) = machine.hierarchy(controller) {
                cgroups.v1.insert(controller.to_owned(), hierarchy.mount.clone());
            }
        }
        if let Some(unified) = machine.unified {
            (cgroups.v2, cgroups.v2_controllers) = (Some(unified.mount), unified.controllers);
        }
        let directories = Self { cgroups, _mounted: mounted };
        let main = directories.main(controllers).map_err(|error| error.to_string())?;
        let created = match main.version() {
            // The plugin creates it; this shows that it can.
            CgroupVersion::V1 => {
                fs::create_dir_all(main.directory()).and_then(|()| fs::remove_dir(main.directory()))
            }
            CgroupVersion::V2 => directories.create_v2(&directories.cgroups),
        };
        let failed = |error| format!("cannot create `{}`: {error}", main.directory().display());
        created.map_err(failed)?;
        Ok(directories)
    }

    fn main(&self, controllers: Controllers) -> Result<Cgroup, CgroupError> {
        let main = controllers.names().next().unwrap_or_default();
        Cgroup::of(&self.cgroups, main)
    }

    /// What the agent creates.
    fn create_v2(&self, cgroups: &model::Cgroups) -> std::io::Result<()> {
        let Some(mount) = &self.cgroups.v2 else { return Ok(()) };
        fs::create_dir_all(mount.join(&cgroups.path).join(LEAF))
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        let Some(test) = self.cgroups.path.parent() else { return };
        let v1 = self.cgroups.v1.values().map(|mount| (mount, CgroupVersion::V1));
        for (mount, version) in v1.chain(self.cgroups.v2.iter().map(|mount| (mount, CgroupVersion::V2))) {
            // A failed test may have left processes there; it has been reported.
            let _ = linux::Cgroup::at(mount.join(test), version).remove(Duration::from_secs(10));
        }
    }
}
