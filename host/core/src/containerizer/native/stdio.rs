//! The files behind a container's standard streams.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::chain::StdioTarget;
use crate::model::view::Logs;

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
    let logs = Logs { stdout: path_of(&stdout), stderr: path_of(&stderr) };
    let stdin = match stdin {
        StdioTarget::Null => open_at(Path::new("/dev/null"), OpenOptions::new().read(true))?,
        StdioTarget::Path(path) => {
            open_at(&path, OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY))?
        }
        StdioTarget::Descriptor(descriptor) => descriptor,
    };
    Ok(Stdio { stdin, stdout: open_output(stdout, uid, gid)?, stderr: open_output(stderr, uid, gid)?, logs })
}

fn path_of(target: &StdioTarget) -> Option<PathBuf> {
    match target {
        StdioTarget::Path(path) => Some(path.clone()),
        _ => None,
    }
}

fn open_output(target: StdioTarget, uid: u32, gid: u32) -> Result<OwnedFd, (PathBuf, io::Error)> {
    match target {
        StdioTarget::Null => open_at(Path::new("/dev/null"), OpenOptions::new().write(true)),
        StdioTarget::Descriptor(descriptor) => Ok(descriptor),
        StdioTarget::Path(path) => {
            // The sandbox belongs to the container's user, who may have placed a link there: it is not followed.
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY);
            let file = options.open(&path).map_err(|error| (path.clone(), error))?;
            if nix::unistd::geteuid().is_root() {
                fchown(&file, Some(uid), Some(gid)).map_err(|error| (path, error))?;
            }
            Ok(file.into())
        }
    }
}

fn open_at(path: &Path, options: &OpenOptions) -> Result<OwnedFd, (PathBuf, io::Error)> {
    options.open(path).map(OwnedFd::from).map_err(|error| (path.to_owned(), error))
}
