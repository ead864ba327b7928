//! Control groups: the mounted hierarchies ([`Cgroups`]), and a cgroup as a directory of interface files ([`Cgroup`]).
//!
//! A [`Cgroup`] is a path, so tests can use a temporary directory as a cgroup where no kernel is needed.

mod kill;
mod layout;
mod subtree;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::generated;

pub use kill::KillError;
pub use layout::{Cgroups, Hierarchy, Layout};

use crate::tree;

/// Version of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// In one of several hierarchies, each with its controllers.
    V1,
    /// In the unified hierarchy.
    V2,
}

/// How many cgroups below one are walked through. Processes in it may create them as fast as that.
const MAX_CGROUPS: u64 = 1 << 20;

/// A control group: a directory of interface files. It need not exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    version: Version,
    /// For one that was found in a [walk](Cgroup::walk), whose path may be too long to be used.
    directory: Option<Arc<OwnedFd>>,
}

impl Cgroup {
    /// The cgroup at `path`.
    pub fn at(path: impl Into<PathBuf>, version: Version) -> Self {
        Self { path: path.into(), version, directory: None }
    }

    /// Path of its directory. Of one that was found in a [walk](Cgroup::walk), for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The cgroup `name` below it.
    #[must_use]
    pub fn child(&self, name: impl AsRef<Path>) -> Self {
        Self::at(self.path.join(name), self.version)
    }

    /// Whether the directory exists.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Whether it has the interface file `knob`.
    pub fn has(&self, knob: &str) -> bool {
        match &self.directory {
            Some(directory) => {
                rustix::fs::accessat(directory, knob, Access::EXISTS, AtFlags::empty()).is_ok()
            }
            None => self.path.join(knob).exists(),
        }
    }

