//! Access to the sandbox through its descriptor, so that symbolic links cannot lead out of it.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fchmod, fstat, futimens, linkat,
    mkdirat, open, openat, openat2, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::sandbox_path::SandboxPath;

/// Path resolution within the sandbox and without symbolic links.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A container's sandbox.
pub(super) struct Sandbox {
    root: OwnedFd,
    /// At these paths nothing is created or replaced.
    reserved: Vec<PathBuf>,
    drafts: u64,
    max_entries: u64,
    /// What has been created: files, links and directories.
    entries: Cell<u64>,
}

/// A file with a temporary name until it is complete. Removed when dropped before that.
pub(super) struct Draft {
    pub(super) file: File,
    directory: OwnedFd,
    temporary: OsString,
    name: SandboxPath,
    placed: bool,
}

/// What failed in a sandbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("cannot open the sandbox `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot create the directory `{}` in the sandbox", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot create `{}` in the sandbox", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot create a hard link to `{}`, which is not a regular file", path.display())]
    NotRegular { path: PathBuf },
    #[error("`{}` is reserved for the output of the container; use another name", path.display())]
    Reserved { path: PathBuf },
    #[error(
        "the container's files and directories are more than {limit}; `max_files` of `[fetch]` is the limit"
    )]
    TooMany { limit: u64 },
}

impl Sandbox {
    /// In which at most `max_entries` files, links and directories are created.
    pub(super) fn open(path: &Path, reserved: Vec<PathBuf>, max_entries: u64) -> Result<Self, SandboxError> {
        let root = open(path, DIRECTORY, Mode::empty())
            .map_err(|errno| SandboxError::Open { path: path.to_owned(), source: errno.into() })?;
        Ok(Self { root, reserved, drafts: 0, max_entries, entries: Cell::new(0) })
    }

    /// Counts what is about to be created.
    fn count(&self) -> Result<(), SandboxError> {
        let entries = self.entries.get() + 1;
        self.entries.set(entries);
        if entries > self.max_entries {
            Err(SandboxError::TooMany { limit: self.max_entries })
        } else {
            Ok(())
        }
    }

    /// Checks that a file may be created at a path: that it is not reserved, nor in or above what is.
    pub(super) fn check(&self, name: &SandboxPath) -> Result<(), SandboxError> {
        let path = name.as_path();
        let overlaps = |reserved: &PathBuf| path.starts_with(reserved) || reserved.starts_with(path);
        match self.reserved.iter().any(overlaps) {
            true => Err(SandboxError::Reserved { path: path.to_owned() }),
            false => Ok(()),
        }
    }

    /// Starts to write the file `name`. Creates its directory if it is missing.
    pub(super) fn draft(&mut self, name: &SandboxPath) -> Result<Draft, SandboxError> {
        self.check(name)?;
        self.count()?;
        let directory = self.directory(name.directory())?;
        let (file, temporary) =
            self.create(&directory).map_err(|errno| create_error(name.as_path(), errno))?;
        Ok(Draft { file, directory, temporary, name: name.clone(), placed: false })
    }

    /// Creates a temporary file and unlinks it, so that the kernel removes it when it is closed. `name` is for errors.
    pub(super) fn temporary_file(&mut self, name: &SandboxPath) -> Result<File, SandboxError> {
        let failed = |errno| create_error(name.as_path(), errno);
        let directory = self.directory(Path::new(""))?;
        let (file, temporary) = self.create(&directory).map_err(failed)?;
        unlinkat(&directory, &temporary, AtFlags::empty()).map_err(failed)?;
        Ok(file)
    }

