//! How a threaded agent brings a process into the world: clone3(2) and execveat(2), and nothing in between that
//! could trip over another thread.
//!
//! ```text
//! agent thread            child (same memory, agent thread asleep)          after exec
//! ─────────────           ────────────────────────────────────────          ──────────
//! block all signals
//! clone3 ────────────────▶ write "0" to each v1 `tasks` file
//! (sleeps)                 dup2 descriptors to 0, 1, 2, …
//!                          close all others
//! unblock, return ◀─────── execveat(image) ───────────────────────────────▶ image runs, all signals blocked
//! ```
//!
//! With [`Spawn::enter`] a first child shares the agent's descriptors, joins the namespaces, and makes the real
//! one with CLONE_PARENT: so the real one is a child of the agent, and its pidfd lands in the agent's table. If a
//! pid namespace is joined *and* a new one is wanted in it, there is another helper between them.
//!
//! Until it executes, a child in a joined pid namespace shares the agent's memory within sight of the container. An
//! agent should therefore be undumpable (PR_SET_DUMPABLE), so that tracing it takes CAP_SYS_PTRACE.
//!
//! Why each flag: CLONE_VM saves copying the agent's page tables; CLONE_VFORK keeps our stack frame still while
//! the child uses it; CLONE_CLEAR_SIGHAND keeps the agent's handlers from running in the child; the blocked mask
//! keeps them from running before that. Why the child writes itself into v1 cgroups: a single thread that moves
//! itself is the only mover for which the kernel does not take the global thread-group lock, which costs an RCU
//! grace period (6–20 ms) on a quiet machine.

mod clone;

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::image::Image;
use crate::namespace::Namespaces;
use crate::process::{Process, ProcessError};

/// What a new process is to be born with.
#[derive(Debug, Clone, Copy)]
pub struct Spawn<'a> {
    /// The program to execute. Its environment is empty.
    pub image: &'a Image,
    /// Its arguments, the first being its name. At most [`Spawn::MAX_ARGUMENTS`].
    pub arguments: &'a [&'a CStr],
    /// Its open files, becoming descriptors 0, 1, 2, … At most [`Spawn::MAX_DESCRIPTORS`]. It has no other.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Namespaces made new for it.
    pub clone: Namespaces,
    /// Namespaces of another process to join first.
    pub enter: Option<Enter<'a>>,
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `tasks` files of cgroup v1 directories, opened for writing, which it joins before it executes.
    pub tasks: &'a [BorrowedFd<'a>],
}

/// Whose namespaces to join, and which of them.
#[derive(Debug, Clone, Copy)]
pub struct Enter<'a> {
    /// The process that is in them.
    pub process: &'a Process,
    /// Which of its namespaces. The user namespace cannot be joined.
    pub namespaces: Namespaces,
}

impl Spawn<'_> {
    /// Most arguments a birth takes: they are laid out on a stack frame.
    pub const MAX_ARGUMENTS: usize = 7;
    /// Most descriptors a birth takes.
    pub const MAX_DESCRIPTORS: usize = 16;

    /// Makes the process. It runs `image` when this returns.
    ///
    /// The calling thread sleeps until then (some 100 µs); others run on. The new process starts with all
    /// signals blocked, handlers reset, and ignored signals still ignored.
    pub fn spawn(&self) -> Result<Process, SpawnError> {
        let (pid, pidfd) = clone::birth(self)?;
        match pid {
            Some(pid) => Process::from_pidfd(pid, pidfd),
            None => Process::from_pidfd_alone(pidfd),
        }
        .map_err(SpawnError::Identify)
    }
}

/// Where on the way to its first instruction a birth failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// clone3(2): new namespaces, or the v2 cgroup.
    Clone = 1,
    /// setns(2) into the namespaces of the other process.
    Enter = 2,
    /// Joining the v1 cgroups.
    Join = 3,
    /// Arranging the descriptors.
    Descriptors = 4,
    /// execveat(2).
    Exec = 5,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clone => "cloning",
            Self::Enter => "entering namespaces",
            Self::Join => "joining a cgroup",
            Self::Descriptors => "arranging descriptors",
            Self::Exec => "executing the image",
        })
    }
}

/// A process that could not be made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// More arguments or descriptors than a birth takes.
    #[error("a birth takes at most {max} {what}, not {given}")]
    TooMany {
        /// `arguments` or `descriptors`.
        what: &'static str,
        /// How many there may be.
        max: usize,
        /// How many there were.
        given: usize,
    },
    /// A v1 cgroup could not be joined.
    #[error("the new process could not join cgroup number {index} of those given")]
    Join {
        /// Index into [`Spawn::tasks`].
        index: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Any other step failed.
    #[error("the new process failed while {step}")]
    Step {
        /// Which.
        step: Step,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It was born, and was gone before its start time could be read.
    #[error("the new process cannot be identified")]
    Identify(#[source] ProcessError),
}
