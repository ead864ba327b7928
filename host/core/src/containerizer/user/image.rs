//! Users and groups of a root file system, from its `/etc/passwd` and `/etc/group`.
//!
//! Whoever made the image wrote them, so they are read as text with a bound, and found without leaving the root: the
//! host's C library must never load what is in a container. The first entry of a name decides. If it is malformed, that
//! is an error: what another program would take for a number, or skip, is left to nobody's interpretation.

use std::io::Read;
use std::path::{Path, PathBuf};

use cofferdam_linux::foreign::{self, OpenError, Resolve};

use super::{Database, Entry, Kind, MAX_GROUPS, UserError, Users, id};

/// Maximum length of a file.
const MAX_LENGTH: u64 = 4 << 20;

pub(super) struct Files<'a> {
    rootfs: &'a Path,
}

impl<'a> Files<'a> {
    pub(super) const fn new(rootfs: &'a Path) -> Self {
        Self { rootfs }
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.rootfs.join(relative(kind))
    }

    /// The content of a file. An image of one program has no users, so it may be missing.
    fn read(&self, kind: Kind) -> Result<Vec<u8>, UserError> {
        let failed = |source| UserError::Read { database: self.database(kind), source };
        let open = || {
            let root = foreign::directory(self.rootfs)?;
            foreign::open_regular(foreign::find(&root, Path::new(relative(kind)), Resolve::InRoot)?)
        };
        let file = match open() {
            Ok(file) => file,
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            Err(OpenError::System(source)) => return Err(failed(source)),
            Err(other) => return Err(failed(std::io::Error::other(other))),
        };
        let mut text = Vec::new();
        file.take(MAX_LENGTH + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_LENGTH {
            return Err(UserError::TooLong { database: self.database(kind), limit: MAX_LENGTH });
        }
        Ok(text)
    }

    fn malformed(&self, kind: Kind, name: &str) -> UserError {
        UserError::Malformed { kind, name: name.to_owned(), database: self.database(kind) }
    }

    fn unknown(&self, kind: Kind, name: &str) -> UserError {
        UserError::Unknown { kind, name: name.to_owned(), database: self.database(kind) }
    }
}

impl Users for Files<'_> {
    fn by_name(&self, name: &str) -> Result<Entry, UserError> {
        let text = self.read(Kind::User)?;
        let found = lines(&text).find(|line| line.name == name.as_bytes());
        let line = found.ok_or_else(|| self.unknown(Kind::User, name))?;
        match (line.id, line.last.and_then(id)) {
            (Some(uid), Some(gid)) => Ok(Entry { name: name.to_owned(), uid, gid }),
            _ => Err(self.malformed(Kind::User, name)),
        }
    }

    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, UserError> {
        let text = self.read(Kind::User)?;
        let found = lines(&text).find_map(|line| {
            let gid = line.last.and_then(id).filter(|_| line.id == Some(uid))?;
            Some(Entry { name: std::str::from_utf8(line.name).ok()?.to_owned(), uid, gid })
        });
        Ok(found)
    }

    fn group(&self, name: &str) -> Result<u32, UserError> {
        let text = self.read(Kind::Group)?;
        let found = lines(&text).find(|line| line.name == name.as_bytes());
        let line = found.ok_or_else(|| self.unknown(Kind::Group, name))?;
        line.id.ok_or_else(|| self.malformed(Kind::Group, name))
    }

    fn groups_of(&self, user: &Entry) -> Result<Vec<u32>, UserError> {
        let text = self.read(Kind::Group)?;
        let is_member = |line: &Line<'_>| {
            let members = line.last.unwrap_or_default().split(|byte| *byte == b',');
            members.into_iter().any(|member| member == user.name.as_bytes())
        };
        Ok(lines(&text).filter(is_member).filter_map(|line| line.id).take(MAX_GROUPS + 2).collect())
    }

    fn database(&self, kind: Kind) -> Database {
        Database::File(self.path(kind))
    }
}

const fn relative(kind: Kind) -> &'static str {
    match kind {
        Kind::User => "etc/passwd",
        Kind::Group => "etc/group",
    }
}

/// A line of either file.
struct Line<'a> {
    name: &'a [u8],
    id: Option<u32>,
    /// The fourth column: the group id of a user, or the members of a group.
    last: Option<&'a [u8]>,
}

fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut columns = line.split(|byte| *byte == b':');
        let name = columns.next().filter(|name| !name.is_empty())?;
        let id = columns.nth(1).and_then(id);
        Some(Line { name, id, last: columns.next() })
    })
}
