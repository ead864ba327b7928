//! Control groups as an isolator handles them: a directory of knobs, on either kind of hierarchy.
//!
//! Reading and writing is that of `cofferdam_linux`; here is what only an isolator needs of it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cofferdam_linux::cgroup as linux;
use cofferdam_plugin_model as model;
use rustix::fs::inotify;

use crate::{Error, Event, Result};

// `Version` alone is that of a plugin.
pub use cofferdam_linux::cgroup::Version as CgroupVersion;

/// The directory with a container's knobs of one controller.
///
/// ```no_run
/// # use cofferdam_plugin_api::prelude::*;
/// # fn prepare(container: &Container) -> Result<()> {
/// let pids = Cgroup::of(&container.cgroups, "pids")?;
/// pids.create()?;
/// pids.write("pids.max", 100)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Cgroup {
    controller: String,
    mount: PathBuf,
    group: linux::Cgroup,
}

/// Why something could not be done with a control group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The host has no such controller.
    #[error(
        "this host offers no cgroup controller `{controller}`, or the agent manages no control groups \
         (the `linux` launcher does)"
    )]
    NoController {
        /// Its name.
        controller: String,
    },
    /// The directory, or a knob in it, could not be made, read, written or removed.
    #[error(transparent)]
    Refused(#[from] linux::CgroupError),
    /// A controller could not be handed down on the v2 hierarchy.
    #[error(
        "cannot enable the controller `{controller}` below `{}`; no process may live in that control group \
         itself, and the agent must be allowed to write there",
        path.display()
    )]
    Enable {
        /// Its name.
        controller: String,
        /// The control group above.
        path: PathBuf,
        /// Why.
        source: linux::CgroupError,
    },
    /// A knob could not be watched.
    #[error("cannot watch `{}`", path.display())]
    Watch {
        /// The knob.
        path: PathBuf,
        /// Why.
        source: linux::CgroupError,
    },
}

impl CgroupError {
    /// Whether the control group, or the knob, is not there (any more).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.refusal().is_some_and(linux::CgroupError::is_missing)
    }

    /// Whether the kernel refused because something is still in use.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.refusal().is_some_and(linux::CgroupError::is_busy)
    }

    fn refusal(&self) -> Option<&linux::CgroupError> {
        match self {
            Self::NoController { .. } => None,
            Self::Refused(source) | Self::Enable { source, .. } | Self::Watch { source, .. } => Some(source),
        }
    }
}

impl Cgroup {
    /// The knobs of `controller`, which the host must have.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] when it has not.
    pub fn of(cgroups: &model::Cgroups, controller: &str) -> Result<Self, CgroupError> {
        Self::find(cgroups, controller)
            .ok_or_else(|| CgroupError::NoController { controller: controller.to_owned() })
    }

    /// The knobs of `controller`, if the host has it.
    #[must_use]
    pub fn find(cgroups: &model::Cgroups, controller: &str) -> Option<Self> {
        let on_v2 = || cgroups.v2_controllers.iter().any(|offered| offered == controller);
        let (mount, version) = match (cgroups.v1.get(controller), &cgroups.v2) {
            (Some(mount), _) => (mount, CgroupVersion::V1),
            (None, Some(mount)) if on_v2() => (mount, CgroupVersion::V2),
            _ => return None,
        };
        let group = linux::Cgroup::at(mount.join(&cgroups.path), version);
        Some(Self { controller: controller.to_owned(), mount: mount.clone(), group })
    }

