//! Companions: processes that a plugin starts, and that outlive the agent.
//!
//! ```text
//! agent ── plugin.so ── start ──▶ /lib64/ld-linux-x86-64.so.2 plugin.so WEB
//!                 ▲                    │ the companion's function, with descriptors
//!                 └── find ◀── agent restarts
//! ```
//!
//! The program of a companion is the plugin's own file, so that both are of one version, checked and copied by the agent
//! as one: [`companion!`](crate::companion!) gives the library an entry point, and the dynamic loader runs it as a program.
//! Between fork and exec there is no code of this process.
//!
//! A companion has its own session, the working directory `/`, an empty environment, and no descriptors but those that it is
//! given; it is in the agent's cgroup for companions. All signals are blocked: it ends when its work is done, or is killed.
//!
//! ```no_run
//! # use cofferdam_plugin_api::prelude::*;
//! # use cofferdam_plugin_api::companion::Companion;
//! # use std::os::fd::{AsFd, OwnedFd};
//! cofferdam_plugin_api::companion!(copy);
//!
//! /// The companion's function: copies one descriptor to another.
//! fn copy(descriptors: Vec<OwnedFd>) -> std::io::Result<()> {
//!     let mut files = descriptors.into_iter().map(std::fs::File::from);
//!     if let (Some(mut from), Some(mut to)) = (files.next(), files.next()) {
//!         std::io::copy(&mut from, &mut to)?;
//!     }
//!     Ok(())
//! }
//!
//! fn start(host: &Host, from: OwnedFd, to: OwnedFd) -> Result<Companion> {
//!     Ok(Companion::start(host, c"copy", &[from.as_fd(), to.as_fd()])?)
//! }
//! # fn main() {}
//! ```
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_linux::image::Image;
use cofferdam_linux::process::{Process, ProcessError};
use cofferdam_linux::spawn::{Spawn, SpawnError};

use crate::Host;

/// The dynamic loader, at the path that the ABI of x86-64 defines.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The first descriptor that a companion is given. Those before are `/dev/null`.
const FIRST: RawFd = 3;

/// Status of a companion that panicked.
const PANICKED: i32 = 101;

/// A companion of a plugin: a handle of its process.
#[derive(Debug)]
pub struct Companion(Process);

/// Why a companion was not started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompanionError {
    /// The agent does not tell the plugin's file.
    #[error("this agent does not support companions; upgrade it")]
    Unsupported,
    /// A file that is needed cannot be opened.
    #[error("cannot open `{}` to start a companion", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of open(2).
        source: io::Error,
    },
    /// Its process cannot be created.
    #[error("cannot start a companion")]
    Spawn(#[source] SpawnError),
}

impl Companion {
    /// Starts the function that the plugin exports with [`companion!`](crate::companion!). It gets duplicates of the descriptors, at most
    /// 60. `name` is for display: it is the last argument of the process.
    ///
    /// The process is a child of the agent: [`Companion::reap`] it when it has ended.
    ///
    /// # Errors
    /// [`CompanionError`]. An error of the function itself is its exit status.
    pub fn start(host: &Host, name: &CStr, descriptors: &[BorrowedFd<'_>]) -> Result<Self, CompanionError> {
        if host.file().as_os_str().is_empty() {
            return Err(CompanionError::Unsupported);
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CompanionError::Open { path, source }
        };
        let image = Image::open(Path::new(LOADER)).map_err(failed(Path::new(LOADER)))?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(failed(Path::new("/dev/null")))?;
        let cgroup = match &host.agent().companion_cgroup {
            Some(directory) => Some(Cgroup::open(directory).map_err(failed(directory))?),
            None => None,
        };
        let file = host.file().as_os_str().as_bytes();
        let file = std::ffi::CString::new(file).map_err(|_| CompanionError::Unsupported)?;
        let all: Vec<BorrowedFd<'_>> =
            (0..FIRST).map(|_| null.as_fd()).chain(descriptors.iter().copied()).collect();
        let (v2, v1) = match &cgroup {
            None => (None, None),
            Some(Cgroup::V2(directory)) => (Some(directory.as_fd()), None),
            Some(Cgroup::V1(tasks)) => (None, Some(tasks.as_fd())),
        };
        let spawn = Spawn {
            image: &image,
            arguments: &[c"cofferdam-companion", &file, name],
            descriptors: &all,
            cgroup: v2,
            tasks: v1.as_slice(),
        };
        spawn.spawn().map(Self).map_err(CompanionError::Spawn)
    }

    /// The companion that an earlier instance has started; `None` if it has ended.
    ///
    /// # Errors
    /// If its process cannot be opened.
    pub fn find(pid: i32, start_time: u64) -> io::Result<Option<Self>> {
        match Process::open(pid, start_time) {
            // It may wait to be reaped by another process.
            Ok(process) if process.has_ended()? => Ok(None),
            Ok(process) => Ok(Some(Self(process))),
            Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. }) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The process with a pid; `None` if it has ended. The caller knows that it is the companion, for example because that
    /// holds a lock, also when this has returned.
    ///
    /// # Errors
    /// If its process cannot be opened.
    pub fn open(pid: i32) -> io::Result<Option<Self>> {
        match Process::open_any(pid) {
            Ok(process) if process.has_ended()? => Ok(None),
            Ok(process) => Ok(Some(Self(process))),
            Err(ProcessError::Gone { .. }) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Its start time, which with the pid identifies it within one boot.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.0.start_time()
    }

    /// Another handle of it.
    ///
    /// # Errors
    /// If there are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Waits until it has ended. Returns whether it has.
    ///
    /// # Errors
    /// The error of poll(2).
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        self.0.wait(Some(timeout))
    }

    /// Kills it. It is no error if it has ended.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn kill(&self) -> io::Result<()> {
        self.0.kill().map_err(io::Error::other)
    }

