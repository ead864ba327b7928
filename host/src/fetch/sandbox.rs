//! The sandbox, entered through its descriptor only, so that no symbolic link in it leads out of it.

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

use super::name::Name;

/// Neither out of the sandbox nor through any symbolic link.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A container's sandbox.
pub(super) struct Sandbox {
    root: OwnedFd,
    drafts: u64,
}

/// A file that is being written, under a name of its own until it is complete. Dropped, it is gone.
pub(super) struct Draft {
    pub(super) file: File,
    directory: OwnedFd,
    temporary: OsString,
    name: Name,
    placed: bool,
}

/// What cannot be done in a sandbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("cannot open the sandbox `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot make the folder `{}` in the sandbox", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot make `{}` in the sandbox", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("`{}` is not a file, so there is no other name for it", path.display())]
    NoFile { path: PathBuf },
}

impl Sandbox {
    pub(super) fn open(path: &Path) -> Result<Self, SandboxError> {
        let root = open(path, FOLDER, Mode::empty())
            .map_err(|errno| SandboxError::Open { path: path.to_owned(), source: errno.into() })?;
        Ok(Self { root, drafts: 0 })
    }

    /// Begins a file that will be called `name`, whose folder is made if need be.
    pub(super) fn draft(&mut self, name: &Name) -> Result<Draft, SandboxError> {
        let directory = self.directory(name.directory())?;
        let (file, temporary) = self.create(&directory).map_err(|errno| make(name.path(), errno))?;
        Ok(Draft { file, directory, temporary, name: name.clone(), placed: false })
    }

    /// A file for a while, without a name, so that nothing is left of it whatever happens.
    pub(super) fn scratch(&mut self, name: &Name) -> Result<File, SandboxError> {
        let refuse = |errno| make(name.path(), errno);
        let directory = self.directory(Path::new(""))?;
        let (file, temporary) = self.create(&directory).map_err(refuse)?;
        unlinkat(&directory, &temporary, AtFlags::empty()).map_err(refuse)?;
        Ok(file)
    }

    /// Opens a folder, which is made if need be with those that it is in.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, SandboxError> {
        let refuse = |errno: Errno| SandboxError::Folder { path: path.to_owned(), source: errno.into() };
        let whole = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match openat2(&self.root, whole, FOLDER, Mode::empty(), WITHIN) {
            Err(Errno::NOENT) => {}
            answer => return answer.map_err(refuse),
        }
        let mut directory = self
            .root
            .try_clone()
            .map_err(|error| SandboxError::Folder { path: path.to_owned(), source: error })?;
        for part in path {
            match mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(refuse(errno)),
            }
            directory = openat2(&directory, part, FOLDER, Mode::empty(), WITHIN).map_err(refuse)?;
        }
        Ok(directory)
    }

    /// Gives a folder its permissions and time.
    pub(super) fn finish_folder(&self, name: &Name, mode: u32, seconds: i64) -> Result<(), SandboxError> {
        let directory = self.directory(name.path())?;
        finish(&directory, mode, seconds).map_err(|errno| make(name.path(), errno))
    }

    /// Makes a symbolic link in place of whatever file is there. Where it leads does not matter: nothing here
    /// ever follows it.
    pub(super) fn symbolic_link(&self, name: &Name, target: &Path) -> Result<(), SandboxError> {
        let directory = self.directory(name.directory())?;
        replace(&directory, name.last(), || symlinkat(target, &directory, name.last()))
            .map_err(|errno| make(name.path(), errno))
    }

    /// Makes another name for a file of the sandbox, in place of whatever file is there.
    pub(super) fn hard_link(&self, name: &Name, original: &Name) -> Result<(), SandboxError> {
        let refuse = |errno| make(name.path(), errno);
        let file = openat2(
            &self.root,
            original.path(),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            WITHIN,
        )
        .map_err(|errno| make(original.path(), errno))?;
        let kind = FileType::from_raw_mode(fstat(&file).map_err(refuse)?.st_mode);
        if kind != FileType::RegularFile || name == original {
            return Err(SandboxError::NoFile { path: original.path().to_owned() });
        }
        let from = self.directory(original.directory())?;
        let directory = self.directory(name.directory())?;
        // Without following, so at worst it becomes another name of a symbolic link.
        let link = || linkat(&from, original.last(), &directory, name.last(), AtFlags::empty());
        replace(&directory, name.last(), link).map_err(refuse)
    }

    /// Makes a file that only this process knows of.
    fn create(&mut self, directory: &OwnedFd) -> Result<(File, OsString), Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            self.drafts += 1;
            let name = OsString::from(format!(".fetch-{}-{}", std::process::id(), self.drafts));
            match openat(directory, &name, flags, Mode::from_raw_mode(0o600)) {
                // Left by somebody who was called the same and was killed.
                Err(Errno::EXIST) => {}
                answer => return Ok((answer?.into(), name)),
            }
        }
    }
}

impl Draft {
    /// Gives the file its permissions, its time if it has one, and its name, in place of whatever file has that.
    pub(super) fn place(mut self, mode: u32, seconds: Option<i64>) -> Result<(), SandboxError> {
        let placed = match seconds {
            Some(seconds) => finish(&self.file, mode, seconds),
            None => fchmod(&self.file, permissions(mode)),
        };
        placed
            .and_then(|()| renameat(&self.directory, &self.temporary, &self.directory, self.name.last()))
            .map_err(|errno| make(self.name.path(), errno))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            // Where even that fails, the sandbox goes as a whole.
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

fn make(path: &Path, errno: Errno) -> SandboxError {
    SandboxError::Make { path: path.to_owned(), source: errno.into() }
}

/// Permissions without those that lend somebody's rights to others, as setuid does.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

fn finish(file: impl AsFd, mode: u32, seconds: i64) -> Result<(), Errno> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    fchmod(&file, permissions(mode))?;
    futimens(&file, &Timestamps { last_access: time, last_modification: time })
}

/// Makes something under a name that something else may have, unless that is a folder.
fn replace(directory: &OwnedFd, name: &OsStr, make: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match make() {
        Err(Errno::EXIST) => {
            unlinkat(directory, name, AtFlags::empty())?;
            make()
        }
        answer => answer,
    }
}
