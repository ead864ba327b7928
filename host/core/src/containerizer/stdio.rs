//! The files behind a container's standard streams.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use cofferdam_linux::foreign::{self, OpenError, Resolve};
use rustix::fs::OFlags;

use crate::chain::StdioTarget;
use crate::model::view::{FileId, Logs};

/// A container's open standard streams.
pub(super) struct Stdio {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) logs: Logs,
}

/// Opens the targets that the logger set. Files that are created belong to the container's user.
pub(super) fn open(targets: [StdioTarget; 3], uid: u32, gid: u32) -> Result<Stdio, (PathBuf, io::Error)> {
    let [stdin, stdout, stderr] = targets;
    let paths = [path_of(&stdout), path_of(&stderr)];
    let stdin = match stdin {
        StdioTarget::Null => open_at(Path::new("/dev/null"), OpenOptions::new().read(true))?,
        StdioTarget::Path(path) => {
            open_at(&path, OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY))?
        }
        StdioTarget::Descriptor(descriptor) => descriptor,
    };
    let (stdout, stdout_file) = open_output(stdout, uid, gid)?;
    let (stderr, stderr_file) = open_output(stderr, uid, gid)?;
    let [out_path, err_path] = paths;
    let logs = Logs { stdout: out_path, stderr: err_path, stdout_file, stderr_file, times: false };
    Ok(Stdio { stdin, stdout, stderr, logs })
}

fn path_of(target: &StdioTarget) -> Option<PathBuf> {
    match target {
        StdioTarget::Path(path) => Some(path.clone()),
        _ => None,
    }
}

/// Opens the target of a stream. Returns which file it is, so that readers recognize it: its path may be in a directory
/// of the container, which can put anything in its place.
fn open_output(
    target: StdioTarget,
    uid: u32,
    gid: u32,
) -> Result<(OwnedFd, Option<FileId>), (PathBuf, io::Error)> {
    match target {
        StdioTarget::Null => Ok((open_at(Path::new("/dev/null"), OpenOptions::new().write(true))?, None)),
        StdioTarget::Descriptor(descriptor) => Ok((descriptor, None)),
        StdioTarget::Path(path) => {
            let open = || {
                let file = append_to(&path)?;
                let id = FileId::of(&file.metadata()?);
                if nix::unistd::geteuid().is_root() {
                    fchown(&file, Some(uid), Some(gid))?;
                }
                Ok((file.into(), Some(id)))
            };
            open().map_err(|error| (path.clone(), error))
        }
    }
}

/// Creates a file, or opens the one that exists, which must be a regular file.
fn append_to(path: &Path) -> io::Result<File> {
    let create = OpenOptions::new().append(true).create_new(true).mode(0o644).open(path);
    match create {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => return created,
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let open = || {
        let found = foreign::find(foreign::directory(directory)?, Path::new(name), Resolve::WithoutLinks)?;
        foreign::check_regular(&found)?;
        Ok(foreign::reopen(&found, OFlags::WRONLY | OFlags::APPEND)?)
    };
    open().map(File::from).map_err(|error| match error {
        OpenError::System(error) => error,
        other => io::Error::other(other),
    })
}

fn open_at(path: &Path, options: &OpenOptions) -> Result<OwnedFd, (PathBuf, io::Error)> {
    options.open(path).map(OwnedFd::from).map_err(|error| (path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn open(path: &Path) -> io::Result<(File, FileId)> {
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let opened = open_output(StdioTarget::Path(path.to_owned()), own.0, own.1);
        opened.map(|(file, id)| (file.into(), id.unwrap())).map_err(|(_, error)| error)
    }

    #[test]
    fn both_streams_may_be_appended_to_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut first, id) = open(&path).unwrap();
        let (mut second, other) = open(&path).unwrap();
        first.write_all(b"one ").unwrap();
        second.write_all(b"two").unwrap();
        assert_eq!(id, other);
        assert_eq!(fs::read_to_string(path).unwrap(), "one two");
    }

    #[test]
    fn what_is_no_regular_file_is_neither_opened_nor_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdout");
        let target = directory.path().join("target");
        fs::write(&target, "").unwrap();
        symlink(&target, &path).unwrap();
        assert!(open(&path).is_err());
        fs::remove_file(&path).unwrap();
        // Opening it would wait for a reader.
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("not a regular file"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(open(&path).is_err());
        assert_eq!(fs::read(target).unwrap(), b"");
    }
}