    /// Creates the directory and its missing parents. It may exist.
    pub fn create(&self) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.path).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN) => CgroupError::Full { path: self.path.clone(), source },
            _ => CgroupError::Create { path: self.path.clone(), source },
        })
    }

    /// Content of an interface file, without trailing white space.
    pub fn read(&self, knob: &str) -> Result<String, CgroupError> {
        let read = self.file(knob, OFlags::RDONLY).and_then(generated::read_file).and_then(into_text);
        let mut text = read.map_err(|source| self.unreadable(knob, source))?;
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    /// As [`Cgroup::read`], for a file that is no list of processes.
    fn read_whole(&self, knob: &str) -> Result<String, CgroupError> {
        let read = self.file(knob, OFlags::RDONLY).and_then(generated::read_whole_file).and_then(into_text);
        let mut text = read.map_err(|source| self.unreadable(knob, source))?;
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    /// Content of an interface file with one value, such as a number.
    pub fn read_as<T: FromStr>(&self, knob: &str) -> Result<T, CgroupError> {
        let text = self.read_whole(knob)?;
        text.parse().map_err(|_| CgroupError::Parse { path: self.path.join(knob), text })
    }

    /// Content of an interface file with lines of a name and a number, such as `memory.stat`. Other lines are skipped.
    pub fn read_table(&self, knob: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        let entry = |line: &str| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.parse().ok()?))
        };
        Ok(self.read(knob)?.lines().filter_map(entry).collect())
    }

    /// The numbers after some of the names in such a file; `None` where there is no such line.
    pub fn read_numbers<const N: usize>(
        &self,
        knob: &str,
        names: [&str; N],
    ) -> Result<[Option<u64>; N], CgroupError> {
        let text = self.read_whole(knob)?;
        let mut numbers = [None; N];
        for (name, number) in text.lines().filter_map(|line| line.split_once(' ')) {
            for (_, slot) in names.iter().zip(&mut numbers).filter(|(wanted, _)| **wanted == name) {
                *slot = number.parse().ok();
            }
        }
        Ok(numbers)
    }

    /// Writes an interface file with a single write(2), as the kernel requires.
    pub fn write(&self, knob: &str, value: impl fmt::Display) -> Result<(), CgroupError> {
        let value = value.to_string();
        // Not created if missing: then the controller is missing.
        let written = self
            .file(knob, OFlags::WRONLY)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| CgroupError::Write { path: self.path.join(knob), value, source })
    }

    fn file(&self, knob: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC;
        let opened = match &self.directory {
            Some(directory) => rustix::fs::openat(directory, knob, flags, Mode::empty()),
            None => rustix::fs::open(self.path.join(knob), flags, Mode::empty()),
        };
        Ok(opened?.into())
    }

    fn unreadable(&self, knob: &str, source: io::Error) -> CgroupError {
        CgroupError::Read { path: self.path.join(knob), source }
    }

    /// Pids of its processes in the caller's pid namespace, without those of cgroups below it. Those of a threaded cgroup of
    /// v2 are among those of the next cgroup above it that is not threaded.
    pub fn procs(&self) -> Result<Vec<i32>, CgroupError> {
        let text = match self.read("cgroup.procs") {
            Err(CgroupError::Read { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Ok(Vec::new());
            }
            text => text?,
        };
        text.lines()
            .map(|line| {
                line.parse().map_err(|_| CgroupError::Parse {
                    path: self.path.join("cgroup.procs"),
                    text: line.into(),
                })
            })
            .collect()
    }

    /// Pids of the processes in it and in all cgroups below it. A cgroup that is removed meanwhile has none.
    pub fn all_procs(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        self.walk(MAX_CGROUPS, |cgroup| {
            pids.extend(cgroup.procs()?);
            Ok(())
        })?;
        Ok(pids)
    }

    /// Moves process `pid` here with all its threads.
    ///
    /// For this the kernel takes a lock that costs an RCU grace period, 6–20 ms on an idle machine. A new process is
    /// better created in the cgroup ([`crate::spawn`]).
    pub fn adopt(&self, pid: i32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", pid)
    }

    /// The cgroups directly below it, sorted by name.
    pub fn children(&self) -> Result<Vec<Self>, CgroupError> {
        let failed = |source| CgroupError::Read { path: self.path.clone(), source };
        let mut children = Vec::new();
        // Its own entry and `.`, but no `..` of a directory below: listing all interface files costs more.
        if fs::metadata(&self.path).map_err(failed)?.nlink() == 2 {
            return Ok(children);
        }
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                children.push(self.child(entry.file_name()));
            }
        }
        children.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(children)
    }

    /// Removes the cgroup and all cgroups below it. It need not exist.
    ///
    /// After the last process has ended, the directory can stay busy for a short time; removal is retried until
    /// `timeout`.
    pub fn remove(&self, timeout: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_micros(100);
        loop {
            // Most cgroups have no children, and listing the directory costs more than this.
            let source = match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => error,
            };
            let mut is_busy = source.kind() == io::ErrorKind::ResourceBusy;
            let mut source = source;
            if fs::metadata(&self.path).is_ok_and(|found| found.nlink() > 2) {
                match tree::remove_cgroups(&self.path) {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        is_busy = error.is_busy();
                        source = io::Error::other(error);
                    }
                }
            }
            if !is_busy || Instant::now() + pause >= deadline {
                // Of itself only, if there are too many below it.
                let pids = self.all_procs().or_else(|_| self.procs()).unwrap_or_default();
                return Err(CgroupError::Remove { path: self.path.clone(), pids, source });
            }
            // The kernel has no notification for this.
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// v2: enables `controllers` for the cgroups directly below it. The cgroup must not contain processes.
    pub fn enable<S: AsRef<str>>(&self, controllers: &[S]) -> Result<(), CgroupError> {
        if controllers.is_empty() {
            return Ok(());
        }
        let enabled = self.read("cgroup.subtree_control")?;
        let missing: Vec<String> = controllers
            .iter()
            .map(AsRef::as_ref)
            .filter(|name| !enabled.split(' ').any(|enabled| enabled == *name))
            .map(|name| format!("+{name}"))
            .collect();
        if missing.is_empty() { Ok(()) } else { self.write("cgroup.subtree_control", missing.join(" ")) }
    }

    /// Makes a user the owner of its directory, who can create cgroups below it. The interface files keep their owner.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        lchown(&self.path, Some(uid), Some(gid))
            .map_err(|source| CgroupError::Create { path: self.path.clone(), source })
    }

    /// v2: makes a user the owner of the files by which processes and threads are moved between it and cgroups below it. No
    /// other interface file changes its owner.
    pub fn set_owner_of_processes(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        ["cgroup.procs", "cgroup.threads"].into_iter().try_for_each(|knob| {
            let path = self.path.join(knob);
            lchown(&path, Some(uid), Some(gid)).map_err(|source| CgroupError::Create { path, source })
        })
    }

    /// Opens its directory, for [`crate::spawn::Spawn::cgroup`]. Fails if another user has created it.
    pub fn directory(&self) -> Result<OwnedFd, CgroupError> {
        let failed =
            |errno: rustix::io::Errno| CgroupError::Read { path: self.path.clone(), source: errno.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(failed)?;
        // Its own owner may have been changed, that of a file which is never delegated is who created it.
        let file = rustix::fs::statat(&directory, "cgroup.controllers", AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)?;
        self.check_creator(file.st_uid)?;
        Ok(directory)
    }

    /// v1: opens its `tasks` file, for [`crate::spawn::Spawn::tasks`]. Fails if another user has created it.
    pub fn tasks(&self) -> Result<OwnedFd, CgroupError> {
        let path = self.path.join("tasks");
        let opened =
            OpenOptions::new().write(true).open(&path).and_then(|file| Ok((file.metadata()?.uid(), file)));
        let (uid, file) = opened.map_err(|source| CgroupError::Write { path, value: "0".into(), source })?;
        self.check_creator(uid)?;
        Ok(file.into())
    }

    /// Who creates a cgroup can change its limits. A user who owns the one above can create this one before the agent does.
    fn check_creator(&self, uid: u32) -> Result<(), CgroupError> {
        match rustix::process::geteuid().as_raw() {
            own if own == uid => Ok(()),
            _ => Err(CgroupError::Foreign { path: self.path.clone(), uid }),
        }
    }

    /// v2: opens `cgroup.events`, which reports whether there are processes in the cgroup or below.
    pub fn events(&self) -> Result<Events, CgroupError> {
        const KNOB: &str = "cgroup.events";
        Ok(Events { path: self.path.join(KNOB), file: self.open(KNOB)? })
    }

    /// Opens an interface file for reading.
    pub fn open(&self, knob: &str) -> Result<File, CgroupError> {
        self.file(knob, OFlags::RDONLY).map_err(|source| self.unreadable(knob, source))
    }
}

