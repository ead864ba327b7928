//! Mounts that only a test sees.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

/// Runs a test on a thread with a mount namespace of its own, which the processes that it starts share.
///
/// # Panics
/// If the test panics, or the kernel refuses.
pub fn in_own_namespace(test: impl FnOnce() + Send) {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("a mount namespace");
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
            .expect("no propagation");
        test();
    });
}

/// Runs a test on a thread in the mount namespace of a process, which the processes that it starts share.
///
/// # Panics
/// If the test panics, or the kernel refuses.
pub fn in_namespace_of(pid: i32, test: impl FnOnce() + Send) {
    on_own_thread(|| {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt")).expect("the namespace");
        unshare(CloneFlags::CLONE_FS).expect("a working directory of its own");
        setns(namespace, CloneFlags::CLONE_NEWNS).expect("the mount namespace");
        test();
    });
}

fn on_own_thread(run: impl FnOnce() + Send) {
    if let Err(panic) = thread::scope(|scope| scope.spawn(run).join()) {
        std::panic::resume_unwind(panic);
    }
}

/// A file system in memory on a directory, which is created. Detached on drop.
#[derive(Debug)]
pub struct Memory(PathBuf);

impl Memory {
    /// Mounts one with options such as `size=1m,nr_inodes=100`.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn mount(directory: &Path, options: &str) -> Self {
        Self::mount_with(directory, MountFlags::empty(), options)
    }

    /// Likewise, with flags such as `NOSUID`.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn mount_with(directory: &Path, flags: MountFlags, options: &str) -> Self {
        fs::create_dir_all(directory).expect("a directory");
        let options = CString::new(format!("mode=0711,{options}")).expect("no NUL");
        mount("test", directory, "tmpfs", flags, Some(&*options)).expect("a tmpfs");
        Self(directory.to_owned())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Processes may still use it.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
