//! Becomes the container's user, for good.

use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the process may use of addresses. An archive's headers are kept in memory and may claim any size.
const MEMORY: u64 = 512 << 20;

/// The step on the way to another user that was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error("cannot find out who runs this")]
    Unknown { source: nix::Error },
    #[error("cannot give up the groups of the agent")]
    Groups { source: nix::Error },
    #[error("cannot become group `{gid}`")]
    Group { gid: u32, source: nix::Error },
    #[error("cannot become user `{uid}`")]
    User { uid: u32, source: nix::Error },
    #[error("cannot give up privileges for good")]
    Privileges { source: Errno },
    #[error("cannot limit the memory to {MEMORY} bytes, without a dump when there is no more")]
    Limits { source: Errno },
}

/// Becomes this user and group with no other groups, and never more than that again.
pub(super) fn assume(uid: u32, gid: u32) -> Result<(), IdentityError> {
    let users = getresuid().map_err(|source| IdentityError::Unknown { source })?;
    let groups = getresgid().map_err(|source| IdentityError::Unknown { source })?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let already = [users.real, users.effective, users.saved] == [user; 3]
        && [groups.real, groups.effective, groups.saved] == [group; 3];
    if !already {
        // In this order: each step gives up the right to those before it. The C library does each for all threads.
        setgroups(&[]).map_err(|source| IdentityError::Groups { source })?;
        setresgid(group, group, group).map_err(|source| IdentityError::Group { gid, source })?;
        setresuid(user, user, user).map_err(|source| IdentityError::User { uid, source })?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|source| IdentityError::Privileges { source })?;
    limit(Resource::Core, 0).map_err(|source| IdentityError::Limits { source })?;
    limit(Resource::As, MEMORY).map_err(|source| IdentityError::Limits { source })
}

/// Lowers a limit to `most`, if it is not lower already.
fn limit(resource: Resource, most: u64) -> Result<(), Errno> {
    let most = Some(getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most)));
    setrlimit(resource, Rlimit { current: most, maximum: most })
}
