//! Where the measuring takes place: folders, control groups, what is installed; and leaving it as it was found.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cofferdam_linux::cgroup::Cgroups;
use nix::sys::statfs::TMPFS_MAGIC;
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
    directory: TempDir,
    state: TempDir,
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
        let state = match ["/run", "/dev/shm"].into_iter().find(|path| is_memory(Path::new(path))) {
            Some(path) => tempfile::Builder::new().prefix("cofferdam-bench-").tempdir_in(path)?,
            None => tempfile::Builder::new().prefix("cofferdam-bench-").tempdir()?,
        };
        Ok(Self { runtime, cgroups: Cgroups::detect()?, interrupted, directory, state })
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// For what ends with the machine: in memory, as `/run` is on an ordinary host.
    pub fn state(&self) -> &Path {
        self.state.path()
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

fn is_memory(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
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
