//! What root in a container can do so that its processes outlive a kill of its cgroup, and what is done about it.
//!
//! A killed process that is not scheduled does not end: one that a freezer of cgroup v1 has frozen, or one without CPU
//! time. It is moved to the root of these hierarchies, where neither is possible; on v2 only if it has left its cgroup,
//! whose limits are lifted otherwise. Cgroups of others are not changed.
//!
//! A process that sees the host's cgroups can move to another one. In a pid namespace of the container's own it is
//! killed all the same, as the kernel kills all processes in it; process 1 is the last to end. Otherwise it is found as a
//! descendant of a keeper, which is a subreaper, in no cgroup of any container. Where a cgroup is so deep that a kernel
//! does not tell its path, the processes in the cgroups of containers are listed instead.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_linux::process::{Process, ProcessError, Stat, children_of};
use cofferdam_plugin_model::ContainerId;

use super::{CONTAINER, DestroyError, KEEPER};
use crate::keeper::{KeeperSlot, Keepers};

/// Controllers of v1 that can keep a killed process from ending.
const SCHEDULING: [&str; 2] = ["freezer", "cpu"];

/// How long a killed process may take to end before it is released.
const PAUSE: Duration = Duration::from_millis(100);

/// Maximum number of cgroups of one container whose quotas are lifted.
const MAX_CGROUPS: u64 = 1 << 20;

/// Maximum number of escaped processes that are killed at a time, each of which takes a descriptor.
const BATCH: usize = 64;

/// Flag of the kernel for a process that has executed nothing since it was forked (`PF_FORKNOEXEC`).
const FORKED_WITHOUT_EXEC: u32 = 0x40;

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

/// Likewise, for processes that are in no cgroup of a container: the limits there are not the agent's to lift.
fn release_escaped(cgroups: &Cgroups, pids: &[i32]) {
    let none = Cgroup::at(PathBuf::new(), Version::V1);
    release(cgroups, &none, pids);
    if let Some(root) = cgroups.unified("") {
        for pid in pids {
            let _ = root.adopt(*pid);
        }
    }
}

