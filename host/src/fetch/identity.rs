//! Changes the user of this process to that of the container, irrevocably.

use nix::sys::prctl::set_dumpable;
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Address space limit. The tar library keeps headers in memory, and an archive may claim any size for them.
const MEMORY: u64 = 512 << 20;

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error("{uid}:{gid} is not a user and a group; 4294967295 is none")]
    Invalid { uid: u32, gid: u32 },
    #[error("cannot determine the current user and group")]
    Unknown { source: nix::Error },
    #[error("cannot drop the agent's supplementary groups")]
    Groups { source: nix::Error },
    #[error("cannot change to group `{gid}`")]
    Group { gid: u32, source: nix::Error },
    #[error("cannot change to user `{uid}`")]
    User { uid: u32, source: nix::Error },
    #[error("cannot set `no_new_privs`")]
    Privileges { source: Errno },
    #[error("cannot keep the user from reading the memory of this process")]
    Dumpable { source: nix::Error },
    #[error("cannot set the limits of memory and core dumps")]
    Limits { source: Errno },
}

/// Changes user and group, drops supplementary groups, and prevents the process from gaining privileges again.
pub(super) fn assume(uid: u32, gid: u32) -> Result<(), IdentityError> {
    // The kernel would leave those of the agent unchanged.
    if [uid, gid].contains(&u32::MAX) {
        return Err(IdentityError::Invalid { uid, gid });
    }
    let users = getresuid().map_err(|source| IdentityError::Unknown { source })?;
    let groups = getresgid().map_err(|source| IdentityError::Unknown { source })?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let already = [users.real, users.effective, users.saved] == [user; 3]
        && [groups.real, groups.effective, groups.saved] == [group; 3];
    if !already {
        // In this order, as each step drops the privilege needed for the ones before it. The C library applies each to
        // all threads.
        setgroups(&[]).map_err(|source| IdentityError::Groups { source })?;
        setresgid(group, group, group).map_err(|source| IdentityError::Group { gid, source })?;
        setresuid(user, user, user).map_err(|source| IdentityError::User { uid, source })?;
    }
    // It may know credentials. What a change of the user makes of this attribute depends on a setting of the host
    // (`fs.suid_dumpable`).
    set_dumpable(false).map_err(|source| IdentityError::Dumpable { source })?;
    rustix::thread::set_no_new_privs(true).map_err(|source| IdentityError::Privileges { source })?;
    lower(Resource::Core, 0).map_err(|source| IdentityError::Limits { source })?;
    lower(Resource::As, MEMORY).map_err(|source| IdentityError::Limits { source })
}

/// Lowers a resource limit to `limit`, unless it is lower already.
fn lower(resource: Resource, limit: u64) -> Result<(), Errno> {
    let limit = Some(getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit)));
    setrlimit(resource, Rlimit { current: limit, maximum: limit })
}
