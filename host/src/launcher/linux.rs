//! Containers as Linux knows them: namespaces to see by, a cgroup to be held by.
//!
//! ```text
//! <hierarchy>/<root>/<instance>/pod.container              pod's processes
//!                                            /leaf          …moved here when one nested in it wants controllers (v2)
//!                                            /web.container the processes of pod.web
//! ```
//!
//! The hierarchy is v2 wherever it is mounted, be it beside v1: there a process is born in its cgroup, a kill is one
//! write, and emptiness is an event. Elsewhere it is v1's freezer. The instance keeps agents on one machine apart.
//!
//! No knob of any controller ends in `.container`, so an id can never be mistaken for one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_linux::birth::{self, BirthError};
use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups, Events, Version};
use cofferdam_linux::image::Image;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;

use super::{
    BadId, Birth, DestroyError, Held, HoldError, Launcher, ReadyError, RecoverError, descriptors, parts,
};

/// What the directory of a container ends in.
const CONTAINER: &str = ".container";
/// Where a v2 container's processes go when its own directory must hold none.
const LEAF: &str = "leaf";
/// How long a killed process is given to disappear before surer means are used, or none, if it is in nobody's way.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// The launcher for which containers are namespaces and cgroups. Needs root.
#[derive(Debug)]
pub struct Linux {
    cgroups: Cgroups,
    /// `<root>/<instance>`, relative to the mounts.
    relative: PathBuf,
    /// That, in the hierarchy by which containers are tracked.
    tracking: Cgroup,
    image: Arc<Image>,
    patience: Duration,
}

/// The cgroups a process is born in: a v2 directory, and `tasks` files of v1 directories.
struct Homes {
    v2: Option<OwnedFd>,
    v1: Vec<(PathBuf, OwnedFd)>,
}

/// A machine on which containers cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// There is no hierarchy to track by.
    #[error("neither cgroup v2 nor the v1 freezer hierarchy is mounted")]
    NoHierarchy,
    /// The instance is no name of a directory.
    #[error("`{instance}` cannot name a cgroup")]
    Instance {
        /// It.
        instance: String,
    },
    /// The agent's cgroup cannot be made.
    #[error("cannot make the cgroup that is to hold all containers")]
    Cgroup(#[source] CgroupError),
}

impl Linux {
    /// A launcher for the agent called `instance`.
    ///
    /// `root` is a path relative to the mounts, below which all agents keep their cgroups. `patience` is how long a
    /// `destroy` waits for the kernel to end processes that were killed.
    pub fn new(
        cgroups: Cgroups,
        root: &Path,
        instance: &str,
        image: Arc<Image>,
        patience: Duration,
    ) -> Result<Self, SetUpError> {
        if instance.is_empty() || instance.starts_with('.') || instance.contains(['/', '\0']) {
            return Err(SetUpError::Instance { instance: instance.to_owned() });
        }
        let relative = root.strip_prefix("/").unwrap_or(root).join(instance);
        let tracking = cgroups
            .unified(&relative)
            .or_else(|| cgroups.cgroup("freezer", &relative))
            .ok_or(SetUpError::NoHierarchy)?;
        tracking.create().map_err(SetUpError::Cgroup)?;
        Ok(Self { cgroups, relative, tracking, image, patience })
    }

    fn tracking(&self, id: &str) -> Result<Cgroup, BadId> {
        Ok(self.tracking.child(path(id)?))
    }

