//! Which system calls have an effect outside of a process, and what each of them changes.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::kernel::PendingCall;
use crate::sockets::is_unnamed_socket;

/// A change that a system call is about to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The process that makes the call.
    pub by: Actor,
    /// Its pid.
    pub pid: i32,
    /// Name of the system call.
    pub call: &'static str,
    /// What it changes, such as a path; may be empty.
    pub to: String,
    /// The error to inject.
    pub(super) errno: i32,
}

/// The process that makes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The agent itself.
    Agent,
    /// A child of the agent that runs the agent's own program.
    Child,
    /// A keeper.
    Keeper,
    /// The setup process of a container, and its command up to the exec.
    Init,
}

impl Effect {
    /// Whether a container's first process makes the call.
    pub fn is_by_init(&self) -> bool {
        self.by == Actor::Init
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            Actor::Agent => "agent",
            Actor::Child => "child",
            Actor::Keeper => "keeper",
            Actor::Init => "init",
        };
        write!(f, "{by}: {}({})", self.call, self.to)
    }
}

/// Which arguments of a call determine what it changes, and whether it changes anything.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// The argument of this number is a path.
    Path(usize),
    /// The first argument is a descriptor.
    Descriptor,
    /// The first argument is a descriptor; an effect if it is a file or a socket without a name.
    Write,
    /// The arguments of these numbers are a path and flags.
    Open(usize, usize),
    /// The second argument is a path, the third points to flags.
    Open2,
    /// The first argument is flags.
    Fork,
    /// The first argument points to flags.
    Fork3,
    /// The argument of this number is a signal.
    Signal(usize),
    /// The third argument points to a new limit, or is null.
    Limit,
    /// Always an effect, without details.
    Plain,
}

use Shape::{Descriptor, Fork, Fork3, Limit, Open, Open2, Path as At, Plain, Signal, Write};

/// Every call that may be an effect.
const CALLS: &[(i64, &str, Shape, i32)] = &[
    // File systems.
    (libc::SYS_openat, "openat", Open(1, 2), libc::ENOSPC),
    (libc::SYS_openat2, "openat2", Open2, libc::ENOSPC),
    (libc::SYS_mkdirat, "mkdirat", At(1), libc::ENOSPC),
    (libc::SYS_mknodat, "mknodat", At(1), libc::ENOSPC),
    (libc::SYS_symlinkat, "symlinkat", At(2), libc::ENOSPC),
    (libc::SYS_linkat, "linkat", At(3), libc::ENOSPC),
    (libc::SYS_unlinkat, "unlinkat", At(1), libc::EIO),
    (libc::SYS_renameat2, "renameat2", At(3), libc::EIO),
    (libc::SYS_fchmod, "fchmod", Descriptor, libc::EIO),
    (libc::SYS_fchmodat, "fchmodat", At(1), libc::EIO),
    (libc::SYS_fchown, "fchown", Descriptor, libc::EIO),
    (libc::SYS_fchownat, "fchownat", At(1), libc::EIO),
    (libc::SYS_ftruncate, "ftruncate", Descriptor, libc::EIO),
    (libc::SYS_fallocate, "fallocate", Descriptor, libc::ENOSPC),
    (libc::SYS_write, "write", Write, libc::EIO),
    (libc::SYS_pwrite64, "pwrite64", Write, libc::EIO),
    (libc::SYS_writev, "writev", Write, libc::EIO),
    (libc::SYS_sendto, "sendto", Write, libc::EIO),
    (libc::SYS_copy_file_range, "copy_file_range", Plain, libc::EIO),
    (libc::SYS_sendfile, "sendfile", Plain, libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open", Open(0, 1), libc::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, "creat", At(0), libc::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir", At(0), libc::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir", At(0), libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink", At(0), libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename", At(1), libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, "symlink", At(1), libc::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, "link", At(1), libc::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod", At(0), libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, "chown", At(0), libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, "lchown", At(0), libc::EIO),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, "mknod", At(0), libc::ENOSPC),
    // Processes.
    (libc::SYS_clone, "clone", Fork, libc::EAGAIN),
    (libc::SYS_clone3, "clone3", Fork3, libc::EAGAIN),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, "fork", Plain, libc::EAGAIN),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork", Plain, libc::EAGAIN),
    (libc::SYS_execve, "execve", At(0), libc::ENOMEM),
    (libc::SYS_execveat, "execveat", Plain, libc::ENOMEM),
    (libc::SYS_kill, "kill", Signal(1), libc::EPERM),
    (libc::SYS_tgkill, "tgkill", Signal(2), libc::EPERM),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal", Signal(1), libc::EPERM),
    (libc::SYS_prlimit64, "prlimit64", Limit, libc::EPERM),
    (libc::SYS_setuid, "setuid", Plain, libc::EAGAIN),
    (libc::SYS_setgid, "setgid", Plain, libc::EPERM),
    (libc::SYS_setgroups, "setgroups", Plain, libc::EPERM),
    (libc::SYS_capset, "capset", Plain, libc::EPERM),
    // Namespaces and mounts.
    (libc::SYS_unshare, "unshare", Plain, libc::ENOSPC),
    (libc::SYS_setns, "setns", Plain, libc::EPERM),
    (libc::SYS_sethostname, "sethostname", Plain, libc::EPERM),
    (libc::SYS_chroot, "chroot", At(0), libc::EIO),
    (libc::SYS_pivot_root, "pivot_root", At(0), libc::EBUSY),
    (libc::SYS_mount, "mount", At(1), libc::ENOMEM),
    (libc::SYS_umount2, "umount2", At(0), libc::EBUSY),
    (libc::SYS_fsopen, "fsopen", At(0), libc::ENOMEM),
    (libc::SYS_fsconfig, "fsconfig", At(2), libc::ENOMEM),
    (libc::SYS_fsmount, "fsmount", Plain, libc::ENOMEM),
    (libc::SYS_open_tree, "open_tree", At(1), libc::ENOMEM),
    (libc::SYS_move_mount, "move_mount", At(3), libc::ENOMEM),
    (libc::SYS_mount_setattr, "mount_setattr", At(1), libc::EIO),
];

