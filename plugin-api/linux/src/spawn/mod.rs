//! Creates a process from a program with several threads: clone3(2), then execveat(2), and in between only code that
//! does not depend on other threads.
//!
//! ```text
//! agent thread            child (same memory, agent thread sleeps)          after exec
//! ─────────────           ────────────────────────────────────────          ──────────
//! block all signals
//! clone3 ────────────────▶ write "0" to each v1 `tasks` file
//! (sleeps)                 dup2 descriptors to 0, 1, 2, …
//!                          close all others
//! unblock, return ◀─────── execveat(image) ───────────────────────────────▶ image runs, all signals blocked
//! ```
//!
//! The flags: CLONE_VM avoids copying the agent's page tables; CLONE_VFORK keeps the stack frame of the agent thread
//! alive while the child uses it; CLONE_CLEAR_SIGHAND prevents the agent's handlers from running in the child, and the
//! blocked mask does so before it takes effect. The child writes itself into v1 cgroups because a single thread that
//! moves itself is the only case in which the kernel does not take the global thread-group lock, which costs an RCU
//! grace period (6–20 ms on an idle machine).

mod clone;

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::image::Image;
use crate::process::{Process, ProcessError};

/// A process to create.
#[derive(Debug, Clone, Copy)]
pub struct Spawn<'a> {
    /// The program to execute. Its environment is empty.
    pub image: &'a Image,
    /// Its arguments, starting with `argv[0]`. At most [`Spawn::MAX_ARGUMENTS`].
    pub arguments: &'a [&'a CStr],
    /// Its descriptors 0, 1, 2, … It has no others. At most [`Spawn::MAX_DESCRIPTORS`].
    pub descriptors: &'a [BorrowedFd<'a>],
    /// A cgroup v2 directory to create it in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `tasks` files of cgroup v1 directories, open for writing, which it joins before its exec.
    pub tasks: &'a [BorrowedFd<'a>],
}

impl Spawn<'_> {
    /// Maximum number of arguments: their pointers are in a stack frame.
    pub const MAX_ARGUMENTS: usize = 7;
    /// Maximum number of descriptors.
    pub const MAX_DESCRIPTORS: usize = 64;

    /// Creates the process. It runs `image` when this returns.
    ///
    /// The calling thread sleeps until then (about 100 µs). The new process starts with all signals blocked, handlers
    /// reset, and ignored signals still ignored.
    pub fn spawn(&self) -> Result<Process, SpawnError> {
        let (pid, pidfd) = clone::spawn(self)?;
        Process::from_pidfd(pid, pidfd).map_err(SpawnError::Identify)
    }
}

/// The step at which creating a process failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// clone3(2), into the v2 cgroup.
    Clone = 1,
    /// Joining the v1 cgroups.
    Join = 2,
    /// Renumbering the descriptors.
    Descriptors = 3,
    /// execveat(2).
    Exec = 4,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clone => "cloning",
            Self::Join => "joining a cgroup",
            Self::Descriptors => "renumbering descriptors",
            Self::Exec => "executing the image",
        })
    }
}

/// Why a process could not be created. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Too many arguments or descriptors.
    #[error("a new process can have at most {max} {what}, not {given}")]
    TooMany {
        /// `arguments` or `descriptors`.
        what: &'static str,
        /// Their maximum number.
        max: usize,
        /// Their number in the request.
        given: usize,
    },
    /// A v1 cgroup could not be joined.
    #[error("the new process could not join the v1 cgroup with index {index}")]
    Join {
        /// Index into [`Spawn::tasks`].
        index: usize,
        /// The error of the kernel.
        source: io::Error,
    },
    /// Any other step failed.
    #[error("the new process failed while {step}")]
    Step {
        /// The step.
        step: Step,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The process was created, and ended before its start time could be read.
    #[error("the new process cannot be identified")]
    Identify(#[source] ProcessError),
}