    /// Which kind of hierarchy it is on.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        self.group.version()
    }

    /// The directory that holds the knobs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.group.path()
    }

    /// Whether the knob is there.
    #[must_use]
    pub fn has(&self, knob: &str) -> bool {
        self.group.has(knob)
    }

    /// Sees to it that the knobs are there.
    ///
    /// On v1 the directory is made, with those above it. On v2 it is the agent's to make; here the
    /// controller is enabled in every control group above it, which is what makes its knobs appear.
    ///
    /// # Errors
    /// [`CgroupError::Refused`], or on v2 [`CgroupError::Enable`].
    pub fn create(&self) -> Result<(), CgroupError> {
        match self.version() {
            CgroupVersion::V1 => Ok(self.group.create()?),
            CgroupVersion::V2 => {
                let above = self.directory().ancestors().skip(1);
                let above: Vec<_> = above.take_while(|path| path.starts_with(&self.mount)).collect();
                // From the mount point down: none can hand on what it was not given.
                above.into_iter().rev().try_for_each(|path| self.enable(path))
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

    /// Writes a knob.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn write(&self, knob: &str, value: impl Display) -> Result<(), CgroupError> {
        Ok(self.group.write(knob, value)?)
    }

    /// Reads a knob, without the final line break.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn read(&self, knob: &str) -> Result<String, CgroupError> {
        Ok(self.group.read(knob)?)
    }

    /// Reads a knob that holds one value, such as a number.
    ///
    /// # Errors
    /// [`CgroupError::Refused`], also when it holds something else.
    pub fn read_as<T: FromStr>(&self, knob: &str) -> Result<T, CgroupError> {
        Ok(self.group.read_as(knob)?)
    }

    /// Reads a knob that holds lines of a name and a number, such as `memory.stat`. Lines of another form
    /// are left out.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn read_table(&self, knob: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        Ok(self.group.read_table(knob)?)
    }

    /// The control groups directly below: what containers made for themselves, and those of nested
    /// containers; on v2 also where its processes live.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn children(&self) -> Result<Vec<Self>, CgroupError> {
        let below = self.group.children()?.into_iter();
        Ok(below.map(|group| Self { group, ..self.clone() }).collect())
    }

    /// A descriptor that becomes readable when a file of the cgroup changes: an eventfd registered in
    /// `cgroup.event_control` on v1 (`arguments` are those that the file expects there, often none), an inotify
    /// instance on v2. Both also become readable when the cgroup is removed. Read it empty with
    /// [`event::drain`](crate::event::drain).
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
        let watching = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| self.unreadable(knob, errno.into()))?;
        inotify::add_watch(&watching, self.directory().join(knob), inotify::WatchFlags::MODIFY)
            .map_err(|errno| self.unreadable(knob, errno.into()))?;
        Ok(watching)
    }

    fn unreadable(&self, knob: &str, source: io::Error) -> linux::CgroupError {
        linux::CgroupError::Read { path: self.directory().join(knob), source }
    }

    /// Removes the directory and what a container made below it. Missing is success; on v2 nothing
    /// happens, because the directory is the agent's.
    ///
    /// # Errors
    /// [`CgroupError::Refused`]; one that may pass is marked as retryable.
    pub fn remove(&self) -> Result<()> {
        if self.version() == CgroupVersion::V2 {
            return Ok(());
        }
        // Without waiting: whoever calls tries again.
        self.group.remove(Duration::ZERO).map_err(|error| {
            let may_pass = error.is_busy();
            let error = Error::from(error);
            if may_pass { error.retryable() } else { error }
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
    fn on_v2_a_controller_is_handed_down_to_the_container_and_not_into_it() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        cgroup.create().unwrap();
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
    fn children_know_where_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        fs::create_dir(cgroup.directory().join("leaf")).unwrap();
        fs::write(cgroup.directory().join("memory.stat"), "").unwrap();
        let children = cgroup.children().unwrap();
        let directories: Vec<_> = children.iter().map(Cgroup::directory).collect();
        assert_eq!(directories, [cgroup.directory().join("leaf")]);
    }

    #[test]
    fn on_a_hybrid_host_each_controller_is_found_where_it_is() {
        let cgroups = model::Cgroups {
            v1: [("memory".to_owned(), PathBuf::from("/cg/memory"))].into(),
            v2: Some("/cg/unified".into()),
            v2_controllers: vec!["hugetlb".into()],
            path: "c/1/web".into(),
        };
        let found = |controller| {
            let cgroup = Cgroup::find(&cgroups, controller)?;
            Some((cgroup.version(), cgroup.directory().to_owned()))
        };
        assert_eq!(found("memory"), Some((CgroupVersion::V1, "/cg/memory/c/1/web".into())));
        assert_eq!(found("hugetlb"), Some((CgroupVersion::V2, "/cg/unified/c/1/web".into())));
        assert_eq!(found("pids"), None);
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
