//! Files, links, devices and directories.

use core::ffi::CStr;

use super::base::{Base, MAX_PATH};
use crate::sys::{self, Errno, Fd};

/// Numeric user and group.
pub(super) type Owner = (u32, u32);

pub(super) fn device(
    base: Base,
    path: &CStr,
    mode: u32,
    number: (u32, u32),
    (uid, gid): Owner,
) -> Result<(), Errno> {
    base.in_parent(path, |parent, name| {
        let make = || match sys::make_node(parent, name, mode, number.0, number.1) {
            Ok(()) if (uid, gid) != (0, 0) => sys::change_owner_at(parent, name, uid, gid),
            other => other,
        };
        match make() {
            Err(Errno::EXIST) => {}
            other => return other,
        }
        let there = sys::stat_at(parent, name)?;
        if !there.is_kind_of(mode) || there.device != number {
            return Err(Errno::EXIST);
        }
        if there.is_accessible_as(mode, (uid, gid)) {
            return Ok(());
        }
        // It is replaced: its mode could only be changed by its name, which may have become a link.
        sys::unlink(parent, name)?;
        make()
    })
}

pub(super) fn file(
    base: Base,
    path: &CStr,
    content: &[u8],
    mode: u32,
    (uid, gid): Owner,
) -> Result<(), Errno> {
    const S_IFREG: u32 = 0o100_000;
    let file = base.in_parent(path, sys::create)?;
    // What exists may be a device or a FIFO, which was opened without blocking.
    if !sys::stat(file)?.is_kind_of(S_IFREG) {
        return Err(Errno::EXIST);
    }
    sys::truncate(file)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = sys::write(file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    // The owner first: changing it clears set-id bits.
    sys::change_owner(file, uid, gid)?;
    sys::change_mode_of_file(file, mode)?;
    sys::close(file);
    Ok(())
}

pub(super) fn symlink(base: Base, path: &CStr, target: &CStr) -> Result<(), Errno> {
    base.in_parent(path, |parent, name| match sys::make_symlink(target, parent, name) {
        Err(Errno::EXIST) if is_symlink_to(target, parent, name)? => Ok(()),
        other => other,
    })
}

fn is_symlink_to(target: &CStr, parent: Fd, name: &CStr) -> Result<bool, Errno> {
    let mut buffer = [0; MAX_PATH];
    match sys::read_symlink(parent, name, &mut buffer) {
        Ok(existing) => Ok(existing == target.to_bytes()),
        // Not a symbolic link.
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

pub(super) fn directory(base: Base, path: &CStr, mode: u32, (uid, gid): Owner) -> Result<(), Errno> {
    let directory = base.make_directories(path, None)?;
    // The owner first: changing it clears set-id bits.
    sys::change_owner(directory, uid, gid)?;
    sys::change_mode(directory, mode)?;
    sys::close(directory);
    Ok(())
}
