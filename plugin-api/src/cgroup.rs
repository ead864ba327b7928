//! Control groups of a container, on cgroup v1 and v2.
//!
//! [`Controllers`](crate::Controllers) creates, finds and removes the cgroups that an isolator manages; [`Cgroup`] reads,
//! writes and watches the interface files of one controller.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cofferdam_linux::cgroup as linux;
use cofferdam_linux::devices;
use cofferdam_plugin_model as model;
use rustix::fs::inotify;

use crate::{Error, Event, Result, event};

// `Version` alone is that of a plugin.
pub use cofferdam_linux::cgroup::Version as CgroupVersion;

/// Controllers that every cgroup of v2 has: they are neither listed nor enabled there.
const IMPLICIT: [&str; 2] = ["devices", "perf_event"];

/// How many cgroups a sum covers.
const MAX_SUMMED: u64 = 1 << 16;

/// Controllers that have another name on v2.
const RENAMED: [(&str, &str); 1] = [("blkio", "io")];

/// The cgroup of a container in the hierarchy of one controller: a directory of interface files.
///
/// ```no_run
/// # use cofferdam_plugin_api::prelude::*;
/// # fn usage(container: &ContainerRef) -> Result<Usage> {
/// let processes: u32 = container.cgroup("pids")?.read_as("pids.current")?;
/// # Ok(Usage::default().with("processes", processes))
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Cgroup {
    controller: String,
    mount: PathBuf,
    group: linux::Cgroup,
}

/// Why an operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The host has no such controller.
    #[error(
        "this host has no cgroup controller `{controller}`, or the agent manages no control groups \
         (the `linux` launcher does)"
    )]
    NoController {
        /// Its name.
        controller: String,
    },
    /// The directory or an interface file cannot be created, read, written or removed.
    #[error(transparent)]
    Refused(#[from] linux::CgroupError),
    /// A controller cannot be enabled on the v2 hierarchy.
    #[error(
        "cannot enable the controller `{controller}` below `{}`; that control group must not contain processes \
         itself, and the agent must be allowed to write to it",
        path.display()
    )]
    Enable {
        /// Its name.
        controller: String,
        /// The parent cgroup.
        path: PathBuf,
        /// The error of the kernel.
        source: linux::CgroupError,
    },
    /// An interface file cannot be watched.
    #[error("cannot watch `{}`", path.display())]
    Watch {
        /// Path of the file.
        path: PathBuf,
        /// The error of the kernel.
        source: linux::CgroupError,
    },
}

impl CgroupError {
    /// Whether the cgroup or the interface file does not exist (any more).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.refusal().is_some_and(linux::CgroupError::is_missing)
    }

    /// Whether the kernel refused because the cgroup is in use.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.refusal().is_some_and(linux::CgroupError::is_busy)
    }

    /// Whether the kernel refused a value as invalid, which depends on the controller.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.refusal().is_some_and(linux::CgroupError::is_invalid)
    }

    fn refusal(&self) -> Option<&linux::CgroupError> {
        match self {
            Self::NoController { .. } => None,
            Self::Refused(source) | Self::Enable { source, .. } | Self::Watch { source, .. } => Some(source),
        }
    }
}

/// Whether namespaces are boundaries of delegation in the hierarchy of v2 (its mount option `nsdelegate`): then no process
/// in a cgroup namespace of its own writes a limit of the cgroup at the root of it, or leaves that. `None` if v2 is not
/// mounted.
///
/// # Errors
/// If the mount table cannot be read.
pub fn are_namespaces_boundaries() -> io::Result<Option<bool>> {
    let mounts = cofferdam_linux::mounts::mounts()?;
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2");
    Ok(unified.map(|mount| mount.super_options.iter().any(|option| option == "nsdelegate")))
}