    /// Moves a container's processes into a leaf below it, because a v2 cgroup that hands controllers down must hold
    /// none itself.
    fn evacuate(&self, parent: &Cgroup, id: &str) -> Result<(), ReadyError> {
        let failed = |source| ReadyError::Cgroup { id: id.to_owned(), source };
        let leaf = parent.child(LEAF);
        let deadline = Instant::now() + self.patience;
        loop {
            let procs = parent.procs().map_err(failed)?;
            if procs.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ReadyError::Crowded { id: id.to_owned() });
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

    /// Those of `controllers` that are found in v2; those of v1 are there without our help.
    fn of_v2<'c>(&self, id: &str, controllers: &[&'c str]) -> Result<Vec<&'c str>, ReadyError> {
        let mut found = Vec::new();
        for controller in controllers {
            match self.cgroups.hierarchy(controller) {
                Some((_, Version::V2)) => found.push(*controller),
                Some((_, Version::V1)) => {}
                None => {
                    let controller = (*controller).to_owned();
                    return Err(ReadyError::NoController { id: id.to_owned(), controller });
                }
            }
        }
        Ok(found)
    }

    /// Opens the container's own cgroup and those asked for. A v2 path must be the container's own, into which it is born anyway.
    fn homes(&self, birth: &Birth<'_>, own: &Cgroup) -> Result<Homes, HoldError> {
        let failed = |source| HoldError::Cgroup { id: birth.id.to_owned(), source };
        let mut homes = Homes { v2: None, v1: Vec::new() };
        match own.version() {
            Version::V2 => homes.v2 = Some(own.directory().map_err(failed)?),
            Version::V1 => homes.v1.push((own.path().to_owned(), own.tasks().map_err(failed)?)),
        }
        let unified = self.cgroups.unified.as_ref().map(|hierarchy| hierarchy.mount.as_path());
        for path in &birth.cgroups {
            if path == own.path() {
                continue;
            }
            let is_v2 = unified.is_some_and(|mount| path.starts_with(mount));
            if is_v2 {
                return Err(HoldError::SecondHome { id: birth.id.to_owned(), path: path.clone() });
            }
            homes.v1.push((path.clone(), Cgroup::at(path, Version::V1).tasks().map_err(failed)?));
        }
        Ok(homes)
    }
}

impl Launcher for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn namespaces(&self) -> Namespaces {
        Namespaces::from_iter(Namespace::ALL).without(Namespace::User)
    }

    fn cgroup(&self, id: &str) -> Result<Option<PathBuf>, BadId> {
        Ok(Some(self.relative.join(path(id)?)))
    }

    fn ready(&self, id: &str, controllers: &[&str]) -> Result<(), ReadyError> {
        let own = self.tracking(id)?;
        let controllers = self.of_v2(id, controllers)?;
        if !controllers.is_empty()
            && let Some((parent, _)) = id.rsplit_once('.')
        {
            self.evacuate(&self.tracking(parent)?, id)?;
        }
        own.create().map_err(|source| ReadyError::Cgroup { id: id.to_owned(), source })?;
        self.cgroups.delegate(self.relative.join(path(id)?), &controllers).map_err(|source| {
            ReadyError::Controllers { id: id.to_owned(), controllers: controllers.join(", "), source }
        })
    }

    fn hold(&self, birth: Birth<'_>) -> Result<Held, HoldError> {
        let id = || birth.id.to_owned();
        let user = birth.clone.contains(Namespace::User)
            || birth.enter.is_some_and(|enter| enter.namespaces.contains(Namespace::User));
        if user {
            let what = "a user namespace".to_owned();
            return Err(HoldError::Unsupported { launcher: self.name(), id: id(), what });
        }
        let own = self.tracking(birth.id)?;
        let homes = self.homes(&birth, &own)?;
        let (control, theirs) = Held::control().map_err(|source| HoldError::Control { id: id(), source })?;

        let name = std::ffi::CString::new(birth.id).map_err(|_| BadId { id: id() })?;
        let open_tasks: Vec<_> = homes.v1.iter().map(|(_, file)| file.as_fd()).collect();
        let process = birth::Birth {
            image: &self.image,
            arguments: &[c"cofferdam-init", &name],
            descriptors: &descriptors(&birth.stdio, &theirs, birth.status),
            clone: birth.clone,
            enter: birth.enter,
            cgroup: homes.v2.as_ref().map(AsFd::as_fd),
            tasks: &open_tasks,
        }
        .deliver()
        .map_err(|source| match source {
            BirthError::Join { index, source } => {
                let path = homes.v1.get(index).map(|(path, _)| path.clone()).unwrap_or_default();
                HoldError::Join { id: id(), path, source }
            }
            source => HoldError::Birth { id: id(), source },
        })?;
        Ok(Held::new(process, control, birth.clone, false))
    }

    fn pids(&self, id: &str, _: Option<&Process>) -> Result<Vec<i32>, DestroyError> {
        let own = self.tracking(id)?;
        let mut pids = Vec::new();
        for cgroup in [own.child(LEAF), own] {
            match cgroup.procs() {
                Err(error) if error.is_missing() => {}
                Err(source) => return Err(DestroyError::Cgroup { id: id.to_owned(), source }),
                Ok(procs) => pids.extend(procs),
            }
        }
        Ok(pids)
    }

    fn destroy(&self, id: &str, first: Option<&Process>) -> Result<(), DestroyError> {
        let own = self.tracking(id)?;
        if first.is_some_and(|first| first.has_ended().unwrap_or(false)) && is_empty(&own) {
            return Ok(());
        }
        if let Some(first) = first {
            // With an own pid namespace this ends all the others too. Where there is a freezer only, waiting for that
            // saves a freeze, which can hang when memory is short.
            first.kill().map_err(|source| DestroyError::Process { id: id.to_owned(), source })?;
            if own.version() == Version::V1 {
                self.ends(id, first, LAST_BREATH)?;
            }
        }
        own.kill_all(self.patience).map_err(|source| DestroyError::Kill { id: id.to_owned(), source })?;
        let Some(first) = first else { return Ok(()) };
        if own.exists() {
            // It has left its cgroup, so it is past its last instruction. One that was process 1 of a pid namespace
            // may stay a while: until somebody has reaped the first processes of those nested in the namespace.
            self.ends(id, first, LAST_BREATH)?;
        } else if !self.ends(id, first, self.patience)? {
            return Err(DestroyError::Stuck { id: id.to_owned(), pids: vec![first.pid()] });
        }
        Ok(())
    }

    fn cleanup(&self, id: &str) -> Result<(), DestroyError> {
        let failed = |source| DestroyError::Cgroup { id: id.to_owned(), source };
        self.tracking(id)?.remove(self.patience).map_err(failed)
    }

    fn recover(&self) -> Result<Vec<String>, RecoverError> {
        let mut ids = Vec::new();
        find(&self.tracking, None, &mut ids)?;
        Ok(ids)
    }

    fn leave(&self) {
        let mounts =
            self.cgroups.legacy.iter().chain(&self.cgroups.unified).map(|hierarchy| &hierarchy.mount);
        for mount in mounts {
            // One with a container in it stays: the kernel removes no directory that is in use. The one above stays
            // too: another agent may be about to make its own in it.
            drop(std::fs::remove_dir(mount.join(&self.relative)));
        }
    }
}

