//! Programs that another process has started, found by the file that is their input.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_linux::process::{Process, ProcessError, Stat};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::process::Signal;

/// How many descriptors of each process are searched, from 0 on. A shell keeps its input at 10 and above while it redirects it.
const DESCRIPTORS: u32 = 16;

/// How often members of a process group are searched, as each may start another one before it is killed.
const MAX_SCANS: usize = 8;

/// Kills the processes that have a file open with a lock of flock(2) on it, and those that are in a process group with one of
/// them: a program that got it as its [input](super::Program::input) from an agent that has been killed, and its descendants.
/// Returns how many had the lock. Those of this process do not count.
///
/// A process is killed by its pidfd, after checking that it is the one. Processes that start meanwhile are not found, so the
/// caller repeats this until it can lock the file itself.
///
/// # Errors
/// If the file or `/proc` cannot be read.
pub fn kill_users(file: &File) -> io::Result<usize> {
    let file = Identity::new(file)?;
    let own = std::process::id().cast_signed();
    let is_other = |pid: &i32| *pid != own;
    let users: Vec<(Process, Option<i32>)> = pids()?
        .filter(is_other)
        .filter(|pid| file.is_locked_by(*pid))
        .filter_map(|pid| open(&file, pid))
        .collect();
    // So that it starts no others.
    users.iter().for_each(|(user, _)| signal(user, Signal::STOP));
    for (user, group) in &users {
        let Some(group) = group else { continue };
        let mut killed = BTreeSet::new();
        for _ in 0..MAX_SCANS {
            let before = killed.len();
            for pid in pids()?.filter(is_other).filter(|pid| group_of(*pid) == Some(*group)) {
                let Ok(member) = Process::open_any(pid) else { continue };
                // While one of the group is there, its number is that of no other group.
                let is_member = group_of(pid) == Some(*group) && user.has_ended().is_ok_and(|ended| !ended);
                let is_user = users.iter().any(|(user, _)| user.pid() == pid);
                if is_member && !is_user && killed.insert((pid, member.start_time())) {
                    signal(&member, Signal::KILL);
                }
            }
            if killed.len() == before {
                break;
            }
        }
    }
    users.iter().for_each(|(user, _)| signal(user, Signal::KILL));
    Ok(users.len())
}

/// A process that has the file, and its process group, unless that is the caller's.
fn open(file: &Identity, pid: i32) -> Option<(Process, Option<i32>)> {
    let process = Process::open_any(pid).ok()?;
    let own = group_of(std::process::id().cast_signed());
    let group = group_of(pid).filter(|group| own.is_some_and(|own| own != *group));
    // Before it was opened, the pid may have been that of another one.
    (file.is_locked_by(pid) && process.signal(0).is_ok()).then_some((process, group))
}

/// It may have ended.
fn signal(process: &Process, signal: Signal) {
    match process.signal(signal.as_raw()) {
        Ok(()) | Err(ProcessError::Gone { .. }) => {}
        Err(error) => {
            tracing::warn!(%error, pid = process.pid(), "cannot kill a process that an earlier agent has started")
        }
    }
}

/// `None` if there is no such process any more.
fn group_of(pid: i32) -> Option<i32> {
    Stat::read(pid).ok().map(|stat| stat.group)
}

fn pids() -> io::Result<impl Iterator<Item = i32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// A file, and where it is.
struct Identity {
    path: PathBuf,
    device: (u32, u32),
    inode: u64,
}

impl Identity {
    fn new(file: &File) -> io::Result<Self> {
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let device = file.metadata()?.dev();
        Ok(Self {
            path,
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            inode: file.metadata()?.ino(),
        })
    }

    fn is_locked_by(&self, pid: i32) -> bool {
        (0..DESCRIPTORS).any(|descriptor| self.is_locked_at(pid, descriptor))
    }

    fn is_locked_at(&self, pid: i32, descriptor: u32) -> bool {
        let path = format!("/proc/{pid}/fd/{descriptor}");
        // Neither of them asks the file system of the file, which may be one that a container provides.
        if fs::read_link(&path).ok().as_deref() != Some(self.path.as_path()) || !self.is_at(path.as_ref()) {
            return false;
        }
        // Of all descriptors of the file, only those that share the lock show it.
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
        text.lines().any(|line| line.starts_with("lock:") && line.contains(" FLOCK "))
    }

    fn is_at(&self, path: &Path) -> bool {
        statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).is_ok_and(|found| {
            (found.stx_dev_major, found.stx_dev_minor, found.stx_ino)
                == (self.device.0, self.device.1, self.inode)
        })
    }
}