/// Where a process is in the hierarchy that tracks containers.
enum Place {
    /// In the cgroup with this path.
    At(PathBuf),
    /// In a cgroup there, or in that of another hierarchy, which is so deep that the kernel does not tell its path.
    WithoutPath,
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
        while let Some(pid) = self.keepers.remaining(slot).reaper {
            let is_late = Instant::now() >= deadline;
            if let Some(reaper) = open(pid).map_err(|source| process_error(id, source))? {
                // Unless the keeper has reaped it meanwhile, its pid cannot be that of another process.
                if self.keepers.remaining(slot).reaper != Some(pid) {
                    continue;
                }
                reaper.kill().map_err(|source| process_error(id, source))?;
                if !reaper.wait(Some(PAUSE)).map_err(failed)? {
                    let left = descendants(pid, |_| true).map_err(failed)?;
                    if is_late {
                        return Err(DestroyError::Stuck { id: id.clone(), pids: left });
                    }
                    release_escaped(self.cgroups, &left);
                    continue;
                }
            }
            // The keeper has not noted yet that it has reaped it.
            if is_late {
                return Err(DestroyError::Stuck { id: id.clone(), pids: vec![pid] });
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// Kills processes in the agent's pid namespace that have left the cgroup of their container, of whichever. None of
    /// a container does so by itself.
    pub(super) fn kill_escaped(&self, id: &ContainerId, deadline: Instant) -> Result<(), DestroyError> {
        let failed = |source| DestroyError::Find { id: id.clone(), source };
        loop {
            let escaped = self.escaped(id)?;
            if escaped.is_empty() {
                return Ok(());
            }
            let pids: Vec<i32> = escaped.iter().map(Process::pid).collect();
            if Instant::now() >= deadline {
                return Err(DestroyError::Stuck { id: id.clone(), pids });
            }
            tracing::warn!(container = %id, ?pids, "processes have left the cgroup of their container; killing them");
            for process in &escaped {
                process.kill().map_err(|source| process_error(id, source))?;
            }
            let until = deadline.min(Instant::now() + PAUSE);
            for process in &escaped {
                let left = until.saturating_duration_since(Instant::now());
                if !process.wait(Some(left)).map_err(failed)? {
                    release_escaped(self.cgroups, &[process.pid()]);
                }
            }
        }
    }

    /// Processes below the keepers, in the agent's pid namespace, that are in no cgroup of a container: some of them, if
    /// there are any. An error, such as too few descriptors, is not taken for the end of a process.
    fn escaped(&self, id: &ContainerId) -> Result<Vec<Process>, DestroyError> {
        let failed = |source| DestroyError::Find { id: id.clone(), source };
        let mut escaped = Vec::new();
        let agent = pid_namespace("self");
        for keeper in self.keepers.pids() {
            let mut in_containers = None;
            // The agent may be in a cgroup namespace, and see other paths than its own.
            let Some(inside) = self.tracked_path(keeper).map_err(failed)? else { continue };
            let program = program(keeper);
            // Those in other pid namespaces end with their process 1.
            let is_here = |pid: i32| pid_namespace(&pid.to_string()) == agent;
            for pid in descendants(keeper, is_here).map_err(failed)? {
                // First, so that what is read is about this process or one that has ended.
                let process = match open(pid) {
                    Ok(Some(process)) => process,
                    Ok(None) => continue,
                    // When these have ended, there are descriptors for others.
                    Err(_) if !escaped.is_empty() => return Ok(escaped),
                    Err(source) => return Err(process_error(id, source)),
                };
                let mut is_beside_keeper = false;
                let is_inside = match self.cgroup_of(pid).map_err(failed)? {
                    None => true,
                    Some(Place::At(path)) => {
                        is_beside_keeper = path == inside.join(KEEPER);
                        is_container(&path, &inside)
                    }
                    Some(Place::WithoutPath) => {
                        let known = match &mut in_containers {
                            Some(known) => known,
                            none => none.insert(self.in_containers(id)?),
                        };
                        known.contains(&pid)
                    }
                };
                // Its first thread may be a zombie, and others not.
                if is_inside || process.has_ended().map_err(failed)? {
                    continue;
                }
                let flags = match Stat::read(pid) {
                    Ok(stat) => stat.flags,
                    Err(ProcessError::Gone { .. }) => continue,
                    Err(source) => return Err(process_error(id, source)),
                };
                // A setup process or a switchboard: forked by the keeper, where that is. What a container has executed, if only
                // the keeper's program, is neither.
                let is_ours = is_beside_keeper
                    && flags & FORKED_WITHOUT_EXEC != 0
                    && program.is_some()
                    && self::program(pid) == program;
                if !is_ours && process.signal(0).is_ok() {
                    escaped.push(process);
                }
                if escaped.len() == BATCH {
                    return Ok(escaped);
                }
            }
        }
        Ok(escaped)
    }

    /// Path of the agent's cgroup in the hierarchy that tracks containers, as `/proc/PID/cgroup` has it. `None` if the
    /// keeper is not where it belongs.
    fn tracked_path(&self, keeper: i32) -> io::Result<Option<PathBuf>> {
        let Some(Place::At(path)) = self.cgroup_of(keeper)? else { return Ok(None) };
        let parent = path.parent().filter(|_| path.ends_with(KEEPER));
        Ok(parent.filter(|parent| parent.ends_with(self.relative)).map(Path::to_owned))
    }

    /// The processes in the cgroups of the agent's containers and below, however deep.
    fn in_containers(&self, id: &ContainerId) -> Result<HashSet<i32>, DestroyError> {
        let failed = |source| DestroyError::Cgroup { id: id.clone(), source };
        let unified = self.cgroups.unified(self.relative);
        let tracked = unified.or_else(|| self.cgroups.cgroup("freezer", self.relative));
        let mut found = HashSet::new();
        for cgroup in tracked.map(|agent| agent.children()).transpose().map_err(failed)?.unwrap_or_default() {
            let name = cgroup.path().file_name().and_then(OsStr::to_str);
            if name.is_some_and(|name| name.ends_with(CONTAINER)) {
                found.extend(cgroup.all_procs().map_err(failed)?);
            }
        }
        Ok(found)
    }

    /// Where a process is in the hierarchy that tracks containers. `None` if it has ended.
    fn cgroup_of(&self, pid: i32) -> io::Result<Option<Place>> {
        let text = match fs::read(format!("/proc/{pid}/cgroup")) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                return Ok(None);
            }
            // In any hierarchy: of the path of a cgroup with more than PATH_MAX bytes, kernels make a text that is cut,
            // or none.
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                return Ok(Some(Place::WithoutPath));
            }
            text => text?,
        };
        let controllers = if self.cgroups.unified.is_some() { "" } else { "freezer" };
        // Names of cgroups need not be text.
        Ok(text.split(|byte| *byte == b'\n').find_map(|line| {
            let mut columns = line.splitn(3, |byte| *byte == b':').skip(1);
            let mut names = columns.next()?.split(|byte| *byte == b',');
            let found = names.any(|name| name == controllers.as_bytes());
            columns.next().filter(|_| found).map(|path| Place::At(OsStr::from_bytes(path).into()))
        }))
    }
}

/// Opens a process; `None` if it has ended.
fn open(pid: i32) -> Result<Option<Process>, ProcessError> {
    match Process::open_any(pid) {
        Err(ProcessError::Gone { .. }) => Ok(None),
        opened => opened.map(Some),
    }
}

fn process_error(id: &ContainerId, source: ProcessError) -> DestroyError {
    DestroyError::Process { id: id.clone(), source }
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

    /// Removes a cgroup that is empty.
    struct Removed(Cgroup);

    impl Drop for Removed {
        fn drop(&mut self) {
            drop(self.0.remove(Duration::from_secs(10)));
        }
    }

    #[test]
    fn a_process_that_has_escaped_is_released_from_any_cgroup() {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("CI").is_none(),
                "this test needs root; with CI set it must not be skipped"
            );
            return;
        }
        let cgroups = Cgroups::detect().unwrap();
        let name = format!("cofferdam-released-{}", std::process::id());
        let all = SCHEDULING.iter().filter_map(|controller| cgroups.cgroup(controller, &name));
        let all: Vec<_> = all.chain(cgroups.unified(&name)).map(Removed).collect();
        assert!(!all.is_empty());
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        let mut moved = Vec::new();
        for Removed(cgroup) in &all {
            cgroup.create().unwrap();
            moved.push(cgroup.adopt(pid).and_then(|()| cgroup.procs()));
        }
        release_escaped(&cgroups, &[pid]);
        let left: Vec<_> = all.iter().map(|Removed(cgroup)| cgroup.procs()).collect();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        for (moved, left) in moved.into_iter().zip(left) {
            assert_eq!((moved.unwrap(), left.unwrap()), (vec![pid], Vec::new()));
        }
    }

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
