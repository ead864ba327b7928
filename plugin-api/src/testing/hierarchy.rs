//! Hierarchies of cgroup v1 that are mounted for the time of a test.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cofferdam_linux::cgroup::{Cgroups, Hierarchy};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Controllers that cgroup v2 never has: mounting them takes nothing from others.
const ON_V1_ONLY: [&str; 2] = ["net_cls", "net_prio"];

/// Beginning of the names of directories that they are mounted on.
const PREFIX: &str = "cofferdam-hierarchy-";

/// Unmounts its hierarchy when it is dropped.
pub(super) struct Mounted {
    directory: PathBuf,
}

/// Mounts those of `controllers` that are only on v1 and not mounted, and adds them to `machine`. Without permission, or in
/// a kernel without them, nothing is added.
pub(super) fn mount_missing<'a>(
    machine: &mut Cgroups,
    controllers: impl Iterator<Item = &'a str>,
) -> Vec<Arc<Mounted>> {
    // Those of another test may be unmounted at any time.
    machine.legacy.retain(|hierarchy| !is_of_test(&hierarchy.mount));
    let missing = controllers.filter(|name| ON_V1_ONLY.contains(name) && machine.hierarchy(name).is_none());
    let mut mounted = Vec::new();
    let mut added = Vec::new();
    for controller in missing {
        let Some(hierarchy) = Mounted::shared(controller) else { continue };
        added
            .push(Hierarchy { mount: hierarchy.directory.clone(), controllers: vec![controller.to_owned()] });
        mounted.push(hierarchy);
    }
    machine.legacy.extend(added);
    mounted
}

fn is_of_test(mount: &Path) -> bool {
    mount.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

impl Mounted {
    /// One mount for all tests of this process.
    fn shared(controller: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<BTreeMap<String, Weak<Mounted>>> = Mutex::new(BTreeMap::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = shared.get(controller).and_then(Weak::upgrade) {
            return Some(mounted);
        }
        let mounted = Arc::new(Self::mount(controller).ok()?);
        shared.insert(controller.to_owned(), Arc::downgrade(&mounted));
        Some(mounted)
    }

    fn mount(controller: &str) -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir(&directory)?;
        let options = CString::new(controller)?;
        if let Err(errno) =
            mount("cgroup", &directory, "cgroup", MountFlags::empty(), Some(options.as_c_str()))
        {
            std::fs::remove_dir(&directory)?;
            return Err(errno.into());
        }
        Ok(Self { directory })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What fails is left to the operator of the machine; the test has its result.
        let _ = unmount(&self.directory, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.directory);
    }
}