/// On v2, where the agent has created the cgroup of a container: lets a user move processes of the container into cgroups
/// that it creates below. Only if [namespaces are boundaries](are_namespaces_boundaries), as nested containers could leave
/// their limits otherwise. Does nothing on a host without v2.
///
/// # Errors
/// [`CgroupError::Refused`].
pub fn delegate_processes(cgroups: &model::Cgroups, uid: u32, gid: u32) -> Result<(), CgroupError> {
    let Some(mount) = &cgroups.v2 else { return Ok(()) };
    let group = linux::Cgroup::at(mount.join(&cgroups.path), CgroupVersion::V2);
    group.set_owner(uid, gid)?;
    Ok(group.set_owner_of_processes(uid, gid)?)
}

impl Cgroup {
    /// The cgroup of `controller`, which the host must have.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] if the host does not have it.
    pub fn of(cgroups: &model::Cgroups, controller: &str) -> Result<Self, CgroupError> {
        Self::find(cgroups, controller)
            .ok_or_else(|| CgroupError::NoController { controller: controller.to_owned() })
    }

    /// The cgroup of `controller`, if the host has that. A controller that has another name on v2 is known by that of v1:
    /// `blkio`, which is `io`.
    #[must_use]
    pub fn find(cgroups: &model::Cgroups, controller: &str) -> Option<Self> {
        let renamed = RENAMED.iter().find(|(v1, _)| *v1 == controller);
        let of_v2 = renamed.map_or(controller, |(_, v2)| *v2);
        let on_v2 = || {
            let offered = cgroups.v2_controllers.iter().map(String::as_str);
            offered.chain(IMPLICIT).any(|offered| offered == of_v2)
        };
        let (mount, version) = match (cgroups.v1.get(controller), &cgroups.v2) {
            (Some(mount), _) => (mount, CgroupVersion::V1),
            (None, Some(mount)) if on_v2() => (mount, CgroupVersion::V2),
            _ => return None,
        };
        let group = linux::Cgroup::at(mount.join(&cgroups.path), version);
        let controller = if version == CgroupVersion::V1 { controller } else { of_v2 };
        Some(Self { controller: controller.to_owned(), mount: mount.clone(), group })
    }

    /// Name of the controller in its hierarchy.
    #[must_use]
    pub fn controller(&self) -> &str {
        &self.controller
    }

