//! Containers with namespaces, and a cgroup that tracks their processes.
//!
//! ```text
//! <hierarchy>/<root>/<instance>/keeper                     the agent's keepers, setup processes, companions of plugins
//!                              /pod.container              pod's processes
//!                                            /leaf          …moved here when a nested one needs controllers (v2)
//!                                            /web.container the processes of pod.web
//! ```
//!
//! The hierarchy is v2 if it is mounted, even beside v1: there a process is created in its cgroup, a kill is one
//! write, and an empty cgroup is an event. Otherwise it is the freezer of v1. The instance separates agents on one
//! machine.
//!
//! On v2 the setup process of a container stays in the cgroup of its keeper; what it creates is in that of the container.
//!
//! No interface file of any controller ends in `.container`, so the directory of a container cannot collide with one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_init::protocol::Spawn;
use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups, Events, Version};
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::{Process, ProcessError};
use cofferdam_plugin_model::ContainerId;

use super::escape::{self, Escape};
use super::{
    CONTAINER, CgroupLimits, CgroupSetupError, CreateError, DestroyError, Destroyed, KEEPER, Launcher,
    PendingInit, RecoverError, SpawnRequest, Timeouts, check_count,
};
use crate::keeper::{KeeperCgroups, KeeperError, KeeperSlot, Keepers};

/// Cgroup for a v2 container's processes when its own directory must not contain any.
const LEAF: &str = "leaf";
/// How long to wait for a killed process that need not have ended yet.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// The launcher with namespaces and cgroups. Needs root.
#[derive(Debug)]
pub struct Linux {
    cgroups: Cgroups,
    /// `<root>/<instance>`, relative to the mount points.
    relative: PathBuf,
    /// `relative` in the hierarchy that tracks containers.
    tracking: Cgroup,
    keepers: Arc<Keepers>,
    timeouts: Timeouts,
    limits: CgroupLimits,
}

/// Descriptors of the cgroups of a container: a v2 directory, and `tasks` files of v1 directories.
struct CgroupFds {
    v2: Option<OwnedFd>,
    v1: Vec<(PathBuf, OwnedFd)>,
}

