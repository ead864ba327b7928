//! Project quotas of XFS and ext4: the project of files, and what a project uses and may use.
//!
//! Both file systems are controlled by the same calls: ioctl(2) on files, and `quotactl_fd`, which Linux has since 5.14.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, fstat, fstatfs, openat, openat2};
use rustix::io::Errno;

use crate::descent::{HERE, LIST};
use crate::foreign;

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
const SET_ATTRIBUTES: libc::c_ulong = 0x401c_5820;

/// What is created in a directory belongs to its project.
const INHERIT: u32 = 0x200;

/// `PRJQUOTA`.
const OF_PROJECTS: u32 = 2;

const XQUOTAON: u32 = 0x5801;
const XGETQUOTA: u32 = 0x5803;
const XSETQLIM: u32 = 0x5804;
const XGETQSTATV: u32 = 0x5808;

const ACCOUNTS_PROJECTS: u16 = 1 << 4;
const ENFORCES_PROJECTS: u16 = 1 << 5;

const SOFT_AND_HARD_BLOCKS: u16 = 1 << 2 | 1 << 3;

/// Unit of quotas.
const BLOCK: u64 = 512;

const XFS: u64 = 0x5846_5342;
const EXT: u64 = 0xef53;

/// Most entries of a tree that is given to a project.
const MAX_ENTRIES: usize = 1 << 20;

/// Most directories of it that are open at once.
const MAX_OPEN: usize = 1 << 8;

/// `struct fsxattr`.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct fs_disk_quota`.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    block_hard_limit: u64,
    block_soft_limit: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    blocks: u64,
    inodes: u64,
    rest: [u64; 9],
}

/// `struct fs_quota_statv`, with space for later versions.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    rest: [u64; 32],
}

/// Kind of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// XFS.
    Xfs,
    /// ext2, ext3 or ext4.
    Ext,
    /// Another one, with its magic number.
    Other(u64),
}

/// Whether projects have quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Whether it is counted what they use.
    pub are_counted: bool,
    /// Whether limits are enforced.
    pub are_enforced: bool,
}

/// What a project uses and may use, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Space that is allocated for its files.
    pub used: u64,
    /// Its files and directories.
    pub inodes: u64,
    /// Soft limit; 0 for none.
    pub soft: u64,
    /// Hard limit; 0 for none.
    pub hard: u64,
}

/// The file system of an open file.
///
/// # Errors
/// Those of fstatfs(2).
pub fn kind(file: impl AsFd) -> io::Result<Kind> {
    #[expect(clippy::cast_sign_loss, reason = "a magic number")]
    Ok(match fstatfs(file)?.f_type as u64 {
        XFS => Kind::Xfs,
        EXT => Kind::Ext,
        other => Kind::Other(other),
    })
}

/// Whether projects have quotas on the file system of an open file.
///
/// # Errors
/// Those of quotactl(2): `ENOSYS` if the kernel has no quotas or is older than 5.14, others if the file system has none.
pub fn quotas(file: impl AsFd) -> io::Result<Quotas> {
    let mut state = State { version: 1, ..State::default() };
    control(file, XGETQSTATV, 0, &mut state)?;
    let has = |flag| state.flags & flag != 0;
    Ok(Quotas { are_counted: has(ACCOUNTS_PROJECTS), are_enforced: has(ENFORCES_PROJECTS) })
}

/// Turns enforcement on where it is only counted.
///
/// # Errors
/// Those of quotactl(2).
pub fn enforce(file: impl AsFd) -> io::Result<()> {
    control(file, XQUOTAON, 0, &mut u32::from(ENFORCES_PROJECTS))
}

/// What a project uses and may use on the file system of an open file. One that is not known there uses nothing.
///
/// # Errors
/// Those of quotactl(2).
pub fn read(file: impl AsFd, project: u32) -> io::Result<Quota> {
    let mut quota = DiskQuota::default();
    match control(file, XGETQUOTA, project, &mut quota) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Quota::default()),
        other => other?,
    }
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK);
    Ok(Quota {
        used: bytes(quota.blocks),
        inodes: quota.inodes,
        soft: bytes(quota.block_soft_limit),
        hard: bytes(quota.block_hard_limit),
    })
}