    /// Opens a directory. Creates it and its parents if they are missing.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, SandboxError> {
        let failed = |errno: Errno| SandboxError::Directory { path: path.to_owned(), source: errno.into() };
        if self.reserved.iter().any(|reserved| path.starts_with(reserved)) {
            return Err(SandboxError::Reserved { path: path.to_owned() });
        }
        let relative = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match openat2(&self.root, relative, DIRECTORY, Mode::empty(), RESOLVE) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(failed),
        }
        let mut directory = self
            .root
            .try_clone()
            .map_err(|error| SandboxError::Directory { path: path.to_owned(), source: error })?;
        for part in path {
            self.count()?;
            match mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            directory = openat2(&directory, part, DIRECTORY, Mode::empty(), RESOLVE).map_err(failed)?;
        }
        Ok(directory)
    }

    /// Sets the permissions and modification time of a directory.
    pub(super) fn finish_directory(
        &self,
        name: &SandboxPath,
        mode: u32,
        seconds: i64,
    ) -> Result<(), SandboxError> {
        let directory = self.directory(name.as_path())?;
        set_metadata(&directory, mode, seconds).map_err(|errno| create_error(name.as_path(), errno))
    }

    /// Creates a symbolic link, replacing an existing file. The target is not validated, because the fetcher never
    /// follows links.
    pub(super) fn symbolic_link(&self, name: &SandboxPath, target: &Path) -> Result<(), SandboxError> {
        self.check(name)?;
        self.count()?;
        let directory = self.directory(name.directory())?;
        replace(&directory, name.file_name(), || symlinkat(target, &directory, name.file_name()))
            .map_err(|errno| create_error(name.as_path(), errno))
    }

    /// Creates a hard link to a file of the sandbox, replacing an existing file.
    pub(super) fn hard_link(&self, name: &SandboxPath, original: &SandboxPath) -> Result<(), SandboxError> {
        self.check(name)?;
        // Through a second name it could be written to.
        self.check(original)?;
        self.count()?;
        let failed = |errno| create_error(name.as_path(), errno);
        let file = openat2(
            &self.root,
            original.as_path(),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            RESOLVE,
        )
        .map_err(|errno| create_error(original.as_path(), errno))?;
        let kind = FileType::from_raw_mode(fstat(&file).map_err(failed)?.st_mode);
        if kind != FileType::RegularFile || name == original {
            return Err(SandboxError::NotRegular { path: original.as_path().to_owned() });
        }
        let from = self.directory(original.directory())?;
        let directory = self.directory(name.directory())?;
        // Without AT_SYMLINK_FOLLOW: if `original` was replaced by a symbolic link, the link itself is linked.
        let link = || linkat(&from, original.file_name(), &directory, name.file_name(), AtFlags::empty());
        replace(&directory, name.file_name(), link).map_err(failed)
    }

    /// Creates a file with a temporary name.
    fn create(&mut self, directory: &OwnedFd) -> Result<(File, OsString), Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            self.drafts += 1;
            let name = OsString::from(format!(".fetch-{}-{}", std::process::id(), self.drafts));
            match openat(directory, &name, flags, Mode::from_raw_mode(0o600)) {
                // Left behind by a process with the same pid.
                Err(Errno::EXIST) => {}
                result => return Ok((result?.into(), name)),
            }
        }
    }
}

impl Draft {
    /// Sets permissions and, if given, the modification time, and renames the file to its name, replacing an existing
    /// file.
    pub(super) fn place(mut self, mode: u32, seconds: Option<i64>) -> Result<(), SandboxError> {
        let placed = match seconds {
            Some(seconds) => set_metadata(&self.file, mode, seconds),
            None => fchmod(&self.file, permissions(mode)),
        };
        placed
            .and_then(|()| renameat(&self.directory, &self.temporary, &self.directory, self.name.file_name()))
            .map_err(|errno| create_error(self.name.as_path(), errno))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            // If this fails, the file is removed with the sandbox.
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

fn create_error(path: &Path, errno: Errno) -> SandboxError {
    SandboxError::Create { path: path.to_owned(), source: errno.into() }
}

/// Permission bits without setuid, setgid and sticky.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

fn set_metadata(file: impl AsFd, mode: u32, seconds: i64) -> Result<(), Errno> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    fchmod(&file, permissions(mode))?;
    futimens(&file, &Timestamps { last_access: time, last_modification: time })
}

/// Creates a directory entry. Removes an existing one first, unless it is a directory.
fn replace(directory: &OwnedFd, name: &OsStr, create: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match create() {
        Err(Errno::EXIST) => {
            unlinkat(directory, name, AtFlags::empty())?;
            create()
        }
        result => result,
    }
}