/// Why the launcher cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// No usable cgroup hierarchy is mounted.
    #[error("neither cgroup v2 nor the v1 freezer hierarchy is mounted")]
    NoHierarchy,
    /// The instance is not a valid name of a directory.
    #[error(
        "`{instance}` cannot be the name of a cgroup; it must not be empty, start with `.`, or contain `/` or NUL"
    )]
    Instance {
        /// The instance.
        instance: String,
    },
    /// The agent's cgroup cannot be created.
    #[error("cannot create the agent's cgroup")]
    Cgroup(#[source] CgroupError),
    /// No keeper can be started.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl Linux {
    /// Creates the launcher of the agent `instance`.
    ///
    /// `root` is a path relative to the mount points, below which all agents have their cgroups. `keepers` opens the
    /// keepers, which are in a cgroup beside those of the containers.
    pub fn new(
        cgroups: Cgroups,
        root: &Path,
        instance: &str,
        keepers: impl FnOnce(KeeperCgroups) -> Result<Arc<Keepers>, KeeperError>,
        timeouts: Timeouts,
        limits: CgroupLimits,
    ) -> Result<Self, SetUpError> {
        if instance.is_empty() || instance.starts_with('.') || instance.contains(['/', '\0']) {
            return Err(SetUpError::Instance { instance: instance.to_owned() });
        }
        let relative = root.strip_prefix("/").unwrap_or(root).join(instance);
        let tracking = cgroups
            .unified(&relative)
            .or_else(|| cgroups.cgroup("freezer", &relative))
            .ok_or(SetUpError::NoHierarchy)?;
        let keeper = tracking.child(KEEPER);
        keeper.create().map_err(SetUpError::Cgroup)?;
        let of_keepers = match keeper.version() {
            Version::V2 => {
                KeeperCgroups { v2: Some(keeper.directory().map_err(SetUpError::Cgroup)?), v1: Vec::new() }
            }
            Version::V1 => KeeperCgroups { v2: None, v1: vec![keeper.tasks().map_err(SetUpError::Cgroup)?] },
        };
        let keepers = keepers(of_keepers)?;
        Ok(Self { cgroups, relative, tracking, keepers, timeouts, limits })
    }

    fn tracking(&self, id: &ContainerId) -> Cgroup {
        self.tracking.child(path(id))
    }

    /// Moves a container's processes into a leaf cgroup below it, because a v2 cgroup with controllers enabled for its
    /// children must not contain processes.
    fn evacuate(&self, parent: &Cgroup, id: &ContainerId) -> Result<(), CgroupSetupError> {
        let failed = |source| CgroupSetupError::Cgroup { id: id.clone(), source };
        let leaf = parent.child(LEAF);
        let deadline = Instant::now() + self.timeouts.destroy;
        loop {
            let procs = parent.procs().map_err(failed)?;
            if procs.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupSetupError::Evacuate { id: id.clone() });
            }
            leaf.create().map_err(failed)?;
            for pid in procs {
                match leaf.adopt(pid) {
                    // It has ended.
                    Err(CgroupError::Write { source, .. })
                        if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                    other => other.map_err(failed)?,
                }
            }
        }
    }

    /// Limits the cgroups below that of a container, whose processes may be permitted to create some. There is no such
    /// limit in v1, where they are not.
    fn limit_below(&self, own: &Cgroup) -> Result<(), CgroupError> {
        if own.version() == Version::V2 {
            own.write("cgroup.max.descendants", self.limits.descendants)?;
            own.write("cgroup.max.depth", self.limits.depth)?;
        }
        Ok(())
    }

    /// Those of `controllers` that are in v2; those in v1 need not be enabled.
    fn of_v2<'c>(&self, id: &ContainerId, controllers: &[&'c str]) -> Result<Vec<&'c str>, CgroupSetupError> {
        let mut found = Vec::new();
        for controller in controllers {
            match self.cgroups.hierarchy(controller) {
                Some((_, Version::V2)) => found.push(*controller),
                Some((_, Version::V1)) => {}
                None => {
                    let controller = (*controller).to_owned();
                    return Err(CgroupSetupError::NoController { id: id.clone(), controller });
                }
            }
        }
        Ok(found)
    }

    /// Opens the container's own cgroup and the requested ones. A requested v2 path must be the container's own.
    fn cgroup_fds(&self, request: &SpawnRequest<'_>, own: &Cgroup) -> Result<CgroupFds, CreateError> {
        let failed = |source| CreateError::Cgroup { id: request.id.clone(), source };
        let mut fds = CgroupFds { v2: None, v1: Vec::new() };
        match own.version() {
            Version::V2 => fds.v2 = Some(own.directory().map_err(failed)?),
            Version::V1 => fds.v1.push((own.path().to_owned(), own.tasks().map_err(failed)?)),
        }
        let unified = self.cgroups.unified.as_ref().map(|hierarchy| hierarchy.mount.as_path());
        for path in &request.cgroups {
            if path == own.path() {
                continue;
            }
            let is_v2 = unified.is_some_and(|mount| path.starts_with(mount));
            if is_v2 {
                return Err(CreateError::SecondCgroup { id: request.id.clone(), path: path.clone() });
            }
            fds.v1.push((path.clone(), Cgroup::at(path, Version::V1).tasks().map_err(failed)?));
        }
        Ok(fds)
    }
}

