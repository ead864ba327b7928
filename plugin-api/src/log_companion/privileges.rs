//! The privileges of a companion: those of the container's user, but that it cannot be signalled by it.

use std::io;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Becomes a user and a group, if the agent is root, and drops all capabilities. From then on, files are created and opened
/// with the permissions and the quota of that user. The real and the saved user stay root: a process of the user may
/// neither signal nor trace this one.
///
/// # Errors
/// Those of the system calls.
pub fn drop_privileges(owner: Option<(u32, u32)>) -> io::Result<()> {
    umask(Mode::WGRP | Mode::WOTH);
    if let Some((uid, gid)) = owner {
        set_thread_groups(&[])?;
        set_thread_res_gid(Gid::from_raw(gid), Gid::from_raw(gid), Gid::from_raw(gid))?;
        set_thread_res_uid(Uid::ROOT, Uid::from_raw(uid), Uid::ROOT)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    Ok(())
}
