//! Containers without root: plain processes, held together by their first one, which adopts every orphan.
//!
//! What it cannot promise: if somebody else kills the first process, those below it are lost to us.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_linux::image::Image;
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, ProcessError, Stat, children_of};
use cofferdam_linux::spawn;
use cofferdam_plugin_model::ContainerId;

use super::{
    CgroupSetupError, CreateError, DestroyError, Launcher, PendingInit, RecoverError, SpawnRequest,
    descriptors,
};

const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
/// How long a fork may take.
const FORK: Duration = Duration::from_secs(1);
/// Between two looks at a process of which nothing is announced.
const PAUSE: Duration = Duration::from_micros(100);
/// How long init may take to write down how its task has ended.
const STATUS_GRACE: Duration = Duration::from_secs(1);

/// The launcher that needs nothing of the kernel but processes.
#[derive(Debug)]
pub struct Posix {
    image: Arc<Image>,
    timeout: Duration,
}

impl Posix {
    /// `patience` is how long a `destroy` waits for the kernel to end processes that were killed.
    pub fn new(image: Arc<Image>, timeout: Duration) -> Self {
        Self { image, timeout }
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
        let (control, theirs) =
            PendingInit::control().map_err(|source| CreateError::Control { id: id(), source })?;
        let name = super::argument(request.id);
        let process = spawn::Spawn {
            image: &self.image,
            arguments: &[c"cofferdam-init", &name],
            descriptors: &descriptors(&request.stdio, &theirs, request.status),
            clone: Namespaces::EMPTY,
            enter: None,
            cgroup: None,
            tasks: &[],
        }
        .spawn()
        .map_err(|source| CreateError::Spawn { id: id(), source })?;
        Ok(PendingInit::new(process, control, Namespaces::EMPTY, true))
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

    fn destroy(&self, id: &ContainerId, first: Option<&Process>) -> Result<(), DestroyError> {
        // Without the first process there is nothing by which the others could be told from strangers.
        let Some(first) = first else { return Ok(()) };
        let deadline = Instant::now() + self.timeout;
        let find = |source| DestroyError::Find { id: id.clone(), source };

        let mut killed_any = false;
        while !first.has_ended().map_err(find)? {
            let descendants = stop_all(first.pid(), deadline).map_err(find)?;
            if descendants.is_empty() {
                // Once it had its task, it makes no other child.
                let alone = if killed_any { is_childless(first) } else { stays_childless(first) };
                if alone.map_err(find)? {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(DestroyError::Stuck { id: id.clone(), pids: vec![first.pid()] });
                }
                // It may have been stopped by its task, and has to reap what has ended.
                signal(first, SIGCONT).map_err(find)?;
                thread::sleep(PAUSE);
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
        // Without its task init ends by itself, having written down how that ended. One that waits for its plan, or
        // has no task left, does not.
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

    fn shutdown(&self) {}
}

/// Whether a process has no child, not even one that has ended and is to be reaped: those of one that ends become
/// its own, whoever walks the tree meanwhile.
fn is_childless(first: &Process) -> io::Result<bool> {
    Ok(first.children()?.is_empty())
}

/// Whether a first process has no task and will have none: killed while it forks one, it would leave that to nobody.
/// So it is stopped for the look, and stays so only if it is alone.
fn stays_childless(first: &Process) -> io::Result<bool> {
    signal(first, SIGSTOP)?;
    let looked = await_stop(first).and_then(|()| is_childless(first));
    if !matches!(looked, Ok(true)) {
        signal(first, SIGCONT)?;
    }
    looked
}

/// Waits until a process that was sent SIGSTOP forks no more. One that hangs in the kernel for longer is not forking.
fn await_stop(process: &Process) -> io::Result<()> {
    let deadline = Instant::now() + FORK;
    let stands = || Stat::read(process.pid()).is_ok_and(|stat| matches!(stat.state, 'T' | 't'));
    while !stands() && Instant::now() < deadline && !process.has_ended()? {
        // Nothing announces it to others than the parent.
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Sends a signal. A process that is gone already is no error.
fn signal(process: &Process, number: i32) -> io::Result<()> {
    match process.signal(number) {
        Ok(()) | Err(ProcessError::Gone { .. }) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Stops all descendants of process `root`, until a walk finds no new one: who is stopped does not fork. Gives those
/// that live.
fn stop_all(root: i32, deadline: Instant) -> io::Result<BTreeMap<i32, Process>> {
    let mut stopped = BTreeMap::new();
    while discover(root, &mut stopped, |process| signal(process, SIGSTOP))? > 0 && Instant::now() < deadline {
    }
    Ok(stopped)
}

/// Walks the tree below process `root`, shows those not `known` yet to `meet`, and adds them. How many there were.
fn discover(
    root: i32,
    known: &mut BTreeMap<i32, Process>,
    meet: impl Fn(&Process) -> io::Result<()>,
) -> io::Result<usize> {
    let mut new = 0;
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for pid in children_of(parent)? {
            parents.push(pid);
            if known.contains_key(&pid) {
                continue;
            }
            // The number may be another's by the time it is opened, and another's has another parent: either the one
            // we saw, or, if that has died, the subreaper at the root.
            let Ok(process) = Process::open_any(pid) else { continue };
            let Ok(stat) = Stat::read(pid) else { continue };
            let ours = stat.parent == parent || stat.parent == root;
            if ours && stat.state != 'Z' && process.signal(0).is_ok() {
                meet(&process)?;
                known.insert(pid, process);
                new += 1;
            }
        }
    }
    Ok(new)
}