impl Launcher for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn namespaces(&self) -> Namespaces {
        Namespaces::from_iter(Namespace::ALL).without(Namespace::User)
    }

    fn cgroup(&self, id: &ContainerId) -> Option<PathBuf> {
        Some(self.relative.join(path(id)))
    }

    fn create_cgroup(&self, id: &ContainerId, controllers: &[&str]) -> Result<(), CgroupSetupError> {
        let own = self.tracking(id);
        let controllers = self.of_v2(id, controllers)?;
        if !controllers.is_empty()
            && let Some(parent) = id.parent()
        {
            self.evacuate(&self.tracking(&parent), id)?;
        }
        own.create()
            .and_then(|()| self.limit_below(&own))
            .map_err(|source| CgroupSetupError::Cgroup { id: id.clone(), source })?;
        self.cgroups.delegate(self.relative.join(path(id)), &controllers).map_err(|source| {
            CgroupSetupError::Controllers { id: id.clone(), controllers: controllers.join(", "), source }
        })
    }

    fn create(&self, request: SpawnRequest<'_>) -> Result<PendingInit, CreateError> {
        let id = || request.id.clone();
        let user = request.clone.contains(Namespace::User)
            || request.enter.is_some_and(|enter| enter.namespaces.contains(Namespace::User));
        if user {
            let what = "a user namespace".to_owned();
            return Err(CreateError::Unsupported { launcher: self.name(), id: id(), what });
        }
        let own = self.tracking(request.id);
        let fds = self.cgroup_fds(&request, &own)?;
        let mut passed = request.descriptors.clone();
        let plan_descriptors = request.descriptors.len() as u32;
        passed.extend(fds.v2.as_ref().map(AsFd::as_fd));
        let enter = request.enter.filter(|enter| !enter.namespaces.is_empty());
        passed.extend(enter.map(|enter| enter.process.as_fd()));
        passed.extend(fds.v1.iter().map(|(_, file)| file.as_fd()));
        check_count(request.id, &passed)?;
        // The cgroup that tracks the container comes first, the others when it is set up.
        let early_tasks = u32::from(fds.v2.is_none()).min(fds.v1.len() as u32);
        let spawn = Spawn {
            create: request.clone.bits(),
            enter: enter.map_or(0, |enter| enter.namespaces.bits()),
            plan_descriptors,
            cgroup: fds.v2.is_some(),
            early_tasks,
            late_tasks: fds.v1.len() as u32 - early_tasks,
            stays: false,
        };
        let spawned = self.keepers.spawn(spawn, request.stdio.in_order(), &passed);
        let spawned = spawned.map_err(|source| CreateError::Spawn { id: id(), source })?;
        Ok(PendingInit::new(spawned, request.clone, self.timeouts.launch))
    }

    fn pids(&self, id: &ContainerId, _: Option<&Process>) -> Result<Vec<i32>, DestroyError> {
        let own = self.tracking(id);
        let mut pids = Vec::new();
        for cgroup in [own.child(LEAF), own] {
            match cgroup.procs() {
                Err(error) if error.is_missing() => {}
                Err(source) => return Err(DestroyError::Cgroup { id: id.clone(), source }),
                Ok(procs) => pids.extend(procs),
            }
        }
        Ok(pids)
    }

    fn signal(&self, first: &Process, signal: i32) -> Result<(), ProcessError> {
        first.signal(signal)
    }

    fn destroy(&self, container: Destroyed<'_>) -> Result<(), DestroyError> {
        let Destroyed { id, first, shares_host_pids, .. } = container;
        let own = self.tracking(id);
        // In this order: a setup process creates others in the cgroup as long as it has not ended.
        let has_ended = first.is_some_and(|first| first.has_ended().unwrap_or(false));
        if !(has_ended && is_empty(&own)) {
            self.kill(container, &own)?;
        }
        match shares_host_pids {
            true => self.escape().kill_escaped(id, Instant::now() + self.timeouts.destroy),
            false => Ok(()),
        }
    }

    fn end_pid_namespace(&self, id: &ContainerId, slot: &KeeperSlot) -> Result<(), DestroyError> {
        self.escape().end_pid_namespace(id, slot, Instant::now() + self.timeouts.destroy)
    }

    fn cleanup(&self, id: &ContainerId) -> Result<(), DestroyError> {
        let failed = |source| DestroyError::Cgroup { id: id.clone(), source };
        self.tracking(id).remove(self.timeouts.destroy).map_err(failed)
    }

    fn recover(&self) -> Result<Vec<ContainerId>, RecoverError> {
        Ok(find(&self.tracking)?)
    }

    fn companion_cgroup(&self) -> Option<PathBuf> {
        Some(self.tracking.child(KEEPER).path().to_owned())
    }

    fn keepers(&self) -> &Arc<Keepers> {
        &self.keepers
    }

    fn shutdown(&self) {
        self.keepers.shutdown();
        drop(std::fs::remove_dir(self.tracking.child(KEEPER).path()));
        let mounts =
            self.cgroups.legacy.iter().chain(&self.cgroups.unified).map(|hierarchy| &hierarchy.mount);
        for mount in mounts {
            // Fails if it still contains a container. Its parent stays: another agent may be about to use it.
            drop(std::fs::remove_dir(mount.join(&self.relative)));
        }
    }
}