impl Linux {
    /// Waits for a killed process to end. Whether it has.
    fn ends(&self, id: &str, process: &Process, patience: Duration) -> Result<bool, DestroyError> {
        let failed = |source| DestroyError::Find { id: id.to_owned(), source };
        process.wait(Some(patience)).map_err(failed)
    }
}

/// Whether a v2 cgroup is there and has no process in it or below. Nobody can fork in there then.
fn is_empty(cgroup: &Cgroup) -> bool {
    let populated = |mut events: Events| events.populated();
    cgroup.version() == Version::V2 && cgroup.events().and_then(populated).is_ok_and(|populated| !populated)
}

/// Where a container's cgroup is below its agent's.
fn path(id: &str) -> Result<PathBuf, BadId> {
    Ok(parts(id)?.into_iter().map(|part| format!("{part}{CONTAINER}")).collect())
}

/// Collects the ids of the containers below `cgroup`, which belongs to container `parent`. Whatever else is there is
/// not ours.
fn find(cgroup: &Cgroup, parent: Option<&str>, ids: &mut Vec<String>) -> Result<(), CgroupError> {
    let children = match cgroup.children() {
        Err(error) if error.is_missing() => return Ok(()),
        children => children?,
    };
    for child in children {
        let name = child.path().file_name().and_then(|name| name.to_str());
        let Some(part) = name.and_then(|name| name.strip_suffix(CONTAINER)) else { continue };
        let id = parent.map_or_else(|| part.to_owned(), |parent| format!("{parent}.{part}"));
        if parts(&id).is_err() {
            continue;
        }
        ids.push(id.clone());
        find(&child, Some(&id), ids)?;
    }
    Ok(())
}