fn into_text(content: Vec<u8>) -> io::Result<String> {
    String::from_utf8(content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The kernel delays a notification that follows another one of the same file by less than this
/// (`CGROUP_FILE_NOTIFY_MIN_INTV`, rounded up to a tick). Within this time, the file is read again instead.
const NOTIFICATION_INTERVAL: Duration = Duration::from_millis(10);

/// The open `cgroup.events` of a v2 cgroup: its descriptor polls `POLLPRI` after a change since the last call of
/// [`Events::populated`].
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Whether there is a process in the cgroup or below it.
    pub fn populated(&mut self) -> Result<bool, CgroupError> {
        let mut text = String::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_string(&mut text));
        match read {
            Ok(_) => Ok(!text.lines().any(|line| line == "populated 0")),
            // The cgroup was removed, so it had no processes.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(source) => Err(CgroupError::Read { path: self.path.clone(), source }),
        }
    }

    /// Waits until there is no process, at most until `deadline`. Returns whether there is none.
    pub fn wait_empty(&mut self, deadline: Instant) -> Result<bool, CgroupError> {
        let mut pause = Duration::from_micros(50);
        while self.populated()? {
            let mut left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if pause < NOTIFICATION_INTERVAL {
                left = left.min(pause);
                pause *= 2;
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.file, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(CgroupError::Read { path: self.path.clone(), source: errno.into() });
                }
            }
        }
        Ok(true)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why an operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The cgroup cannot be created.
    #[error("cannot create the control group `{}`", path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The kernel permits no more cgroups there.
    #[error(
        "cannot create the control group `{}`: one above it has as many below it, or as deep, as its \
         `cgroup.max.descendants` and `cgroup.max.depth` permit; remove some, or raise these limits",
        path.display()
    )]
    Full {
        /// Its directory.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A process creates cgroups below it faster than they can be walked through, or has created very many.
    #[error("more than {limit} control groups are below `{}`, which its processes have created", path.display())]
    TooMany {
        /// Its directory.
        path: PathBuf,
        /// The maximum.
        limit: u64,
    },
    /// An interface file, or the directory, cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A value cannot be written to an interface file.
    #[error("cannot write `{value}` to `{}`", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The value.
        value: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// Another user has created the cgroup, and could change its limits.
    #[error("the control group `{}` was created by user {uid}, who could change its limits; remove it", path.display())]
    Foreign {
        /// Its directory.
        path: PathBuf,
        /// The user.
        uid: u32,
    },
    /// An interface file has unexpected content.
    #[error("`{}` has the unexpected content `{text}`", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// The cgroup cannot be removed.
    #[error("cannot remove the control group `{}` (processes in it: {pids:?})", path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Processes that are still in it.
        pids: Vec<i32>,
        /// The error of the kernel.
        source: io::Error,
    },
}

