//! The environment of the benchmarks: directories, cgroups, a runtime; removed on drop.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cofferdam_linux::cgroup::{Cgroups, Layout};
use nix::sys::statfs::TMPFS_MAGIC;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::report::Report;
use crate::virtual_machine;

/// The cgroup below which other runtimes and the floor have theirs.
pub const CGROUP: &str = "cofferdam-bench";

/// Where the files of a running container are: the upper layer and the work directory of its overlay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scratch {
    /// Below the work directory, as agents do by default.
    WorkDirectory,
    /// On a tmpfs.
    Memory,
}

pub struct Environment {
    pub runtime: Runtime,
    pub cgroups: Cgroups,
    interrupted: Arc<AtomicBool>,
    directory: TempDir,
    state: TempDir,
}

impl Environment {
    /// Detects the hierarchies, and creates directories and a root file system.
    pub fn set_up() -> Outcome<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err("containers with cgroups need root; run the benchmark with `sudo -E`".into());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("bench: interrupted; ending running containers");
                flag.store(true, Ordering::Relaxed);
            }
        });
        let directory = tempfile::Builder::new().prefix("cofferdam-bench-").tempdir()?;
        let rootfs = directory.path().join("rootfs");
        make_rootfs(&rootfs).map_err(|error| format!("cannot create a root file system: {error}"))?;
        let state = match ["/run", "/dev/shm"].into_iter().find(|path| is_memory(Path::new(path))) {
            Some(path) => tempfile::Builder::new().prefix("cofferdam-bench-").tempdir_in(path)?,
            None => tempfile::Builder::new().prefix("cofferdam-bench-").tempdir()?,
        };
        Ok(Self { runtime, cgroups: Cgroups::detect()?, interrupted, directory, state })
    }

    /// Adds what is known of this machine to the report.
    pub fn describe(&self, report: &mut Report) -> Outcome<()> {
        let read = |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
        report.fact("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease")?.trim()));
        let emulated = if virtual_machine::inside() { ", emulated" } else { "" };
        report.fact("CPUs", format!("{}{emulated}", std::thread::available_parallelism()?));
        report.fact("load average", read("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "));
        let layout = match self.cgroups.layout() {
            Layout::Absent => "none",
            Layout::Legacy => "v1",
            Layout::Hybrid => "v1 and v2",
            Layout::Unified => "v2",
        };
        report.fact("cgroups", layout);
        for (name, directory) in
            [("work directories", self.directory()), ("runtime directories", self.state())]
        {
            let place = if is_memory(directory) { "tmpfs" } else { "not on a tmpfs" };
            report.fact(name, format!("in {}, {place}", directory.parent().unwrap_or(directory).display()));
        }
        Ok(())
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Directory for state that need not survive a reboot: in memory, as `/run` usually is.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Directory for scratch directories.
    pub fn scratch(&self, scratch: Scratch) -> &Path {
        match scratch {
            Scratch::WorkDirectory => self.directory(),
            Scratch::Memory => self.state(),
        }
    }

    /// A root file system of busybox, with the usual empty directories.
    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// Fails after Ctrl-C. Called between containers, so that each one is removed.
    pub fn check_interrupted(&self) -> Outcome<()> {
        match self.interrupted.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err("interrupted".into()),
        }
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        for hierarchy in self.cgroups.legacy.iter().chain(&self.cgroups.unified) {
            remove_cgroups(&hierarchy.mount.join(CGROUP));
        }
    }
}

/// Whether a directory is in memory.
pub fn is_memory(path: &Path) -> bool {
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

/// Removes cgroups, children first. Prints those that cannot be removed.
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
