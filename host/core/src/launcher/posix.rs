//! Containers without root: plain processes, tracked as the descendants of the first one, which is a subreaper.
//!
//! Limitation: if the first process is killed by anything but the agent, its descendants are no longer tracked.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_init::protocol::Spawn;
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, ProcessError, Stat, children_of};
use cofferdam_plugin_model::ContainerId;

use super::{
    CgroupSetupError, CreateError, DestroyError, Destroyed, Launcher, PendingInit, RecoverError,
    SpawnRequest, Timeouts, check_count,
};
use crate::keeper::Keepers;

const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
/// How long a fork that is in progress may take.
const FORK_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval for polling a state without notification.
const POLL_INTERVAL: Duration = Duration::from_micros(100);
/// How long init may take to write the status file after its task has ended.
const STATUS_GRACE: Duration = Duration::from_secs(1);

/// The launcher for plain processes, without namespaces or cgroups.
#[derive(Debug)]
pub struct Posix {
    keepers: Arc<Keepers>,
    timeouts: Timeouts,
}

impl Posix {
    /// `keepers` create the processes.
    pub fn new(keepers: Arc<Keepers>, timeouts: Timeouts) -> Self {
        Self { keepers, timeouts }
    }
}

impl Launcher for Posix {
    fn name(&self) -> &'static str {
        "posix"
    }

    fn namespaces(&self) -> Namespaces {
        Namespaces::EMPTY
    }

    fn cgroup(&self, _: &ContainerId) -> Option<PathBuf> {
        None
    }

    fn create_cgroup(&self, _: &ContainerId, _: &[&str]) -> Result<(), CgroupSetupError> {
        Ok(())
    }

    fn create(&self, request: SpawnRequest<'_>) -> Result<PendingInit, CreateError> {
        let id = || request.id.clone();
        let entered = request.enter.map(|enter| enter.namespaces).unwrap_or_default();
        let what = match request.cgroups.first() {
            Some(cgroup) => format!("the cgroup {}", cgroup.display()),
            None if !request.clone.is_empty() => format!("its own namespaces ({})", request.clone),
            None if !entered.is_empty() => format!("another's namespaces ({entered})"),
            None => String::new(),
        };
        if !what.is_empty() {
            return Err(CreateError::Unsupported { launcher: self.name(), id: id(), what });
        }
        check_count(request.id, &request.descriptors)?;
        let plan_descriptors = request.descriptors.len() as u32;
        let spawn = Spawn { plan_descriptors, stays: true, ..Spawn::default() };
        let spawned = self.keepers.spawn(spawn, request.stdio.in_order(), &request.descriptors);
        let spawned = spawned.map_err(|source| CreateError::Spawn { id: id(), source })?;
        Ok(PendingInit::new(spawned, Namespaces::EMPTY, self.timeouts.launch))
    }

    fn pids(&self, id: &ContainerId, first: Option<&Process>) -> Result<Vec<i32>, DestroyError> {
        let Some(first) = first else { return Ok(Vec::new()) };
        let mut known = BTreeMap::new();
        if first.has_ended().unwrap_or(true) {
            return Ok(Vec::new());
        }
        discover(first.pid(), &mut known, |_| Ok(()))
            .map_err(|source| DestroyError::Find { id: id.clone(), source })?;
        Ok(std::iter::once(first.pid()).chain(known.into_keys()).collect())
    }

    /// The first process forwards signals that it can catch; others are sent to the command itself.
    fn signal(&self, first: &Process, number: i32) -> Result<(), ProcessError> {
        if !matches!(number, SIGSTOP | SIGCONT) {
            return first.signal(number);
        }
        let children = first.children();
        for child in children.map_err(|source| ProcessError::Open { pid: first.pid(), source })? {
            match Process::open_any(child).and_then(|child| child.signal(number)) {
                Err(ProcessError::Gone { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn destroy(&self, container: Destroyed<'_>) -> Result<(), DestroyError> {
        let Destroyed { id, first, .. } = container;
        // Without the first process, the others cannot be distinguished from processes of other programs.
        let Some(first) = first else { return Ok(()) };
        let deadline = Instant::now() + self.timeouts.destroy;
        let find = |source| DestroyError::Find { id: id.clone(), source };

        let mut killed_any = false;
        while !first.has_ended().map_err(find)? {
            let descendants = stop_all(first.pid(), deadline).map_err(find)?;
            if descendants.is_empty() {
                // Init creates its task once, and no other child.
                let alone = if killed_any { is_childless(first) } else { stays_childless(first) };
                if alone.map_err(find)? {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(DestroyError::Stuck { id: id.clone(), pids: vec![first.pid()] });
                }
                // Its task may have stopped init, which has to reap.
                signal(first, SIGCONT).map_err(find)?;
                thread::sleep(POLL_INTERVAL);
                continue;
            }
            killed_any = true;
            for process in descendants.values() {
                process.kill().map_err(|source| DestroyError::Process { id: id.clone(), source })?;
            }
            for process in descendants.values() {
                let left = deadline.saturating_duration_since(Instant::now());
                if !process.wait(Some(left)).map_err(find)? {
                    let pids = descendants.into_keys().collect();
                    return Err(DestroyError::Stuck { id: id.clone(), pids });
                }
            }
        }
        // When its task has ended, init writes the status file and exits. It does not if it is waiting for its plan or
        // had no task left.
        if killed_any && first.wait(Some(STATUS_GRACE)).map_err(find)? {
            return Ok(());
        }
        first.kill().map_err(|source| DestroyError::Process { id: id.clone(), source })?;
        let left = deadline.saturating_duration_since(Instant::now()).max(STATUS_GRACE);
        if first.wait(Some(left)).map_err(find)? {
            Ok(())
        } else {
            Err(DestroyError::Stuck { id: id.clone(), pids: vec![first.pid()] })
        }
    }

    fn cleanup(&self, _: &ContainerId) -> Result<(), DestroyError> {
        Ok(())
    }

    fn recover(&self) -> Result<Vec<ContainerId>, RecoverError> {
        Ok(Vec::new())
    }

    fn keepers(&self) -> &Arc<Keepers> {
        &self.keepers
    }

    fn shutdown(&self) {
        self.keepers.shutdown();
    }
}

/// Whether a process has no children, not even zombies: orphans become its children, so this is exact even if the
/// tree changes while it is scanned.
fn is_childless(first: &Process) -> io::Result<bool> {
    Ok(first.children()?.is_empty())
}

/// Whether init has no task and will not get one: if it were killed during the fork, the task would not be tracked. So
/// init is stopped before the check, and stays stopped only if it has no child.
fn stays_childless(first: &Process) -> io::Result<bool> {
    signal(first, SIGSTOP)?;
    let childless = await_stop(first).and_then(|()| is_childless(first));
    if !matches!(childless, Ok(true)) {
        signal(first, SIGCONT)?;
    }
    childless
}

/// Waits until a process has stopped after SIGSTOP and so cannot be forking. If it is blocked in the kernel for longer
/// than `FORK_TIMEOUT`, it is not in a fork.
fn await_stop(process: &Process) -> io::Result<()> {
    let deadline = Instant::now() + FORK_TIMEOUT;
    let is_stopped = || Stat::read(process.pid()).is_ok_and(|stat| matches!(stat.state, 'T' | 't'));
    while !is_stopped() && Instant::now() < deadline && !process.has_ended()? {
        // Only the parent is notified.
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Sends a signal. It is not an error if the process has ended.
fn signal(process: &Process, number: i32) -> io::Result<()> {
    match process.signal(number) {
        Ok(()) | Err(ProcessError::Gone { .. }) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Stops all descendants of process `root`, until a scan finds no new one: a stopped process does not fork. Returns
/// the descendants that have not ended.
fn stop_all(root: i32, deadline: Instant) -> io::Result<BTreeMap<i32, Process>> {
    let mut stopped = BTreeMap::new();
    while discover(root, &mut stopped, |process| signal(process, SIGSTOP))? > 0 && Instant::now() < deadline {
    }
    Ok(stopped)
}

/// Scans the tree below process `root`, calls `visit` for processes that are not in `known`, and adds them. Returns
/// their number.
fn discover(
    root: i32,
    known: &mut BTreeMap<i32, Process>,
    visit: impl Fn(&Process) -> io::Result<()>,
) -> io::Result<usize> {
    let mut new = 0;
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for pid in children_of(parent)? {
            parents.push(pid);
            if known.contains_key(&pid) {
                continue;
            }
            // The pid may have been reused before it was opened. A descendant's parent is the one that was scanned or,
            // if that has ended, the subreaper at the root; a process of another program has neither.
            let Ok(process) = Process::open_any(pid) else { continue };
            let Ok(stat) = Stat::read(pid) else { continue };
            let ours = stat.parent == parent || stat.parent == root;
            // Its first thread may be a zombie, and others not.
            if ours && !process.has_ended()? && process.signal(0).is_ok() {
                visit(&process)?;
                known.insert(pid, process);
                new += 1;
            }
        }
    }
    Ok(new)
}
