//! Whether plugin code changed the thread that it was called on.
//!
//! A thread of the pool creates containers, and what a thread has is inherited: a network namespace that a plugin
//! entered in `prepare` would be that of the container. So every call is followed by a comparison of the thread with
//! what it was when it started. A thread that was changed is not used again.
//!
//! | Checked | What |
//! |---|---|
//! | after each call | ids, capabilities, signal mask; whether directories, umask and descriptors are still shared |
//! | also after calls that change the host, and before the thread takes another job | namespaces, groups, fs ids, `no_new_privs` |
//!
//! A mount or user namespace needs no check of its own: the kernel lets no thread of a multithreaded process change
//! its user namespace, nor its mount namespace while it shares its directories.
//!
//! What belongs to the whole process (its directories, umask, environment) cannot be attributed to a thread, so it
//! is not compared. Containers do not inherit it: their first process sets all of it.

mod sys;

use std::cell::RefCell;
use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use nix::sys::signal::SigSet;
use nix::unistd::{ResGid, ResUid, getresgid, getresuid};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, getgroups};
use rustix::thread::CapabilitySets;

use sys::Ids;

/// Namespaces that a thread can change by itself, or choose for its children.
const NAMESPACES: [(&CStr, &str); 6] = [
    (c"cgroup", "cgroup namespace"),
    (c"ipc", "IPC namespace"),
    (c"net", "network namespace"),
    (c"pid_for_children", "pid namespace of its children"),
    (c"time_for_children", "time namespace of its children"),
    (c"uts", "UTS namespace"),
];

thread_local! {
    /// What this thread was when it started; `None` on threads that are not of the pool.
    static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

struct Thread {
    ids: Ids,
    /// The links in `/proc/thread-self/ns`, which show the namespaces of this thread whatever is mounted later.
    namespaces: Namespaces,
    quick: Quick,
    thorough: Thorough,
    /// Whether a call was followed by the quick check alone.
    is_unverified: bool,
}

/// What plugin code changed of its thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes(Vec<&'static str>);

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// How much is compared after a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Quick,
    Thorough,
}

/// Notes what the calling thread is, for later checks.
pub(super) fn start() {
    let ids = Ids::of_this_thread();
    let namespaces = open_namespaces();
    let (quick, thorough) = (Quick::read(ids), Thorough::read(&namespaces));
    THREAD.set(Some(Thread { ids, namespaces, quick, thorough, is_unverified: false }));
}

/// `None` for a namespace that this kernel does not have.
fn open_namespaces() -> Namespaces {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(c"/proc/thread-self/ns", flags | OFlags::DIRECTORY, Mode::empty())
        .inspect_err(|error| {
            tracing::error!(
                "cannot check threads for namespaces that plugins enter: /proc/thread-self/ns: {error}"
            );
        })
        .ok();
    NAMESPACES.map(|(name, _)| rustix::fs::openat(directory.as_ref()?, name, flags, Mode::empty()).ok())
}

/// Compares the calling thread with what it was when it started.
pub(super) fn check(check: Check) -> Result<(), Changes> {
    THREAD.with_borrow_mut(|thread| {
        let Some(thread) = thread else { return Ok(()) };
        let mut changes = thread.quick.changes(&Quick::read(thread.ids));
        thread.is_unverified = check == Check::Quick;
        if check == Check::Thorough {
            changes.extend(thread.thorough.changes(&Thorough::read(&thread.namespaces)));
        }
        if changes.is_empty() { Ok(()) } else { Err(Changes(changes)) }
    })
}

/// Completes a quick check.
pub(super) fn complete_check() -> Result<(), Changes> {
    let is_unverified =
        THREAD.with_borrow(|thread| thread.as_ref().is_some_and(|thread| thread.is_unverified));
    if is_unverified { check(Check::Thorough) } else { Ok(()) }
}

/// What is compared after each call.
struct Quick {
    shares_directories: bool,
    shares_descriptors: bool,
    uids: Option<ResUid>,
    gids: Option<ResGid>,
    capabilities: Option<CapabilitySets>,
    signals: Option<SigSet>,
}

impl Quick {
    fn read(ids: Ids) -> Self {
        Self {
            shares_directories: sys::shares_directories(ids),
            shares_descriptors: sys::shares_descriptors(ids),
            uids: getresuid().ok(),
            gids: getresgid().ok(),
            capabilities: rustix::thread::capabilities(None).ok(),
            signals: SigSet::thread_get_mask().ok(),
        }
    }

    fn changes(&self, now: &Self) -> Vec<&'static str> {
        let mut changes = Vec::new();
        let mut compare = |is_same: bool, what| {
            if !is_same {
                changes.push(what);
            }
        };
        compare(
            self.shares_directories == now.shares_directories,
            "directories and umask (no longer shared with the process)",
        );
        compare(
            self.shares_descriptors == now.shares_descriptors,
            "descriptors (no longer shared with the process)",
        );
        compare(self.uids == now.uids, "user ids");
        compare(self.gids == now.gids, "group ids");
        compare(self.capabilities == now.capabilities, "capabilities");
        compare(self.signals == now.signals, "signal mask");
        changes
    }
}

/// What is compared after calls that change the host.
struct Thorough {
    namespaces: [Link; NAMESPACES.len()],
    groups: Option<Vec<Gid>>,
    fs_ids: (u32, u32),
    no_new_privs: Option<bool>,
}

/// A descriptor of each link.
type Namespaces = [Option<OwnedFd>; NAMESPACES.len()];

/// The target of a link, such as `net:[4026531840]`; empty if it cannot be read.
type Link = [u8; 48];

impl Thorough {
    fn read(namespaces: &Namespaces) -> Self {
        Self {
            namespaces: namespaces.each_ref().map(|link| link.as_ref().map_or([0; 48], read_link)),
            groups: getgroups().ok(),
            fs_ids: sys::fs_ids(),
            no_new_privs: rustix::thread::no_new_privs().ok(),
        }
    }

    fn changes(&self, now: &Self) -> Vec<&'static str> {
        let namespaces = self.namespaces.iter().zip(&now.namespaces).zip(NAMESPACES);
        let mut changes: Vec<_> =
            namespaces.filter(|((then, now), _)| then != now).map(|(_, (_, what))| what).collect();
        if self.groups != now.groups {
            changes.push("supplementary groups");
        }
        if self.fs_ids != now.fs_ids {
            changes.push("file system ids");
        }
        if self.no_new_privs != now.no_new_privs {
            changes.push("no_new_privs");
        }
        changes
    }
}

fn read_link(descriptor: &OwnedFd) -> Link {
    let mut buffer = [MaybeUninit::uninit(); 48];
    let mut link = [0; 48];
    if let Ok((target, _)) = rustix::fs::readlinkat_raw(descriptor, c"", &mut buffer) {
        link[..target.len()].copy_from_slice(target);
    }
    link
}
