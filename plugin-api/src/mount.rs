//! Detached mounts for [`Prepared::bind_descriptor`](crate::Prepared::bind_descriptor). A detached mount is not visible
//! in any directory, and the kernel removes it when its last descriptor is closed. So nothing has to be cleaned up on
//! the host.
//!
//! Requires Linux 5.2 and the capability `SYS_ADMIN`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

/// Why a detached mount could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// A mount flag that this version does not know.
    #[error(
        "unknown mount flag `{flag}`: expected one of `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, `relatime`, \
         `strictatime`, `nodiratime`"
    )]
    UnknownFlag {
        /// The unknown flag.
        flag: String,
    },
    /// The kernel refused the filesystem or an option.
    #[error("cannot create a `{fstype}` filesystem{}", if .message.is_empty() { String::new() } else { format!(" ({message})") })]
    Filesystem {
        /// Type of the filesystem.
        fstype: String,
        /// The kernel's messages on the filesystem, joined with `; `; may be empty.
        message: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The mount of a file or directory could not be cloned.
    #[error("cannot clone the mount of `{}`", path.display())]
    Clone {
        /// Path of the file or directory.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

/// Creates a filesystem and returns a detached mount of it. `flags` are mount flags (`ro`, `nosuid`, `nodev`, …).
/// `options` are options of the filesystem: `name=value`, such as `size=64m`, or `name`.
///
/// ```no_run
/// # use cofferdam_plugin_api::prelude::*;
/// # fn prepare() -> Result<Prepared> {
/// let shm = cofferdam_plugin_api::mount::filesystem("tmpfs", &["nosuid", "nodev"], &["size=64m", "mode=1777"])?;
/// Ok(Prepared::new().bind_descriptor(shm, "/dev/shm", []))
/// # }
/// ```
///
/// # Errors
/// [`MountError::UnknownFlag`], [`MountError::Filesystem`].
pub fn filesystem(fstype: &str, flags: &[&str], options: &[&str]) -> Result<OwnedFd, MountError> {
    let attributes = attributes(flags)?;
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| MountError::Filesystem {
        fstype: fstype.to_owned(),
        message: String::new(),
        source: errno.into(),
    })?;
    configure(context.as_fd(), options)
        .and_then(|()| fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes))
        .map_err(|errno| MountError::Filesystem {
            fstype: fstype.to_owned(),
            message: messages(context.as_fd()),
            source: errno.into(),
        })
}

/// Clones the mount of a file or directory of the host, with the mounts below it if `recursive`, and returns the
/// detached clone. Later mounts and unmounts on the host do not affect it.
///
/// # Errors
/// [`MountError::Clone`].
pub fn clone(path: &Path, recursive: bool) -> Result<OwnedFd, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
        .map_err(|errno| MountError::Clone { path: path.to_owned(), source: errno.into() })
}

fn attributes(flags: &[&str]) -> Result<MountAttrFlags, MountError> {
    flags.iter().try_fold(MountAttrFlags::empty(), |all, &flag| {
        let attribute = match flag {
            "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
            "relatime" => MountAttrFlags::MOUNT_ATTR_RELATIME,
            "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            _ => return Err(MountError::UnknownFlag { flag: flag.to_owned() }),
        };
        Ok(all | attribute)
    })
}

fn configure(context: rustix::fd::BorrowedFd<'_>, options: &[&str]) -> Result<(), Errno> {
    for option in options {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context, name, value)?,
            None => fsconfig_set_flag(context, *option)?,
        }
    }
    fsconfig_create(context)
}

/// The kernel's messages on a filesystem context. Each read returns one, with its level: `e tmpfs: Bad value for …`.
fn messages(context: rustix::fd::BorrowedFd<'_>) -> String {
    let (mut buffer, mut messages) = ([0; 512], Vec::new());
    // The kernel keeps at most 8 messages.
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer)
        && messages.len() < 8
    {
        let message = String::from_utf8_lossy(&buffer[..length]);
        messages.push(message.trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    messages.join("; ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, OFlags, openat};

    use super::*;
    use crate::testing::skip;

    /// Whether this process may create mounts.
    fn may_mount() -> bool {
        match fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(_) => true,
            Err(errno) => {
                skip(format!("needs fsopen(2): Linux 5.2 and the capability SYS_ADMIN: {errno}"));
                false
            }
        }
    }

    fn create(root: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
        openat(root, name, OFlags::CREATE | OFlags::WRONLY, Mode::from(0o600))
    }

    #[test]
    fn a_filesystem_is_usable_by_its_descriptor_and_not_visible_on_the_host() {
        if !may_mount() {
            return;
        }
        let root = filesystem("tmpfs", &["nosuid"], &["size=64k", "mode=700"]).unwrap();
        create(&root, "file").unwrap();
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!before.contains("size=64k"), "{before}");
        let read_only = filesystem("tmpfs", &["ro"], &[]).unwrap();
        assert_eq!(create(&read_only, "file").unwrap_err(), Errno::ROFS);
    }

    #[test]
    fn a_directory_is_cloned_with_its_files() {
        if !may_mount() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "content").unwrap();
        let root = clone(directory.path(), true).unwrap();
        let file = openat(&root, "file", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(fs::File::from(file)).unwrap(), "content");
    }

    #[test]
    fn errors_name_the_flag_option_or_path() {
        let error = filesystem("tmpfs", &["read-only"], &[]).unwrap_err();
        assert!(error.to_string().contains("unknown mount flag `read-only`"), "{error}");
        if !may_mount() {
            return;
        }
        let error = filesystem("tmpfs", &[], &["size=many"]).unwrap_err();
        assert!(error.to_string().contains("cannot create a `tmpfs` filesystem (tmpfs: "), "{error}");
        let error = clone(Path::new("/no/such/directory"), false).unwrap_err();
        assert!(error.to_string().contains("`/no/such/directory`"), "{error}");
    }
}
