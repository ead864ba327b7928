//! Whom a container's command runs as, in numbers.
//!
//! Names, and the supplementary groups of a user, are looked up where the container sees them: with a root file system
//! in its `/etc/passwd` and `/etc/group`, which are hostile; otherwise in the host's databases.

mod host;
mod image;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};

use crate::chain::RunAs;

/// Maximum number of supplementary groups.
const MAX_GROUPS: usize = 1024;

/// Whom a command runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, in ascending order.
    pub(super) groups: Vec<u32>,
}

impl From<User> for RunAs {
    fn from(User { uid, gid, groups }: User) -> Self {
        Self { uid, gid, groups }
    }
}

/// Why it cannot be determined whom a command runs as.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// It is none of the forms.
    #[error(
        "`{requested}` is not a user; expected `USER` or `USER:GROUP`, each a name or a number from 0 to 4294967294 \
         without sign and leading zeros"
    )]
    Invalid {
        /// The requested user.
        requested: String,
    },
    /// There is no such user or group.
    #[error("there is no {kind} `{name}` in {database}")]
    Unknown {
        /// User or group.
        kind: Kind,
        /// The name.
        name: String,
        /// Where it was looked up.
        database: Database,
    },
    /// The entry has no valid numbers.
    #[error(
        "the entry of {kind} `{name}` in {database} has no valid ids; expected numbers from 0 to 4294967294"
    )]
    Malformed {
        /// User or group.
        kind: Kind,
        /// The name.
        name: String,
        /// Where it was looked up.
        database: Database,
    },
    /// The user is in more groups than a container can have.
    #[error("user `{name}` is in more than {MAX_GROUPS} groups in {database}")]
    Groups {
        /// The name or number of the user.
        name: String,
        /// Where they were looked up.
        database: Database,
    },
    /// The database cannot be read.
    #[error("{database} cannot be read")]
    Read {
        /// Which one.
        database: Database,
        /// Why.
        source: io::Error,
    },
    /// The image of the container that is inspected cannot be mounted.
    #[error("the image of the container that it inspects cannot be read")]
    Image {
        /// Why.
        source: io::Error,
    },
    /// The file is longer than what is read.
    #[error("{database} has more than {limit} bytes")]
    TooLong {
        /// Which file.
        database: Database,
        /// Maximum length.
        limit: u64,
    },
    /// Only root can change users and groups.
    #[error("an agent that runs as user {own} cannot launch as {kind} {wanted}")]
    NotAllowed {
        /// User or group.
        kind: Kind,
        /// The agent's user.
        own: u32,
        /// The requested user or group.
        wanted: u32,
    },
}

/// What a number identifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A user.
    User,
    /// A group.
    Group,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Group => "group",
        })
    }
}

/// Where users or groups are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// That of the host, whatever `nsswitch.conf` says.
    Host(Kind),
    /// A file of a root file system.
    File(PathBuf),
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(kind) => write!(f, "the host's {kind} database"),
            Self::File(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// A user as a database describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    uid: u32,
    gid: u32,
}

/// Users and groups, as a container sees them.
trait Users {
    fn by_name(&self, name: &str) -> Result<Entry, UserError>;
    /// `None` if no entry has this number, which is no error.
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, UserError>;
    fn group(&self, name: &str) -> Result<u32, UserError>;
    /// The groups that have a user as their member, in any order, at most one more than [`MAX_GROUPS`].
    fn groups_of(&self, user: &Entry) -> Result<Vec<u32>, UserError>;
    fn database(&self, kind: Kind) -> Database;
}

/// Determines whom a command runs as. `requested` is a name or a number, or both user and group with a colon in between;
/// with a group it has no supplementary groups. By default it runs as `parent`, the user of the container that it is
/// nested in, and otherwise as the agent's, without supplementary groups.
pub(super) fn resolve(
    requested: Option<&str>,
    rootfs: Option<&Path>,
    parent: Option<User>,
) -> Result<User, UserError> {
    let own = User { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups: Vec::new() };
    let Some(requested) = requested.filter(|requested| !requested.is_empty()) else {
        return Ok(parent.unwrap_or(own));
    };
    let user = match rootfs {
        Some(rootfs) => look_up(requested, &image::Files::new(rootfs)),
        None => look_up(requested, &host::Databases),
    }?;
    if own.uid == 0 {
        return Ok(user);
    }
    if user.uid != own.uid {
        return Err(UserError::NotAllowed { kind: Kind::User, own: own.uid, wanted: user.uid });
    }
    if requested.contains(':') && user.gid != own.gid {
        return Err(UserError::NotAllowed { kind: Kind::Group, own: own.uid, wanted: user.gid });
    }
    Ok(own)
}

fn look_up(requested: &str, users: &impl Users) -> Result<User, UserError> {
    let (name, group) = match requested.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (requested, None),
    };
    let invalid = || UserError::Invalid { requested: requested.to_owned() };
    let user = match reference(name).ok_or_else(invalid)? {
        Reference::Name(name) => Ok(users.by_name(name)?),
        Reference::Id(uid) => users.by_uid(uid)?.ok_or(uid),
    };
    let uid = user.as_ref().map_or_else(|uid| *uid, |entry| entry.uid);
    match (group.map(|group| reference(group).ok_or_else(invalid)).transpose()?, user) {
        (Some(Reference::Id(gid)), _) => Ok(User { uid, gid, groups: Vec::new() }),
        (Some(Reference::Name(name)), _) => Ok(User { uid, gid: users.group(name)?, groups: Vec::new() }),
        (None, Ok(entry)) => {
            let mut groups = users.groups_of(&entry)?;
            groups.retain(|gid| *gid != entry.gid);
            groups.sort_unstable();
            groups.dedup();
            if groups.len() > MAX_GROUPS {
                return Err(UserError::Groups { name: entry.name, database: users.database(Kind::Group) });
            }
            Ok(User { uid, gid: entry.gid, groups })
        }
        // A user without an entry is alone in its group.
        (None, Err(uid)) => Ok(User { uid, gid: uid, groups: Vec::new() }),
    }
}

/// A user or group as a client writes it.
enum Reference<'a> {
    Name(&'a str),
    Id(u32),
}

/// `None` for what could be taken for a number or a name by some and not by others.
fn reference(text: &str) -> Option<Reference<'_>> {
    match text.bytes().next()? {
        b'0'..=b'9' if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            id(text.as_bytes()).filter(|_| text == "0" || !text.starts_with('0')).map(Reference::Id)
        }
        b'+' | b'-' => None,
        _ if text.contains(|character: char| character.is_control() || matches!(character, ':' | ',')) => {
            None
        }
        _ => Some(Reference::Name(text)),
    }
}

/// A user or group id. The largest number is none: for the kernel it means that an id is not to be changed.
fn id(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()?;
    (number != u32::MAX).then_some(number)
}

#[cfg(test)]
mod tests;
