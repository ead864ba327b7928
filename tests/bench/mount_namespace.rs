//! A mount namespace for programs that are measured.

use std::fs::File;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Outcome;

/// A mount namespace with other mounts than that of this process. Many processes share it, as creating and destroying
/// one takes the kernel some time, which is not the program's.
pub struct MountNamespace(File);

impl MountNamespace {
    /// Creates one. `change` runs in it, on a thread of its own.
    pub fn new(change: impl FnOnce() -> Outcome<()> + Send) -> Outcome<Self> {
        let create = || -> Outcome<File> {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            change()?;
            Ok(File::open("/proc/thread-self/ns/mnt")?)
        };
        let created = std::thread::scope(|scope| scope.spawn(create).join());
        Ok(Self(created.map_err(|_| "a thread panicked")??))
    }

    /// Runs `work` in it, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
        let enter = || {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.0, CloneFlags::CLONE_NEWNS)?;
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(enter).join());
        done.map_err(|_| "a thread panicked")?
    }
}
