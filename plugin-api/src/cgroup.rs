//! Control groups as an isolator handles them: a directory of knobs, on either kind of hierarchy.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cofferdam_plugin_model as model;
use model::CgroupVersion;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;

use crate::{Error, Result};

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
    version: CgroupVersion,
    mount: PathBuf,
    path: PathBuf,
    directory: PathBuf,
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
    /// The directory could not be made.
    #[error("cannot make the control group `{}`", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
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
        source: io::Error,
    },
    /// A knob could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The knob.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A knob could not be written.
    #[error("cannot write `{value}` to `{}`", path.display())]
    Write {
        /// The knob.
        path: PathBuf,
        /// What should have been written.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A knob holds something unexpected.
    #[error("`{}` holds `{text}`, which is not what it should hold", path.display())]
    Parse {
        /// The knob.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// A knob could not be watched.
    #[error("cannot watch `{}`", path.display())]
    Watch {
        /// The knob.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory could not be removed.
    #[error("cannot remove the control group `{}`", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CgroupError {
    /// Whether the control group, or the knob, is not there (any more).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        // A knob that was opened before its control group went answers ENODEV.
        const ENODEV: i32 = 19;
        self.source_io()
            .is_some_and(|error| error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV))
    }

    /// Whether the kernel refused because something is still in use.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.source_io().is_some_and(|error| error.kind() == ErrorKind::ResourceBusy)
    }

    fn source_io(&self) -> Option<&io::Error> {
        match self {
            Self::NoController { .. } | Self::Parse { .. } => None,
            Self::Create { source, .. }
            | Self::Enable { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Watch { source, .. }
            | Self::Remove { source, .. } => Some(source),
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
        let (version, directory) = cgroups.controller(controller)?;
        let mount = match version {
            CgroupVersion::V1 => cgroups.v1.get(controller)?,
            CgroupVersion::V2 => cgroups.v2.as_ref()?,
        };
        Some(Self {
            controller: controller.to_owned(),
            version,
            mount: mount.clone(),
            path: cgroups.path.clone(),
            directory,
        })
    }

    /// Which kind of hierarchy it is on.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// The directory that holds the knobs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the knob is there.
    #[must_use]
    pub fn has(&self, knob: &str) -> bool {
        self.directory.join(knob).exists()
    }

    /// Sees to it that the knobs are there.
    ///
    /// On v1 the directory is made, with those above it. On v2 it is the agent's to make; here the
    /// controller is enabled in every control group above it, which is what makes its knobs appear.
    ///
    /// # Errors
    /// [`CgroupError::Create`], or on v2 [`CgroupError::Enable`] and [`CgroupError::Read`].
    pub fn create(&self) -> Result<(), CgroupError> {
        match self.version {
            CgroupVersion::V1 => fs::create_dir_all(&self.directory)
                .map_err(|source| CgroupError::Create { path: self.directory.clone(), source }),
            CgroupVersion::V2 => self.ancestors().try_for_each(|above| self.enable(&above)),
        }
    }

    /// The control groups above, from the mount point down.
    fn ancestors(&self) -> impl Iterator<Item = PathBuf> {
        let levels: Vec<&OsStr> = self.path.iter().collect();
        let mount = self.mount.clone();
        (0..levels.len()).map(move |depth| mount.join(levels[..depth].iter().collect::<PathBuf>()))
    }

    fn enable(&self, above: &Path) -> Result<(), CgroupError> {
        let knob = above.join("cgroup.subtree_control");
        // Most often some container before this one did it; a read is cheaper and needs no permission.
        if read(&knob)?.split_ascii_whitespace().any(|enabled| enabled == self.controller) {
            return Ok(());
        }
        poke(&knob, &format!("+{}", self.controller)).map_err(|source| CgroupError::Enable {
            controller: self.controller.clone(),
            path: above.to_owned(),
            source,
        })
    }

    /// Writes a knob.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn write(&self, knob: &str, value: impl Display) -> Result<(), CgroupError> {
        let (path, value) = (self.directory.join(knob), value.to_string());
        poke(&path, &value).map_err(|source| CgroupError::Write { path, value, source })
    }

    /// Reads a knob, without the final line break.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn read(&self, knob: &str) -> Result<String, CgroupError> {
        read(&self.directory.join(knob))
    }

    /// Reads a knob that holds one value, such as a number.
    ///
    /// # Errors
    /// [`CgroupError::Read`] and [`CgroupError::Parse`].
    pub fn read_as<T: FromStr>(&self, knob: &str) -> Result<T, CgroupError> {
        let text = self.read(knob)?;
        text.parse().map_err(|_| CgroupError::Parse { path: self.directory.join(knob), text })
    }

    /// Reads a knob that holds lines of a name and a number, such as `memory.stat`. Lines of another form
    /// are left out.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn read_table(&self, knob: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        let text = self.read(knob)?;
        let line = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    /// The control groups directly below: what containers made for themselves, and those of nested
    /// containers; on v2 also where its processes live.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn children(&self) -> Result<Vec<Self>, CgroupError> {
        let failed = |source| CgroupError::Read { path: self.directory.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                let name = entry.file_name();
                let (path, directory) = (self.path.join(&name), self.directory.join(&name));
                found.push(Self { path, directory, ..self.clone() });
            }
        }
        Ok(found)
    }

    /// A descriptor that becomes readable when the kernel has news of a knob: an eventfd registered in
    /// `cgroup.event_control` on v1 (`arguments` are those that the knob wants there, often none), an
    /// inotify instance on v2. Both also become readable when the control group is removed. Read it empty
    /// with [`news`].
    ///
    /// # Errors
    /// [`CgroupError::Watch`].
    pub fn watch(&self, knob: &str, arguments: &str) -> Result<OwnedFd, CgroupError> {
        let path = self.directory.join(knob);
        let watching = match self.version {
            CgroupVersion::V1 => self.watch_v1(&path, arguments),
            CgroupVersion::V2 => watch_v2(&path),
        };
        watching.map_err(|source| CgroupError::Watch { path, source })
    }

    fn watch_v1(&self, knob: &Path, arguments: &str) -> io::Result<OwnedFd> {
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let knob = File::open(knob)?;
        let registration = format!("{} {} {arguments}", events.as_raw_fd(), knob.as_raw_fd());
        poke(&self.directory.join("cgroup.event_control"), registration.trim_end())?;
        Ok(events)
    }

    /// Removes the directory and what a container made below it. Missing is success; on v2 nothing
    /// happens, because the directory is the agent's.
    ///
    /// # Errors
    /// [`CgroupError::Remove`]; one that may pass is marked as retryable.
    pub fn remove(&self) -> Result<()> {
        if self.version == CgroupVersion::V2 {
            return Ok(());
        }
        remove_tree(&self.directory).map_err(|error| {
            let may_pass = error.is_busy();
            let error = Error::from(error);
            if may_pass { error.retryable() } else { error }
        })
    }
}