    /// Version of its hierarchy.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        self.group.version()
    }

    /// Path of its directory on the host.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.group.path()
    }

    /// Whether it has the interface file `knob`.
    #[must_use]
    pub fn has(&self, knob: &str) -> bool {
        self.group.has(knob)
    }

    /// The cgroups above it in the hierarchy, from its root down.
    #[must_use]
    pub fn above(&self) -> Vec<Self> {
        let paths = self.directory().ancestors().skip(1).take_while(|path| path.starts_with(&self.mount));
        let at = |path: &Path| Self { group: linux::Cgroup::at(path, self.version()), ..self.clone() };
        let mut above: Vec<Self> = paths.map(at).collect();
        above.reverse();
        above
    }

    /// Makes the interface files of the controller available.
    ///
    /// On v1 the directory is created with its missing parents. On v2 the agent has created it; the controller is
    /// enabled in all cgroups above it.
    ///
    /// # Errors
    /// [`CgroupError::Refused`], or on v2 [`CgroupError::Enable`].
    pub fn create(&self) -> Result<(), CgroupError> {
        match self.version() {
            CgroupVersion::V1 => Ok(self.group.create()?),
            CgroupVersion::V2 if IMPLICIT.contains(&self.controller.as_str()) => Ok(()),
            CgroupVersion::V2 => {
                // From the mount point down: a cgroup can only enable what its parent has enabled.
                self.above().iter().try_for_each(|above| self.enable(above.directory()))
            }
        }
    }

    fn enable(&self, above: &Path) -> Result<(), CgroupError> {
        let group = linux::Cgroup::at(above, CgroupVersion::V2);
        group.enable(&[&self.controller]).map_err(|source| CgroupError::Enable {
            controller: self.controller.clone(),
            path: above.to_owned(),
            source,
        })
    }

    /// Makes a user of the container the owner of the directory, and of none of its interface files.
    pub(crate) fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        Ok(self.group.set_owner(uid, gid)?)
    }

    /// Writes an interface file with a single write(2).
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn write(&self, knob: &str, value: impl Display) -> Result<(), CgroupError> {
        Ok(self.group.write(knob, value)?)
    }

    /// Content of an interface file, without trailing white space.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn read(&self, knob: &str) -> Result<String, CgroupError> {
        Ok(self.group.read(knob)?)
    }

    /// Content of an interface file with one value, such as a number.
    ///
    /// # Errors
    /// [`CgroupError::Refused`], also if it cannot be parsed.
    pub fn read_as<T: FromStr>(&self, knob: &str) -> Result<T, CgroupError> {
        Ok(self.group.read_as(knob)?)
    }

    /// Content of an interface file with lines of a name and a number, such as `memory.stat`. Other lines are skipped.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn read_table(&self, knob: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        Ok(self.group.read_table(knob)?)
    }

    /// The numbers after some of the names in such a file, in less time than [`Cgroup::read_table`]; `None` where there is no
    /// such line.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn read_numbers<const N: usize>(
        &self,
        knob: &str,
        names: [&str; N],
    ) -> Result<[Option<u64>; N], CgroupError> {
        Ok(self.group.read_numbers(knob, names)?)
    }

    /// Pids of its processes, without those of cgroups below it. Those of a threaded cgroup of v2, which a container can
    /// make, are among those of the next cgroup above it that is not threaded.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn procs(&self) -> Result<Vec<i32>, CgroupError> {
        Ok(self.group.procs()?)
    }

    /// Sum of a number over the cgroup and all cgroups below it: of nested containers, of the container's own making and,
    /// on v2, that of its processes. A cgroup that is removed meanwhile counts as 0.
    ///
    /// `number` reads interface files of the cgroup that it gets; the path of that may be too long to be used otherwise.
    ///
    /// # Errors
    /// [`CgroupError::Refused`], also if there are more than 65,536 cgroups, and those of `number`.
    pub fn sum(&self, number: impl Fn(&Self) -> Result<u64, CgroupError>) -> Result<u64, CgroupError> {
        let (mut sum, mut failed) = (0_u64, None);
        self.group.walk(MAX_SUMMED, |group| {
            match number(&Self { group: group.clone(), ..self.clone() }) {
                Ok(number) => sum = sum.saturating_add(number),
                Err(error) if error.is_missing() => {}
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
            Ok(())
        })?;
        failed.map_or(Ok(sum), Err)
    }

    /// A descriptor on which something happens when a file of the cgroup changes, for `watch`: an eventfd registered in
    /// `cgroup.event_control` on v1 (`arguments` are those that the file expects there, often none), which is also
    /// signalled when the cgroup is removed; the open file on v2. Read it empty with
    /// [`event::drain`].
    ///
    /// # Errors
    /// [`CgroupError::Watch`].
    pub fn watch(&self, knob: &str, arguments: &str) -> Result<OwnedFd, CgroupError> {
        let watching = match self.version() {
            CgroupVersion::V1 => self.watch_v1(knob, arguments),
            CgroupVersion::V2 => self.watch_v2(knob),
        };
        watching.map_err(|source| CgroupError::Watch { path: self.directory().join(knob), source })
    }

    fn watch_v1(&self, knob: &str, arguments: &str) -> Result<OwnedFd, linux::CgroupError> {
        let watched = self.group.open(knob)?;
        let event = Event::new().map_err(|error| self.unreadable(knob, error))?;
        let registration = format!("{} {} {arguments}", event.as_fd().as_raw_fd(), watched.as_raw_fd());
        self.group.write("cgroup.event_control", registration.trim_end())?;
        Ok(event.into())
    }

    fn watch_v2(&self, knob: &str) -> Result<OwnedFd, linux::CgroupError> {
        // Of inotify instances, a user may have some hundred only.
        let file = self.group.open(knob)?;
        if event::is_cgroup_file(file.as_fd()) {
            event::drain(&file).map_err(|error| self.unreadable(knob, error))?;
            return Ok(file.into());
        }
        // A directory of a test.
        let watching = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| self.unreadable(knob, errno.into()))?;
        inotify::add_watch(&watching, self.directory().join(knob), inotify::WatchFlags::MODIFY)
            .map_err(|errno| self.unreadable(knob, errno.into()))?;
        Ok(watching)
    }

    fn unreadable(&self, knob: &str, source: io::Error) -> linux::CgroupError {
        linux::CgroupError::Read { path: self.directory().join(knob), source }
    }

    /// Restricts the processes of the cgroup, and of those below it, to these devices, instead of those of an earlier call.
    /// For the controller `devices`, which on v2 is a program of the kernel that ends with the cgroup.
    ///
    /// # Errors
    /// [`DevicesError`](crate::devices::DevicesError); on v1 also if a cgroup above does not permit a rule.
    pub fn permit_devices(&self, rules: &devices::Rules) -> Result<(), devices::DevicesError> {
        rules.apply(&self.group)
    }

    /// Whether exactly these devices are permitted.
    ///
    /// # Errors
    /// [`DevicesError`](crate::devices::DevicesError).
    pub fn permits_devices(&self, rules: &devices::Rules) -> Result<bool, devices::DevicesError> {
        rules.are_applied(&self.group)
    }

    /// Removes the directory and those that the container created below it. It need not exist. On v2 nothing is done: the
    /// agent removes the directory.
    ///
    /// # Errors
    /// [`CgroupError::Refused`]; marked as retryable if the cgroup is in use.
    pub fn remove(&self) -> Result<()> {
        if self.version() == CgroupVersion::V2 {
            return Ok(());
        }
        // Without a timeout: the agent calls `cleanup` again.
        self.group.remove(Duration::ZERO).map_err(|error| {
            let busy = error.is_busy();
            let error = Error::from(error);
            if busy { error.retryable() } else { error }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::event::drain;

    /// A directory that looks like a v2 hierarchy with one container.
    fn unified(directory: &Path) -> Cgroup {
        let path = PathBuf::from("cofferdam/pod/web");
        fs::create_dir_all(directory.join(&path)).unwrap();
        for above in ["", "cofferdam", "cofferdam/pod"] {
            fs::write(directory.join(above).join("cgroup.subtree_control"), "cpu\n").unwrap();
        }
        let cgroups = model::Cgroups {
            v2: Some(directory.to_owned()),
            v2_controllers: vec!["memory".into(), "cpu".into()],
            path,
            ..model::Cgroups::default()
        };
        Cgroup::of(&cgroups, "memory").unwrap()
    }

    #[test]
    fn on_v2_a_controller_is_enabled_above_the_cgroup_and_not_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        cgroup.create().unwrap();
        let above: Vec<PathBuf> = cgroup.above().iter().map(|above| above.directory().to_owned()).collect();
        assert_eq!(above, ["", "cofferdam", "cofferdam/pod"].map(|above| directory.path().join(above)));
        for above in ["", "cofferdam", "cofferdam/pod"] {
            let knob = directory.path().join(above).join("cgroup.subtree_control");
            assert_eq!(fs::read_to_string(knob).unwrap(), "+memory", "in `{above}`");
        }
        assert!(!cgroup.has("cgroup.subtree_control"));
    }

    #[test]
    fn an_enabled_controller_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { controller: "cpu".into(), ..unified(directory.path()) };
        cgroup.create().unwrap();
        let knob = directory.path().join("cgroup.subtree_control");
        assert_eq!(fs::read_to_string(knob).unwrap(), "cpu\n");
    }

    #[test]
    fn a_sum_covers_cgroups_below_and_skips_missing_ones() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        for (below, value) in [("", 1), ("leaf", 2), ("leaf/own", 4)] {
            fs::create_dir_all(cgroup.directory().join(below)).unwrap();
            fs::write(cgroup.directory().join(below).join("pids.current"), value.to_string()).unwrap();
        }
        fs::create_dir(cgroup.directory().join("gone")).unwrap();
        assert_eq!(cgroup.sum(|cgroup| cgroup.read_as("pids.current")).unwrap(), 7);
        assert!(cgroup.sum(|cgroup| cgroup.read_as("cgroup.subtree_control")).unwrap() == 0);
    }

    #[test]
    fn on_a_hybrid_host_each_controller_is_found_where_it_is() {
        let cgroups = model::Cgroups {
            v1: [("memory".to_owned(), PathBuf::from("/cg/memory"))].into(),
            v2: Some("/cg/unified".into()),
            v2_controllers: vec!["hugetlb".into(), "io".into()],
            path: "c/1/web".into(),
        };
        let found = |controller| {
            let cgroup = Cgroup::find(&cgroups, controller)?;
            Some((cgroup.version(), cgroup.directory().to_owned()))
        };
        assert_eq!(found("memory"), Some((CgroupVersion::V1, "/cg/memory/c/1/web".into())));
        assert_eq!(found("hugetlb"), Some((CgroupVersion::V2, "/cg/unified/c/1/web".into())));
        assert_eq!(found("pids"), None);
        assert_eq!(Cgroup::find(&cgroups, "blkio").unwrap().controller(), "io");
        // Of every cgroup of v2, where it is not in v1.
        assert_eq!(found("devices"), Some((CgroupVersion::V2, "/cg/unified/c/1/web".into())));
        let error = Cgroup::of(&cgroups, "pids").unwrap_err();
        assert!(error.to_string().contains("no cgroup controller `pids`") && !error.is_missing(), "{error}");
    }

    #[test]
    fn errors_name_the_knob_and_the_value() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        let error = cgroup.write("memory.max", 42).unwrap_err();
        assert!(error.is_missing(), "{error:?}");
        let knob = cgroup.directory().join("memory.max");
        assert_eq!(error.to_string(), format!("cannot write `42` to `{}`", knob.display()));
        assert!(!knob.exists(), "a missing knob was created as a file");
    }

    #[test]
    fn a_change_of_a_file_of_a_v2_cgroup_is_reported_once() {
        let detected =
            linux::Cgroups::detect().ok().and_then(|cgroups| cgroups.unified("cofferdam-test-watch"));
        let Some(group) = detected.filter(|group| group.create().is_ok()) else {
            crate::testing::skip("no v2 cgroup can be created");
            return;
        };
        let removed = Removed(group.path().to_owned());
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { group, ..unified(directory.path()) };
        let watching = cgroup.watch("cgroup.events", "").unwrap();
        assert!(!event::drain(&watching).unwrap());
        cgroup.write("cgroup.freeze", 1).unwrap();
        crate::testing::wait_until_readable(std::os::fd::AsFd::as_fd(&watching));
        assert!(event::drain(&watching).unwrap());
        assert!(!event::drain(&watching).unwrap());
        drop(removed);
        assert!(event::drain(&watching).unwrap(), "its removal is a change");
    }

    struct Removed(PathBuf);

    impl Drop for Removed {
        fn drop(&mut self) {
            fs::remove_dir(&self.0).unwrap();
        }
    }

    #[test]
    fn a_change_of_a_v2_file_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        let knob = cgroup.directory().join("memory.events");
        fs::write(&knob, "oom 0\n").unwrap();
        let watching = cgroup.watch("memory.events", "").unwrap();
        let watching = std::os::fd::AsFd::as_fd(&watching);
        assert!(!drain(watching).unwrap());
        fs::write(&knob, "oom 1\n").unwrap();
        assert!(drain(watching).unwrap());
        assert!(!drain(watching).unwrap());
    }
}
