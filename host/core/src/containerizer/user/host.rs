//! The host's databases of users and groups.
//!
//! They are asked through the C library, as `nsswitch.conf` may name servers. Only for containers without a root file
//! system: what the C library loads and reads is the host's.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, User, getgrouplist};

use super::{Database, Entry, Kind, UserError, Users};

pub(super) struct Databases;

impl Databases {
    fn failed(kind: Kind) -> impl Fn(nix::Error) -> UserError {
        move |errno| UserError::Read { database: Database::Host(kind), source: errno.into() }
    }
}

impl Users for Databases {
    fn by_name(&self, name: &str) -> Result<Entry, UserError> {
        let unknown = || UserError::Unknown {
            kind: Kind::User,
            name: name.to_owned(),
            database: Database::Host(Kind::User),
        };
        let found = User::from_name(name).map_err(Self::failed(Kind::User))?.ok_or_else(unknown)?;
        entry(found)
    }

    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, UserError> {
        User::from_uid(uid.into()).map_err(Self::failed(Kind::User))?.map(entry).transpose()
    }

    fn group(&self, name: &str) -> Result<u32, UserError> {
        let database = || Database::Host(Kind::Group);
        let found = Group::from_name(name).map_err(Self::failed(Kind::Group))?;
        match found.map(|group| group.gid.as_raw()) {
            Some(u32::MAX) => {
                Err(UserError::Malformed { kind: Kind::Group, name: name.to_owned(), database: database() })
            }
            Some(gid) => Ok(gid),
            None => {
                Err(UserError::Unknown { kind: Kind::Group, name: name.to_owned(), database: database() })
            }
        }
    }

    fn groups_of(&self, user: &Entry) -> Result<Vec<u32>, UserError> {
        let database = || Database::Host(Kind::Group);
        let name = CString::new(user.name.as_str())
            .map_err(|error| UserError::Read { database: database(), source: io::Error::other(error) })?;
        let groups = getgrouplist(&name, Gid::from_raw(user.gid)).map_err(Self::failed(Kind::Group))?;
        Ok(groups.into_iter().map(Gid::as_raw).filter(|gid| *gid != u32::MAX).collect())
    }

    fn database(&self, kind: Kind) -> Database {
        Database::Host(kind)
    }
}

fn entry(user: User) -> Result<Entry, UserError> {
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    if [uid, gid].contains(&u32::MAX) {
        let database = Database::Host(Kind::User);
        return Err(UserError::Malformed { kind: Kind::User, name: user.name, database });
    }
    Ok(Entry { name: user.name, uid, gid })
}