/// The numbers of all calls that may be effects.
pub(super) fn calls() -> Vec<i64> {
    CALLS.iter().map(|(number, ..)| *number).collect()
}

/// The effect of a call; `None` if it has none that outlives the process, or the process is a container's command.
pub(super) fn effect(call: &PendingCall, agent: i32) -> Option<Effect> {
    let (by, pid) = actor(call.tid, agent)?;
    let (_, name, shape, errno) = CALLS.iter().find(|(number, ..)| *number == call.call)?;
    let to = target(call, *shape)?;
    Some(Effect { by, pid, call: name, to, errno: *errno })
}

/// The process that a thread belongs to, and its pid. `None` for a container's command.
fn actor(tid: i32, agent: i32) -> Option<(Actor, i32)> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    let pid = group.trim().parse().ok()?;
    if pid == agent {
        return Some((Actor::Agent, pid));
    }
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let executable = program(tid)?;
    let by = if executable.as_os_str().to_string_lossy().contains("memfd:cofferdam-keeper") {
        if status.starts_with("Name:\tcofferdam-keep\n") { Actor::Keeper } else { Actor::Init }
    } else if program(agent).is_none_or(|own| own == executable) {
        Actor::Child
    } else {
        return None;
    };
    Some((by, pid))
}

/// What a call changes.
fn target(call: &PendingCall, shape: Shape) -> Option<String> {
    const OPENING: u64 = (libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;
    let path = |index: usize| text(call.tid, call.args[index]);
    let pointed = |index: usize| number(call.tid, call.args[index]);
    match shape {
        At(index) => Some(path(index)),
        Open(index, flags) => (call.args[flags] & OPENING != 0).then(|| path(index)),
        Open2 => (pointed(2)? & OPENING != 0).then(|| path(1)),
        Descriptor => Some(descriptor(call)?.display().to_string()),
        Write => {
            let file = descriptor(call)?;
            // Standard streams are the log of the agent and the output of the container.
            let matters = call.args[0] > 2 && (file.is_absolute() || is_unnamed_socket(call.tid, &file));
            matters.then(|| file.display().to_string())
        }
        Fork => Some(kind_of_clone(call.args[0])),
        Fork3 => Some(kind_of_clone(pointed(0)?)),
        Signal(index) => (call.args[index] != 0).then(|| format!("signal {}", call.args[index])),
        Limit => (call.args[2] != 0).then(String::new),
        Plain => Some(String::new()),
    }
}

fn kind_of_clone(flags: u64) -> String {
    let thread = flags & libc::CLONE_THREAD as u64 != 0;
    if thread { "thread" } else { "process" }.to_owned()
}

fn descriptor(call: &PendingCall) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/fd/{}", call.tid, call.args[0])).ok()
}

/// A C string of a process.
fn text(tid: i32, address: u64) -> String {
    let mut bytes = Vec::new();
    let Ok(memory) = File::open(format!("/proc/{tid}/mem")) else { return "?".to_owned() };
    // In small pieces, because the memory after the string may not be mapped.
    let mut piece = [0; 64];
    while bytes.len() < 4096 {
        let at = address + bytes.len() as u64;
        let step = piece.len() - (at % piece.len() as u64) as usize;
        let Ok(length) = memory.read_at(&mut piece[..step], at) else { break };
        let end = piece[..length].iter().position(|byte| *byte == 0);
        bytes.extend_from_slice(&piece[..end.unwrap_or(length)]);
        if end.is_some() || length == 0 {
            break;
        }
    }
    OsString::from_vec(bytes).to_string_lossy().into_owned()
}

/// A number of a process.
fn number(tid: i32, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    File::open(format!("/proc/{tid}/mem")).ok()?.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_ne_bytes(bytes))
}