    /// Removes the record that the kernel keeps of a child that has ended. Does nothing if it is running or no child.
    pub fn reap(&self) {
        if let Err(error) = self.0.reap() {
            tracing::debug!(%error, pid = self.pid(), "cannot reap a companion");
        }
    }
}

impl AsFd for Companion {
    /// Its pidfd, readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The cgroup of companions.
enum Cgroup {
    V1(File),
    V2(File),
}

impl Cgroup {
    fn open(directory: &Path) -> io::Result<Self> {
        match OpenOptions::new().write(true).open(directory.join("tasks")) {
            Ok(tasks) => Ok(Self::V1(tasks)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open(directory).map(Self::V2),
            Err(error) => Err(error),
        }
    }
}

/// Runs the function of a companion, in its process. Returns the exit status. Used by the expansion of [`companion!`](crate::companion!).
#[doc(hidden)]
pub fn run(function: fn(Vec<OwnedFd>) -> io::Result<()>) -> i32 {
    // SAFETY: this is the entry of the process, in which nothing else owns a descriptor.
    let descriptors = unsafe { take_descriptors() };
    let run = || {
        rustix::process::setsid()?;
        rustix::process::chdir(c"/")?;
        rustix::thread::set_name(c"cofferdam-comp")?;
        function(descriptors)
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 1,
        Err(_) => PANICKED,
    }
}

/// The descriptors that this process was given.
///
/// # Safety
/// Nothing owns them.
unsafe fn take_descriptors() -> Vec<OwnedFd> {
    // SAFETY: only its flags are asked for, which has no effect, whether it is open or not.
    let is_open =
        |number: &RawFd| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*number) }).is_ok();
    // SAFETY: it is open, and the caller promises that nothing owns it.
    (FIRST..).take_while(is_open).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

/// Exports a function as the program of the plugin's companions: `fn(Vec<OwnedFd>) -> std::io::Result<()>`. It gets the
/// descriptors in the order in which [`Companion::start`](crate::companion::Companion::start) got them. Its process has one thread and exits when it returns:
/// with 0, 1 after an error, or 101 after a panic.
///
/// Once per library.
#[macro_export]
macro_rules! companion {
    ($function:path) => {
        // A test program has an entry point already.
        #[cfg_attr(test, allow(dead_code))]
        extern "C" fn __companion_main(_: i32, _: *const *const u8, _: *const *const u8) -> i32 {
            $crate::companion::run($function)
        }

        // As in the start-up files of the C library: the loader passes the arguments on the stack, and a function for the
        // exit in rdx.
        #[cfg(not(test))]
        ::core::arch::global_asm!(
            ".globl _start",
            ".type _start, @function",
            "_start:",
            "xor ebp, ebp",
            "mov r9, rdx",
            "pop rsi",
            "mov rdx, rsp",
            "and rsp, -16",
            "push rax",
            "push rsp",
            "xor r8d, r8d",
            "xor ecx, ecx",
            "lea rdi, [rip + {main}]",
            "call qword ptr [rip + __libc_start_main@GOTPCREL]",
            "hlt",
            main = sym __companion_main,
        );
    };
}