/// Sets the limits of a project in bytes, rounded up to blocks of 512; 0 for none.
///
/// # Errors
/// Those of quotactl(2).
pub fn set_limits(file: impl AsFd, project: u32, soft: u64, hard: u64) -> io::Result<()> {
    let mut quota = DiskQuota {
        version: 1,
        flags: 2,
        fields: SOFT_AND_HARD_BLOCKS,
        id: project,
        block_soft_limit: soft.div_ceil(BLOCK),
        block_hard_limit: hard.div_ceil(BLOCK),
        ..DiskQuota::default()
    };
    control(file, XSETQLIM, project, &mut quota)
}

/// The project of a file or directory that is open for reading; 0 for none.
///
/// # Errors
/// Those of ioctl(2).
pub fn project(file: impl AsFd) -> io::Result<u32> {
    Ok(attributes(&file)?.project)
}

/// The project of a directory, which may be open for neither reading nor writing.
///
/// # Errors
/// Those of system calls.
pub fn project_of_directory(directory: impl AsFd) -> io::Result<u32> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    project(openat(directory, c".", flags, Mode::empty())?)
}

/// Gives a file to a project; a directory with all that will be created in it.
///
/// # Errors
/// Those of ioctl(2).
pub fn set_project(file: impl AsFd, project: u32) -> io::Result<()> {
    let mut attributes = attributes(&file)?;
    let is_directory = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Directory;
    let flags = if is_directory { attributes.flags | INHERIT } else { attributes.flags };
    if (attributes.project, attributes.flags) == (project, flags) {
        return Ok(());
    }
    (attributes.project, attributes.flags) = (project, flags);
    // SAFETY: the kernel reads a structure of this layout.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), SET_ATTRIBUTES, &raw const attributes) };
    check(result.into())
}

/// Gives a directory and what is in it to a project, without following links or entering mounts, also those of the same
/// file system. Links, devices and the like stay as they are: they cannot be changed.
///
/// # Errors
/// Those of system calls; `EFBIG` if there is too much in it.
pub fn set_project_of_tree(directory: impl AsFd, project: u32) -> io::Result<()> {
    let top = openat(&directory, c".", LIST, Mode::empty())?;
    // First those above, so that nothing is created in between that belongs to none.
    set_project(&top, project)?;
    let mut pending: Vec<OwnedFd> = vec![top];
    let (mut entries, mut buffer) = (0, Vec::with_capacity(1 << 15));
    while let Some(directory) = pending.pop() {
        let mut listing = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            entries += 1;
            if entries > MAX_ENTRIES || pending.len() > MAX_OPEN {
                return Err(Errno::FBIG.into());
            }
            let found = match openat2(&directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), HERE) {
                Ok(found) => found,
                // A link, something that is mounted there, or removed meanwhile.
                Err(Errno::LOOP | Errno::XDEV | Errno::NOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            match FileType::from_raw_mode(fstat(&found)?.st_mode) {
                FileType::Directory => {
                    let opened = openat(&found, c".", LIST, Mode::empty())?;
                    set_project(&opened, project)?;
                    pending.push(opened);
                }
                FileType::RegularFile => set_project(foreign::reopen(&found, OFlags::RDONLY)?, project)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn attributes(file: impl AsFd) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes a structure of this layout.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) };
    check(result.into())?;
    Ok(attributes)
}

fn control<T>(file: impl AsFd, command: u32, id: u32, argument: &mut T) -> io::Result<()> {
    const { assert!(mem::size_of::<DiskQuota>() >= 112 && mem::size_of::<Attributes>() == 28) };
    let command = command << 8 | OF_PROJECTS;
    // SAFETY: the structure that belongs to the command, which the kernel reads, writes, or both.
    let result = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_fd().as_raw_fd(), command, id, &raw mut *argument)
    };
    check(result)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_system_without_quotas_is_an_error_and_has_a_kind() {
        let proc = File::open("/proc").unwrap();
        assert_eq!(kind(&proc).unwrap(), Kind::Other(0x9fa0));
        assert!(quotas(&proc).is_err() && read(&proc, 5000).is_err() && project(&proc).is_err());
    }
}