/// Reads a descriptor of [`Cgroup::watch`] empty; whether there was anything.
///
/// # Errors
/// Those of reading.
pub fn news(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    let mut events = File::from(descriptor.try_clone_to_owned()?);
    let (mut buffer, mut heard) = ([0; 4096], false);
    loop {
        match events.read(&mut buffer) {
            Ok(0) => return Ok(heard),
            Ok(_) => heard = true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(heard),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn watch_v2(knob: &Path) -> io::Result<OwnedFd> {
    let watching = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watching, knob, inotify::WatchFlags::MODIFY)?;
    Ok(watching)
}

fn read(path: &Path) -> Result<String, CgroupError> {
    match fs::read_to_string(path) {
        Ok(mut text) => {
            text.truncate(text.trim_end().len());
            Ok(text)
        }
        Err(source) => Err(CgroupError::Read { path: path.to_owned(), source }),
    }
}

/// One write(2): knobs take a value whole or not at all. Never creates a file.
fn poke(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Remove { path: directory.to_owned(), source };
    match fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        // The kernel says so both of processes and of control groups below.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
        Err(error) => return Err(failed(error)),
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a v2 hierarchy with one container.
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
    fn a_table_is_read_and_lines_of_another_form_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        fs::write(cgroup.directory().join("memory.stat"), "anon 12\nfile 3\nodd\nhalf 1.5\n").unwrap();
        let table = cgroup.read_table("memory.stat").unwrap();
        assert_eq!(table, [("anon".to_owned(), 12), ("file".to_owned(), 3)].into());
    }

    #[test]
    fn news_of_a_v2_knob_arrive_and_are_read_empty() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = unified(directory.path());
        let knob = cgroup.directory().join("memory.events");
        fs::write(&knob, "oom 0\n").unwrap();
        let watching = cgroup.watch("memory.events", "").unwrap();
        let watching = std::os::fd::AsFd::as_fd(&watching);
        assert!(!news(watching).unwrap());
        fs::write(&knob, "oom 1\n").unwrap();
        assert!(news(watching).unwrap());
        assert!(!news(watching).unwrap());
    }
}
