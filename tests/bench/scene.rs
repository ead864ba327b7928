//! Where the measuring takes place: folders, control groups, what is installed; and leaving it as it was found.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam_linux::cgroup::Cgroups;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Outcome;

/// The control group below which peers and the floor have theirs.
pub const CGROUP: &str = "cofferdam-bench";

/// Where the measuring takes place.
pub struct Scene {
    pub runtime: Runtime,
    pub cgroups: Cgroups,
    interrupted: Arc<AtomicBool>,
    _borrowed: Option<Borrowed>,
    // Last, because what is above has its files in it.
    directory: TempDir,
}

impl Scene {
    /// Looks at the machine, and makes what all need.
    pub fn set() -> Outcome<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err("containers with control groups need root; run it with `sudo -E`".into());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("bench: ending what was started; a moment, please");
                flag.store(true, Ordering::Relaxed);
            }
        });
        let directory = tempfile::Builder::new().prefix("cofferdam-bench-").tempdir()?;
        let rootfs = directory.path().join("rootfs");
        make_rootfs(&rootfs).map_err(|error| format!("cannot make a root file system: {error}"))?;
        let cgroups = Cgroups::detect()?;
        let borrowed = Borrowed::borrow(&cgroups, &directory.path().join("borrowed"))?;
        Ok(Self { runtime, cgroups, interrupted, _borrowed: borrowed, directory })
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A root file system of busybox, with the empty directories that images have.
    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// An error once somebody pressed Ctrl-C. Asked between containers, so that each is ended in its usual way.
    pub fn go_on(&self) -> Outcome<()> {
        match self.interrupted.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err("interrupted".into()),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for hierarchy in self.cgroups.legacy.iter().chain(&self.cgroups.unified) {
            remove_cgroups(&hierarchy.mount.join(CGROUP));
        }
    }
}

fn make_rootfs(rootfs: &Path) -> io::Result<()> {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "mnt/mesos/sandbox"] {
        fs::create_dir_all(rootfs.join(directory))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).map_err(|error| {
        io::Error::new(error.kind(), format!("`/bin/busybox`: {error} (Debian package busybox-static)"))
    })?;
    for tool in ["sh", "true", "sleep"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(tool))?;
    }
    Ok(())
}

/// Removes control groups, the innermost first. Those that do not go are left and named.
pub fn remove_cgroups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("bench: cannot remove control group {}: {error}", directory.display());
        }
        _ => {}
    }
}

/// A controller that was lent to a v1 hierarchy, because crun refuses hosts where v1 is in use and v2 has controllers.
struct Borrowed {
    controllers: Vec<String>,
    mount: PathBuf,
}

impl Borrowed {
    fn borrow(cgroups: &Cgroups, mount_at: &Path) -> Outcome<Option<Self>> {
        let Some(unified) = cgroups.unified.as_ref().filter(|_| !cgroups.legacy.is_empty()) else {
            return Ok(None);
        };
        let controllers: Vec<String> = fs::read_to_string(unified.mount.join("cgroup.controllers"))?
            .split_whitespace()
            .map(Into::into)
            .collect();
        if controllers.is_empty() {
            return Ok(None);
        }
        fs::create_dir(mount_at)?;
        match mount_v1(&controllers, mount_at) {
            Ok(()) => Ok(Some(Self { controllers, mount: mount_at.to_owned() })),
            Err(error) => {
                eprintln!("bench: cannot move `{}` to v1, so crun may fail: {error}", controllers.join(","));
                Ok(None)
            }
        }
    }

    /// Whether v2 has them back.
    fn is_back(&self) -> bool {
        let known = fs::read_to_string("/proc/cgroups").unwrap_or_default();
        self.controllers.iter().all(|controller| {
            known.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(controller) && words.next() == Some("0")
            })
        })
    }
}

fn mount_v1(controllers: &[String], at: &Path) -> nix::Result<()> {
    mount(Some("cgroup"), at, Some("cgroup"), MsFlags::empty(), Some(controllers.join(",").as_str()))
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        remove_cgroups(&self.mount.join(CGROUP));
        let deadline = Instant::now() + Duration::from_secs(10);
        // A hierarchy that is unmounted while a removed group of it still dies lives on. It must then be mounted and
        // unmounted once more; the kernel has no event for that.
        loop {
            let unmounted = umount2(&self.mount, MntFlags::empty());
            if unmounted.is_ok() && self.is_back() {
                return;
            }
            if Instant::now() > deadline {
                eprintln!("bench: `{}` stays in a v1 hierarchy: {unmounted:?}", self.controllers.join(","));
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
            if unmounted.is_ok()
                && !self.is_back()
                && let Err(error) = mount_v1(&self.controllers, &self.mount)
            {
                eprintln!("bench: cannot mount `{}` again: {error}", self.controllers.join(","));
                return;
            }
        }
    }
}