impl CgroupError {
    /// Whether the reason is that the cgroup or the file does not exist (any more).
    pub fn is_missing(&self) -> bool {
        self.kernel_error().is_some_and(|error| {
            // Reading an open file of a removed cgroup fails with ENODEV.
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
        })
    }

    /// Whether the reason is that the cgroup is still in use.
    pub fn is_busy(&self) -> bool {
        self.kernel_error().is_some_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }

    /// Whether the reason is that the kernel refused a value as invalid.
    pub fn is_invalid(&self) -> bool {
        self.kernel_error().is_some_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    }

    fn kernel_error(&self) -> Option<&io::Error> {
        match self {
            Self::Parse { .. } | Self::Foreign { .. } | Self::TooMany { .. } => None,
            Self::Create { source, .. }
            | Self::Full { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Remove { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{Cgroup, CgroupError, Version};

    fn knobs(directory: &Path, knobs: &[(&str, &str)]) -> Cgroup {
        for (name, content) in knobs {
            fs::write(directory.join(name), content).unwrap();
        }
        Cgroup::at(directory, Version::V2)
    }

    #[test]
    fn interface_files_are_read_and_written() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = knobs(
            directory.path(),
            &[
                ("pids.max", "max\n"),
                ("pids.current", "12\n"),
                ("memory.stat", "anon 5\nfile 70\nodd\nhalf 1.5\n"),
            ],
        );
        assert_eq!(cgroup.read("pids.max").unwrap(), "max");
        assert_eq!(cgroup.read_as::<u64>("pids.current").unwrap(), 12);
        let table = [("anon".to_owned(), 5), ("file".to_owned(), 70)];
        assert_eq!(cgroup.read_table("memory.stat").unwrap(), table.into());
        cgroup.write("pids.max", 32).unwrap();
        assert!(cgroup.read("pids.max").unwrap().starts_with("32"));
    }

    #[test]
    fn errors_name_path_and_value() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = knobs(directory.path(), &[("pids.max", "max\n")]);
        let path = directory.path().display();

        let error = cgroup.write("cpu.max", "1 2").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write `1 2` to `{path}/cpu.max`"));
        assert!(!cgroup.has("cpu.max"), "a missing interface file was created");
        assert!(error.is_missing());
        let error = cgroup.read_as::<u64>("pids.max").unwrap_err();
        assert_eq!(error.to_string(), format!("`{path}/pids.max` has the unexpected content `max`"));
        assert!(!error.is_missing());
        assert!(matches!(cgroup.read("cpu.max"), Err(CgroupError::Read { .. })));
    }

    #[test]
    fn controllers_are_enabled_once() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = knobs(directory.path(), &[("cgroup.subtree_control", "cpu io\n")]);
        cgroup.enable(&["cpu"]).unwrap();
        assert_eq!(cgroup.read("cgroup.subtree_control").unwrap(), "cpu io");
        cgroup.enable(&["cpu", "memory", "pids"]).unwrap();
        assert!(cgroup.read("cgroup.subtree_control").unwrap().starts_with("+memory +pids"));
    }

    #[test]
    fn a_walk_visits_parents_before_children_and_ends_at_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let top = knobs(directory.path(), &[("number", "1\n")]);
        for (below, number) in [("a", 2), ("a/b", 3), ("c", 4)] {
            top.child(below).create().unwrap();
            fs::write(directory.path().join(below).join("number"), number.to_string()).unwrap();
        }
        let walk = |limit| {
            let mut visited = Vec::new();
            let ended = top.walk(limit, |cgroup| {
                visited.push((cgroup.path().to_owned(), cgroup.read_as::<u32>("number")?));
                Ok(())
            });
            (ended, visited)
        };
        let (ended, visited) = walk(4);
        ended.unwrap();
        let found = |below: &str| visited.iter().position(|(path, _)| *path == directory.path().join(below));
        assert_eq!(found(""), Some(0));
        assert!(found("a").unwrap() < found("a/b").unwrap(), "{visited:?}");
        let mut numbers: Vec<u32> = visited.iter().map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4]);

        let (ended, visited) = walk(3);
        assert!(matches!(ended, Err(CgroupError::TooMany { limit: 3, .. })), "{ended:?}");
        assert_eq!(visited.len(), 3);
        assert_eq!(top.child("gone").all_procs().unwrap(), [0; 0]);
    }
}