impl Linux {
    fn escape(&self) -> Escape<'_> {
        Escape { cgroups: &self.cgroups, relative: &self.relative, keepers: &self.keepers }
    }

    /// Kills the first process and all processes in the container's cgroup. What is in the cgroup is killed whatever the
    /// first process does.
    fn kill(&self, container: Destroyed<'_>, own: &Cgroup) -> Result<(), DestroyError> {
        let Destroyed { id, first, is_setup, .. } = container;
        if let Some(first) = first {
            // In a pid namespace this ends all other processes too. With the v1 freezer, waiting for that avoids a
            // freeze, which can hang under memory pressure.
            first.kill().map_err(|source| DestroyError::Process { id: id.clone(), source })?;
            if own.version() == Version::V1 {
                self.wait(id, first, EXIT_GRACE)?;
            }
        }
        self.kill_cgroup(id, own)?;
        let Some(first) = first else { return Ok(()) };
        if is_setup {
            self.end_setup(id, first, own)
        } else if own.exists() {
            // The cgroup is empty, so the process does not run any more. Process 1 of a pid namespace may not have
            // ended yet: the kernel waits until the first processes of nested containers are reaped.
            self.wait(id, first, EXIT_GRACE).map(drop)
        } else if self.wait(id, first, self.timeouts.destroy)? {
            Ok(())
        } else {
            Err(DestroyError::Stuck { id: id.clone(), pids: vec![first.pid()] })
        }
    }

    fn kill_cgroup(&self, id: &ContainerId, own: &Cgroup) -> Result<(), DestroyError> {
        own.kill_all_with(self.timeouts.destroy, |pids| escape::release(&self.cgroups, own, pids))
            .map_err(|source| DestroyError::Kill { id: id.clone(), source })
    }

    /// Waits for the end of a killed setup process, and kills what it has created up to then in the container's cgroup of v2,
    /// in which it is not.
    fn end_setup(&self, id: &ContainerId, setup: &Process, own: &Cgroup) -> Result<(), DestroyError> {
        if !self.wait(id, setup, EXIT_GRACE)? {
            // It may have joined cgroups of v1 that others can freeze.
            escape::release(&self.cgroups, own, &[setup.pid()]);
            if !self.wait(id, setup, self.timeouts.destroy)? {
                return Err(DestroyError::Stuck { id: id.clone(), pids: vec![setup.pid()] });
            }
        }
        match is_empty(own) {
            true => Ok(()),
            false => self.kill_cgroup(id, own),
        }
    }

    /// Waits for a killed process to end. Returns whether it has.
    fn wait(&self, id: &ContainerId, process: &Process, timeout: Duration) -> Result<bool, DestroyError> {
        let failed = |source| DestroyError::Find { id: id.clone(), source };
        process.wait(Some(timeout)).map_err(failed)
    }
}

/// Whether a v2 cgroup exists and contains no process, also not below. Then no process can fork in it.
fn is_empty(cgroup: &Cgroup) -> bool {
    let populated = |mut events: Events| events.populated();
    cgroup.version() == Version::V2 && cgroup.events().and_then(populated).is_ok_and(|populated| !populated)
}

/// Path of a container's cgroup, relative to that of the agent.
fn path(id: &ContainerId) -> PathBuf {
    id.values().map(|value| format!("{value}{CONTAINER}")).collect()
}

/// The ids of the containers that have a cgroup below `tracking`, each after its parent. Other directories are ignored.
fn find(tracking: &Cgroup) -> Result<Vec<ContainerId>, CgroupError> {
    let mut ids = Vec::new();
    let mut left = vec![(tracking.clone(), None::<ContainerId>)];
    while let Some((cgroup, parent)) = left.pop() {
        let children = match cgroup.children() {
            Err(error) if error.is_missing() => continue,
            children => children?,
        };
        for child in children {
            let name = child.path().file_name().and_then(|name| name.to_str());
            let Some(part) = name.and_then(|name| name.strip_suffix(CONTAINER)) else { continue };
            let id = match &parent {
                Some(parent) => parent.child(part),
                None => ContainerId::parse(part),
            };
            let Ok(id) = id else { continue };
            ids.push(id.clone());
            left.push((child, Some(id)));
        }
    }
    Ok(ids)
}
