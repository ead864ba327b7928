//! What root in a container can do so that its processes outlive a kill of its cgroup, and what is done about it.
//!
//! A killed process that is not scheduled does not end: one that a freezer of cgroup v1 has frozen, or one without CPU
//! time. It is moved to the root of these hierarchies, where neither is possible. Cgroups of others are not changed.
//!
//! A process that sees the host's cgroups can move to another one. In a pid namespace of the container's own it is
//! killed all the same, as the kernel kills all processes in it; process 1 is the last to end. Otherwise it is found as a
//! descendant of a keeper, which is a subreaper, in no cgroup of any container.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_linux::process::{Process, Stat, children_of};
use cofferdam_plugin_model::ContainerId;

use super::{CONTAINER, DestroyError};
use crate::keeper::{KeeperSlot, Keepers};

/// Controllers of v1 that can keep a killed process from ending.
const SCHEDULING: [&str; 2] = ["freezer", "cpu"];

/// How long a killed process may take to end before it is released.
const PAUSE: Duration = Duration::from_millis(100);

/// Maximum number of cgroups of one container whose quotas are lifted.
const MAX_CGROUPS: u64 = 1 << 20;

/// Maximum number of processes that are looked at for one container.
const MAX_PROCESSES: usize = 1 << 20;

/// Removes what keeps killed processes from ending. `own` is the cgroup that tracks their container. Best effort: what
/// fails is attempted again, and reported if they do not end in time.
pub(super) fn release(cgroups: &Cgroups, own: &Cgroup, pids: &[i32]) {
    let roots = SCHEDULING.iter().filter_map(|controller| cgroups.cgroup(controller, ""));
    // Where the freezer tracks the container, it is thawed by whoever kills it.
    let roots = roots.filter(|root| root.version() == Version::V1 && !own.path().starts_with(root.path()));
    for root in roots {
        for pid in pids {
            let _ = root.adopt(*pid);
        }
    }
    if own.version() == Version::V2 {
        let _ = own.walk(MAX_CGROUPS, |cgroup| {
            let _ = cgroup.write("cpu.max", "max");
            Ok(())
        });
    }
}

/// Finds and ends processes that are not in the cgroup of their container.
pub(super) struct Escape<'a> {
    pub(super) cgroups: &'a Cgroups,
    /// Path of the agent's cgroup in all hierarchies.
    pub(super) relative: &'a Path,
    pub(super) keepers: &'a Keepers,
}

