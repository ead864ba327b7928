//! Processes of the executor: tasks and checks, and orphans that it adopts.

#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::SigSet;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group,
    set_child_subreaper, set_dumpable_behavior, setsid, wait,
};

use crate::environment::{OWN, PRIVATE};
use crate::message::CommandInfo;
use crate::wait_status::WaitStatus;

/// Bytes of the kernel's list of children that are read; the rest is read when these are gone.
const MAX_CHILDREN: u64 = 64 << 10;

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("The command has no value")]
    NoValue,
    #[error("Cannot execute `{program}` in `{directory}`: {source}")]
    Execute { program: String, directory: String, source: io::Error },
}

/// Orphans of the container become children of this process, and other processes of the container, unless they are
/// privileged, cannot read its memory or its environment.
pub(crate) fn prepare() -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// The environment that tasks get: that of the executor without what is the executor's alone.
pub(crate) fn task_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !PRIVATE.iter().any(|private| name == private)).collect()
}

/// The environment that the program of an image gets: that of its container without anything that is for an executor.
pub(crate) fn image_environment() -> Vec<(OsString, OsString)> {
    let mut environment = task_environment();
    environment.retain(|(name, _)| !OWN.iter().any(|own| name == own));
    environment
}

/// Starts a command in a session and process group of its own. Later environments replace variables of earlier ones; the
/// command's own come last.
pub(crate) fn spawn<'e>(
    info: &CommandInfo,
    environments: impl IntoIterator<Item = &'e [(OsString, OsString)]>,
) -> Result<Pid, SpawnError> {
    let (program, argv) = info.argv().ok_or(SpawnError::NoValue)?;
    let mut command = Command::new(program);
    let mut argv = argv.into_iter();
    if let Some(name) = argv.next() {
        command.arg0(name);
    }
    command.args(argv);
    if let Some(directory) = &info.working_directory {
        command.current_dir(directory);
    }
    start(command, info, environments)
}

/// As [`spawn`], with the program of an image in place of that of the command, and in the directory of this process.
pub(crate) fn spawn_entry<'e>(
    argv: &[OsString],
    info: &CommandInfo,
    environments: impl IntoIterator<Item = &'e [(OsString, OsString)]>,
) -> Result<Pid, SpawnError> {
    let (program, arguments) = argv.split_first().ok_or(SpawnError::NoValue)?;
    let mut command = Command::new(program);
    command.args(arguments);
    start(command, info, environments)
}

fn start<'e>(
    mut command: Command,
    info: &CommandInfo,
    environments: impl IntoIterator<Item = &'e [(OsString, OsString)]>,
) -> Result<Pid, SpawnError> {
    command.env_clear();
    for environment in environments {
        command.envs(environment.iter().map(|(name, value)| (name, value)));
    }
    command.envs(info.variables());
    // SAFETY: the closure makes two system calls; it neither allocates nor takes locks.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|source| SpawnError::Execute {
        program: command.get_program().to_string_lossy().into_owned(),
        directory: command.get_current_dir().map_or(OsStr::new("."), Path::as_os_str).display().to_string(),
        source,
    })?;
    Ok(Pid::from_child(&child))
}

/// Takes the status of one child that has ended.
pub(crate) fn reap() -> Option<(Pid, WaitStatus)> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return Some((pid, WaitStatus(status.as_raw()))),
            Err(Errno::INTR) => {}
            // No child has ended, or there is none.
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Asks the process group of a child, which must not have been reaped, and adopted orphans to end.
pub(crate) fn terminate(leader: Pid) {
    // It has ended in the meantime if this fails.
    let _ = kill_process_group(leader, Signal::TERM);
    for child in children().into_iter().filter(|child| *child != leader) {
        let _ = kill_process(child, Signal::TERM);
    }
}

/// Sends a signal to a child, which must not have been reaped, and to no other process.
pub(crate) fn signal(child: Pid, signal: i32) {
    // SAFETY: the call touches no memory, and an invalid number fails with EINVAL.
    unsafe {
        libc::kill(child.as_raw_nonzero().get(), signal);
    }
}

/// Kills the process group of a child, which must not have been reaped.
pub(crate) fn kill_group(leader: Pid) {
    let _ = kill_process_group(leader, Signal::KILL);
}

/// Kills all children, and returns whether there were any. Their own children become children of this process, and end
/// with further calls.
pub(crate) fn kill_children() -> bool {
    let children = children();
    for child in &children {
        let _ = kill_process(*child, Signal::KILL);
    }
    !children.is_empty()
}

/// Children that have not been reaped. None if the container has no /proc.
fn children() -> Vec<Pid> {
    let mut list = String::new();
    let file = File::open("/proc/thread-self/children");
    if file.and_then(|file| file.take(MAX_CHILDREN).read_to_string(&mut list)).is_err() {
        return Vec::new();
    }
    // The last entry may be incomplete, and then is the number of another process; complete entries end with a space.
    let complete = list.rfind(' ').map_or("", |end| &list[..end]);
    complete.split(' ').filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw).collect()
}
