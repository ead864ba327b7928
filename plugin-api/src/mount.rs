//! Detached mounts for [`Prepared::bind_descriptor`](crate::Prepared::bind_descriptor). A detached mount is not visible
//! in any directory, and the kernel removes it when its last descriptor is closed. So nothing has to be cleaned up on
//! the host.
//!
//! Requires Linux 5.2 and the capability `SYS_ADMIN`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use cofferdam_linux::overlay;
pub use cofferdam_linux::overlay::Upper;
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, openat, openat2, statfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    open_tree,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

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
    /// The mount namespace of a process could not be entered.
    #[error("cannot enter the mount namespace of process {pid}")]
    Namespace {
        /// The process.
        pid: i32,
        /// The error of the system call.
        source: io::Error,
    },
    /// A file for a container could not be created.
    #[error("cannot create a file in memory")]
    File(#[source] io::Error),
    /// A system call did not return in time. It may wait for a file system of the container.
    #[error("`{}` was not found in time", path.display())]
    Timeout {
        /// The path.
        path: PathBuf,
    },
    /// The thread that does this could not be started, or panicked.
    #[error("a thread for a mount cannot be used")]
    Thread(#[source] io::Error),
    /// Directories could not be mounted as one.
    #[error("cannot mount an overlay of {layers} directories")]
    Overlay {
        /// Number of directories that are not changed.
        layers: usize,
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

/// Mounts directories that are not changed as one, the topmost first, and returns the detached mount, an overlay: for
/// [`ImageRoot::Layers`](crate::model::ImageRoot::Layers). Without an upper layer, to which changes are written, it is
/// read-only, and needs at least two directories.
///
/// # Errors
/// [`MountError::Overlay`].
pub fn overlay(lower: &[PathBuf], upper: Option<Upper<'_>>) -> Result<OwnedFd, MountError> {
    overlay::mount(lower, upper).map_err(|source| MountError::Overlay { layers: lower.len(), source })
}

/// Clones what is mounted at a path of a process's mount namespace, without mounts below it, and returns the detached
/// clone: for what a nested container is to share with its parent.
///
/// The path is resolved as the container sees it, without symbolic links, on a thread that does nothing else. Processes of
/// the container may have mounted anything there; compare [`device`]. They may also keep the kernel waiting, by a
/// file system in user space; after `timeout` the call fails, and the thread ends with the container.
///
/// # Errors
/// [`MountError::Namespace`], [`MountError::Clone`], [`MountError::Timeout`], [`MountError::Thread`].
pub fn clone_of_process(pid: i32, path: &Path, timeout: Duration) -> Result<OwnedFd, MountError> {
    let owned = path.to_owned();
    let clone = move || {
        let namespace = |source| MountError::Namespace { pid, source };
        let failed = |errno: Errno| MountError::Clone { path: owned.clone(), source: errno.into() };
        let file = std::fs::File::open(format!("/proc/{pid}/ns/mnt")).map_err(namespace)?;
        leave_process().map_err(|errno| namespace(errno.into()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(|errno| namespace(errno.into()))?;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let found =
            openat2(CWD, &owned, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(failed)?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(&found, c"", flags).map_err(failed)
    };
    on_own_thread(clone, timeout).unwrap_or_else(|| Err(MountError::Timeout { path: path.to_owned() }))
}

/// Creates a file in memory that no directory of the host contains, and returns a detached mount of it: for content that
/// must not reach a disk, as `Prepared::operation` would record it. The memory is given back with the last mount.
///
/// # Errors
/// [`MountError::Filesystem`], [`MountError::File`], [`MountError::Thread`].
pub fn file(content: &[u8], mode: u32, (uid, gid): (u32, u32)) -> Result<OwnedFd, MountError> {
    const NAME: &str = "file";
    let content = content.to_vec();
    let create = move || {
        let failed = |errno: Errno| MountError::File(errno.into());
        // Before Linux 6.15 only what is attached can be cloned, so it is attached where nobody else is.
        leave_process().map_err(failed)?;
        unshare_mounts().map_err(failed)?;
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed)?;
        let size = format!("size={}", content.len().max(1).next_multiple_of(4096));
        // Swap is memory that reaches a disk, which old kernels cannot exclude.
        let options = ["mode=700", &size, "noswap"];
        let flags = ["nodev", "noexec", "nosuid"];
        let tmpfs =
            filesystem("tmpfs", &flags, &options).or_else(|_| filesystem("tmpfs", &flags, &options[..2]))?;
        move_mount(&tmpfs, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = std::fs::File::from(openat(&tmpfs, NAME, flags, Mode::RUSR).map_err(failed)?);
        io::Write::write_all(&mut &file, &content).map_err(MountError::File)?;
        // The owner first: changing it clears set-id bits.
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
        fchmod(&file, Mode::from_raw_mode(mode & 0o777)).map_err(failed)?;
        open_tree(&tmpfs, NAME, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .map_err(failed)
    };
    // Nothing of a container can delay it.
    on_own_thread(create, Duration::MAX)
        .unwrap_or_else(|| Err(MountError::Thread(io::ErrorKind::TimedOut.into())))
}

/// Number of the device that a file, directory or mount is on. No two file systems have the same while they exist.
///
/// # Errors
/// The error of fstat(2).
pub fn device(of: impl AsFd) -> io::Result<u64> {
    Ok(fstat(of)?.st_dev)
}

/// Runs something that changes its thread on a new one. `None` if it does not return in time.
fn on_own_thread<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, MountError> + Send + 'static,
    timeout: Duration,
) -> Option<Result<T, MountError>> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("mount".to_owned());
    // Fails if the caller has stopped waiting.
    let started = thread.spawn(move || drop(sender.send(run())));
    if let Err(error) = started {
        return Some(Err(MountError::Thread(error)));
    }
    match receiver.recv_timeout(timeout) {
        Ok(result) => Some(result),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            Some(Err(MountError::Thread(io::Error::other("the thread panicked"))))
        }
    }
}

/// Gives the calling thread a root and working directory of its own, without which it cannot enter mount namespaces.
#[expect(deprecated, reason = "its replacement is unsafe for `FILES` only")]
fn leave_process() -> Result<(), Errno> {
    rustix::thread::unshare(UnshareFlags::FS)
}

#[expect(deprecated, reason = "its replacement is unsafe for `FILES` only")]
fn unshare_mounts() -> Result<(), Errno> {
    rustix::thread::unshare(UnshareFlags::NEWNS)
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

/// Whether the upper layer of an overlay can be in a directory, as far as its file system tells: not if that is an overlay itself,
/// as the root of a container usually is.
///
/// # Errors
/// If the file system cannot be inspected.
pub fn can_have_upper_layer(directory: &Path) -> io::Result<bool> {
    const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
    Ok(statfs(directory)?.f_type as u64 != OVERLAYFS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::testing::{Shell, skip};

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
    fn a_mount_of_another_namespace_is_cloned_and_no_link_is_followed() {
        if !may_mount() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let script = format!(
            "exec unshare --mount --propagation private sh -c 'cd {}; mkdir m n; mount -t tmpfs none m; \
             echo inside > m/file; ln -s m link; echo ready; read end'",
            path.display()
        );
        let shell = Shell::spawn(&script);
        let minute = Duration::from_secs(60);
        let clone = clone_of_process(shell.pid(), &path.join("m"), minute).unwrap();
        let file = openat(&clone, "file", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(fs::File::from(file)).unwrap(), "inside\n");
        assert!(!path.join("m/file").exists(), "it is not mounted here");
        let other = clone_of_process(shell.pid(), &path.join("n"), minute).unwrap();
        assert_ne!(device(&clone).unwrap(), device(&other).unwrap());
        let error = clone_of_process(shell.pid(), &path.join("link"), minute).unwrap_err();
        assert!(matches!(error, MountError::Clone { .. }), "{error}");
        let error = clone_of_process(i32::MAX, path, minute).unwrap_err();
        assert!(error.to_string().contains("process 2147483647"), "{error}");
        shell.end();
    }

    #[test]
    fn a_file_in_memory_has_its_content_and_owner_and_is_in_no_directory() {
        if !may_mount() {
            return;
        }
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let content = vec![b'x'; 10_000];
        let mount = file(&content, 0o440, (12, 34)).unwrap();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        let found = fstat(&mount).unwrap();
        assert_eq!((found.st_mode, found.st_uid, found.st_gid), (0o100_440, 12, 34));
        let open = |flags| openat(CWD, format!("/proc/self/fd/{}", mount.as_raw_fd()), flags, Mode::empty());
        let text = io::read_to_string(fs::File::from(open(OFlags::RDONLY).unwrap())).unwrap();
        assert_eq!(text.as_bytes(), content);
        assert!(file(b"", 0o400, (0, 0)).is_ok());
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
