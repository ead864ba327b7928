//! The files behind a container's input and output.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::chain::Outlet;
use crate::view::Logs;

/// A container's input and output, open.
pub(super) struct Opened {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) logs: Logs,
}

/// Opens what the logger named. The files that are made belong to the container's user.
pub(super) fn open(streams: [Outlet; 3], uid: u32, gid: u32) -> Result<Opened, (PathBuf, io::Error)> {
    let [stdin, stdout, stderr] = streams;
    let logs = Logs { stdout: path_of(&stdout), stderr: path_of(&stderr) };
    let stdin = match stdin {
        Outlet::Null => open_at(Path::new("/dev/null"), OpenOptions::new().read(true))?,
        Outlet::Path(path) => open_at(&path, OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY))?,
        Outlet::Descriptor(descriptor) => descriptor,
    };
    Ok(Opened { stdin, stdout: output(stdout, uid, gid)?, stderr: output(stderr, uid, gid)?, logs })
}

fn path_of(outlet: &Outlet) -> Option<PathBuf> {
    match outlet {
        Outlet::Path(path) => Some(path.clone()),
        _ => None,
    }
}

fn output(outlet: Outlet, uid: u32, gid: u32) -> Result<OwnedFd, (PathBuf, io::Error)> {
    match outlet {
        Outlet::Null => open_at(Path::new("/dev/null"), OpenOptions::new().write(true)),
        Outlet::Descriptor(descriptor) => Ok(descriptor),
        Outlet::Path(path) => {
            // The sandbox belongs to the container's user, who may have left a link there: it is not followed.
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

/// Makes the file in which the first process leaves the exit status.
pub(super) fn create_status(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        File::create(path)
    })
}
