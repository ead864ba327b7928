//! One entry of a directory: its removal, and what may prevent it.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, ResolveFlags, chmodat, fchmod, fstat, ioctl_getflags,
    ioctl_setflags, openat, openat2, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::descent::{HERE, LIST};

/// Resolution of a single name, also into a mount.
const MOUNTED: ResolveFlags = HERE.difference(ResolveFlags::NO_XDEV);

/// How often something may have changed between two system calls before that is an error.
const RETRIES: usize = 16;

/// How many mounts on one entry are detached by one call; the rest by the next one.
const MAX_STACKED: usize = 1 << 12;

const PERMANENT: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// The result of an attempt to remove an entry.
pub(super) enum Outcome {
    /// It is gone.
    Removed,
    /// It is a directory that is not empty.
    NotEmpty,
    Failed(Errno),
}

/// Removes an entry unless it is a directory that is not empty. `is_ours` tells whether the directory belongs to the tree
/// that is removed, so that it may be changed.
pub(super) fn remove(
    directory: BorrowedFd<'_>,
    is_ours: bool,
    name: &CStr,
    mut is_directory: bool,
) -> Outcome {
    let mut released = false;
    // Until this returns.
    let mut restored = None;
    for _ in 0..RETRIES {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(directory, name, flags) {
            Ok(()) | Err(Errno::NOENT) => return Outcome::Removed,
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Outcome::NotEmpty,
            Err(Errno::ISDIR) => is_directory = true,
            Err(Errno::NOTDIR) => is_directory = false,
            Err(Errno::BUSY) => match detach(directory, name) {
                Ok(true) => {}
                // Not a mount point, but in use otherwise.
                Ok(false) => return Outcome::Failed(Errno::BUSY),
                Err(errno) => return Outcome::Failed(errno),
            },
            Err(Errno::PERM | Errno::ACCESS) if !released => {
                released = true;
                if is_ours {
                    allow_changes(directory);
                }
                // Whether that helped is up to the next attempt.
                restored = release(directory, name).ok().flatten();
            }
            Err(errno) => return Outcome::Failed(errno),
        }
    }
    drop(restored);
    Outcome::Failed(Errno::AGAIN)
}

/// Removes a cgroup unless there are cgroups below it, or processes in it.
pub(super) fn remove_cgroup(directory: BorrowedFd<'_>, name: &CStr) -> Outcome {
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Outcome::Removed,
        Err(Errno::BUSY | Errno::NOTEMPTY) => Outcome::NotEmpty,
        Err(errno) => Outcome::Failed(errno),
    }
}

/// Opens a directory for listing. `None` if there is none of this name any more.
pub(super) fn open(directory: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let mut permitted = false;
    for _ in 0..RETRIES {
        match openat2(directory, name, LIST, Mode::empty(), HERE) {
            Ok(opened) => return Ok(Some(opened)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(Errno::XDEV) => drop(detach(directory, name)?),
            Err(Errno::ACCESS) if !permitted => {
                permitted = true;
                let found = look_up(directory, name, HERE)?;
                chmodat(CWD, descriptor_path(found.as_fd()), Mode::RWXU, AtFlags::empty())?;
            }
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::AGAIN)
}

/// Detaches what is mounted on an entry, with everything mounted below that. Returns false if nothing is.
///
/// The mount is opened first, so that this one is detached whatever the name means by then.
fn detach(directory: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    let mut detached = false;
    for _ in 0..MAX_STACKED {
        match look_up(directory, name, HERE) {
            Err(Errno::XDEV) => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(detached),
            Err(errno) => return Err(errno),
        }
        let mounted = match look_up(directory, name, MOUNTED) {
            Err(Errno::NOENT) => return Ok(detached),
            found => found?,
        };
        match unmount(descriptor_path(mounted.as_fd()), UnmountFlags::DETACH) {
            Ok(()) => detached = true,
            // It has been unmounted meanwhile, or belongs to mounts that this process may not take apart.
            Err(Errno::INVAL) if look_up(directory, name, HERE).is_ok() => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
    Ok(detached)
}

fn look_up(directory: BorrowedFd<'_>, name: &CStr, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    openat2(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Permits changes of a directory's entries, as far as this process may.
pub(super) fn allow_changes(directory: BorrowedFd<'_>) {
    if let Ok(flags) = ioctl_getflags(directory)
        && flags.intersects(PERMANENT)
    {
        let _ = ioctl_setflags(directory, flags - PERMANENT);
    }
    if let Ok(found) = fstat(directory)
        && found.st_mode & 0o700 != 0o700
    {
        let _ = fchmod(directory, Mode::RWXU);
    }
}

/// Makes an entry neither immutable nor append-only. Only files and directories can be that, and opening anything else
/// could have an effect.
fn release(directory: BorrowedFd<'_>, name: &CStr) -> Result<Option<Restored>, Errno> {
    let found = look_up(directory, name, HERE)?;
    let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(CWD, descriptor_path(found.as_fd()), flags, Mode::empty())?;
    let flags = ioctl_getflags(&opened)?;
    if !flags.intersects(PERMANENT) {
        return Ok(None);
    }
    ioctl_setflags(&opened, flags - PERMANENT)?;
    // Not created for a directory, as that would restore its flags at once.
    Ok((kind == FileType::RegularFile).then(|| Restored { file: opened, flags }))
}

/// A file that gets its flags back on drop if it has another name, which may be outside of the tree.
struct Restored {
    file: OwnedFd,
    flags: IFlags,
}

impl Drop for Restored {
    fn drop(&mut self) {
        if fstat(&self.file).is_ok_and(|found| found.st_nlink > 0) {
            let _ = ioctl_setflags(&self.file, self.flags);
        }
    }
}

/// A path that leads to a descriptor's file, whatever its name is.
pub(super) fn descriptor_path(descriptor: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into()
}