impl Escape<'_> {
    /// Waits for the end of process 1 of a container's pid namespace, after which none is left in it. The command, and
    /// all processes in the container's cgroup, have ended.
    pub(super) fn end_pid_namespace(
        &self,
        id: &ContainerId,
        slot: &KeeperSlot,
        deadline: Instant,
    ) -> Result<(), DestroyError> {
        let failed = |source| DestroyError::Find { id: id.clone(), source };
        while let Some(pid) = self.keepers.reaper(slot) {
            let Ok(reaper) = Process::open_any(pid) else { continue };
            // Unless the keeper has reaped it meanwhile, its pid cannot be that of another process.
            if self.keepers.reaper(slot) != Some(pid) {
                continue;
            }
            reaper.kill().map_err(|source| DestroyError::Process { id: id.clone(), source })?;
            if reaper.wait(Some(PAUSE)).map_err(failed)? {
                continue;
            }
            let left = descendants(pid, |_| true).map_err(failed)?;
            if Instant::now() >= deadline {
                return Err(DestroyError::Stuck { id: id.clone(), pids: left });
            }
            self.release(&left);
        }
        Ok(())
    }

    /// Kills processes in the agent's pid namespace that have left the cgroup of their container, of whichever. None of
    /// a container does so by itself.
    pub(super) fn kill_escaped(&self, id: &ContainerId, deadline: Instant) -> Result<(), DestroyError> {
        let failed = |source| DestroyError::Find { id: id.clone(), source };
        loop {
            let escaped = self.escaped().map_err(failed)?;
            if escaped.is_empty() {
                return Ok(());
            }
            let pids: Vec<i32> = escaped.iter().map(Process::pid).collect();
            if Instant::now() >= deadline {
                return Err(DestroyError::Stuck { id: id.clone(), pids });
            }
            tracing::warn!(container = %id, ?pids, "processes have left the cgroup of their container; killing them");
            for process in &escaped {
                process.kill().map_err(|source| DestroyError::Process { id: id.clone(), source })?;
            }
            let until = deadline.min(Instant::now() + PAUSE);
            for process in &escaped {
                let left = until.saturating_duration_since(Instant::now());
                if !process.wait(Some(left)).map_err(failed)? {
                    self.release(&[process.pid()]);
                }
            }
        }
    }

    fn release(&self, pids: &[i32]) {
        let own = Cgroup::at(PathBuf::new(), Version::V1);
        release(self.cgroups, &own, pids);
    }

    /// The processes below the keepers, in the agent's pid namespace, that are in no cgroup of a container.
    fn escaped(&self) -> io::Result<Vec<Process>> {
        let mut escaped = Vec::new();
        let agent = pid_namespace("self");
        for keeper in self.keepers.pids() {
            // The agent may be in a cgroup namespace, and see other paths than its own.
            let Some(inside) = self.tracked_path(keeper) else { continue };
            let program = program(keeper);
            // Those in other pid namespaces end with their process 1.
            let is_here = |pid: i32| pid_namespace(&pid.to_string()) == agent;
            for pid in descendants(keeper, is_here)? {
                // First, so that what is read is about this process or one that has ended.
                let Ok(process) = Process::open_any(pid) else { continue };
                let path = self.cgroup_of(pid);
                let is_inside = path.as_deref().is_none_or(|path| is_container(path, &inside));
                // A setup process, which may not have joined its cgroup of v1 yet.
                let is_ours = program.is_some() && self::program(pid) == program;
                let has_ended = Stat::read(pid).map_or(true, |stat| stat.state == 'Z');
                if !is_inside && !is_ours && !has_ended && process.signal(0).is_ok() {
                    escaped.push(process);
                }
            }
        }
        Ok(escaped)
    }

    /// Path of the agent's cgroup in the hierarchy that tracks containers, as `/proc/PID/cgroup` has it. `None` if the
    /// keeper is not where it belongs.
    fn tracked_path(&self, keeper: i32) -> Option<PathBuf> {
        let path = self.cgroup_of(keeper)?;
        let parent = path.parent().filter(|_| path.ends_with("keeper"))?;
        parent.ends_with(self.relative).then(|| parent.to_owned())
    }

    /// Path of a process's cgroup in the hierarchy that tracks containers.
    fn cgroup_of(&self, pid: i32) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let controllers = if self.cgroups.unified.is_some() { "" } else { "freezer" };
        text.lines().find_map(|line| {
            let mut columns = line.splitn(3, ':').skip(1);
            let found = columns.next()?.split(',').any(|name| name == controllers);
            columns.next().filter(|_| found).map(PathBuf::from)
        })
    }
}

/// Whether a path is that of a container's cgroup or below it. `inside` is the agent's.
fn is_container(path: &Path, inside: &Path) -> bool {
    let first = path.strip_prefix(inside).ok().and_then(|rest| rest.iter().next()?.to_str());
    first.is_some_and(|name| name.trim_end_matches(" (deleted)").ends_with(CONTAINER))
}

/// All processes below one, without those for which `is_included` is false and what is below them.
fn descendants(root: i32, is_included: impl Fn(i32) -> bool) -> io::Result<Vec<i32>> {
    let (mut pending, mut found) = (vec![root], HashSet::new());
    while let Some(parent) = pending.pop() {
        for pid in children_of(parent)? {
            if found.len() < MAX_PROCESSES && is_included(pid) && found.insert(pid) {
                pending.push(pid);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Device and inode of a process's program.
fn program(pid: i32) -> Option<(u64, u64)> {
    let metadata = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn pid_namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroups_of_containers_count_as_inside() {
        let inside = Path::new("/cofferdam/1a2b");
        for (path, expected) in [
            ("/cofferdam/1a2b/web.container", true),
            ("/cofferdam/1a2b/web.container/leaf", true),
            ("/cofferdam/1a2b/web.container/x/y", true),
            ("/cofferdam/1a2b/web.container (deleted)", true),
            ("/cofferdam/1a2b", false),
            ("/cofferdam/1a2b/keeper", false),
            ("/cofferdam/1a2b/other/web.container", false),
            ("/cofferdam/1a2bc/web.container", false),
            ("/cofferdam", false),
            ("/", false),
        ] {
            assert_eq!(is_container(Path::new(path), inside), expected, "{path}");
        }
    }
}
