//! Who a container's command runs as, in numbers.
//!
//! With a root file system, names are looked up in *its* `/etc/passwd` and `/etc/group`, which are read as
//! text and found without leaving it: the host's own name service must never load what lies in a
//! container.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// The largest user database that is read.
const LARGEST: u64 = 16 << 20;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Why a user is not known.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error("there is no user `{user}` in {database}")]
    Unknown {
        /// The name.
        user: String,
        /// Where it was looked for.
        database: String,
    },
    /// The user database cannot be read.
    #[error("the user database `{path}` cannot be read")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only root can become somebody else.
    #[error("an agent that runs as user {us} cannot launch as user {wanted}")]
    NotAllowed {
        /// Who the agent is.
        us: u32,
        /// Who the container was to be.
        wanted: u32,
    },
}

/// Finds out who a command runs as: a name, a number, `name:group` or `number:number`; the agent's own user
/// if nothing is said.
pub(super) fn resolve(user: Option<&str>, rootfs: Option<&Path>) -> Result<User, UserError> {
    let us = nix::unistd::geteuid().as_raw();
    let Some(user) = user.filter(|user| !user.is_empty()) else {
        return Ok(User { uid: us, gid: nix::unistd::getegid().as_raw() });
    };
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let (uid, primary) = match name.parse::<u32>() {
        Ok(uid) => (uid, find(rootfs, "passwd", 2, name)?.map(|entry| entry.1)),
        Err(_) => {
            let entry = find(rootfs, "passwd", 0, name)?;
            let (uid, gid) = entry.ok_or_else(|| unknown(name, rootfs, "passwd"))?;
            (uid, Some(gid))
        }
    };
    let gid = match group {
        None => primary.unwrap_or(uid),
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => find(rootfs, "group", 0, group)?.ok_or_else(|| unknown(group, rootfs, "group"))?.0,
        },
    };
    if us != 0 && uid != us {
        return Err(UserError::NotAllowed { us, wanted: uid });
    }
    Ok(User { uid, gid })
}

fn unknown(user: &str, rootfs: Option<&Path>, file: &str) -> UserError {
    UserError::Unknown { user: user.to_owned(), database: database(rootfs, file).display().to_string() }
}

fn database(rootfs: Option<&Path>, file: &str) -> PathBuf {
    rootfs.unwrap_or(Path::new("/")).join("etc").join(file)
}

/// The third and fourth column of the line whose column `column` is `wanted`.
fn find(
    rootfs: Option<&Path>,
    file: &str,
    column: usize,
    wanted: &str,
) -> Result<Option<(u32, u32)>, UserError> {
    let database_error = |source| UserError::Database { path: database(rootfs, file), source };
    let text = match read(rootfs, file) {
        Ok(text) => text,
        // An image of one program has no users.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(database_error(error)),
    };
    Ok(text.lines().find_map(|line| {
        let columns: Vec<&str> = line.split(':').collect();
        if columns.get(column) != Some(&wanted) {
            return None;
        }
        let third = columns.get(2)?.parse().ok()?;
        // A group has its members in the fourth column.
        Some((third, columns.get(3).and_then(|gid| gid.parse().ok()).unwrap_or(third)))
    }))
}

fn read(rootfs: Option<&Path>, file: &str) -> io::Result<String> {
    let root = openat(
        CWD,
        rootfs.unwrap_or(Path::new("/")),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let inside = Path::new("etc").join(file);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(&root, &inside, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn rootfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let write =
            |file: &str, text: &str| std::fs::write(root.path().join("etc").join(file), text).unwrap();
        write("passwd", "root:x:0:0::/:/bin/sh\nweb:x:1234:55::/:/bin/sh\n");
        write("group", "root:x:0:\nlog:x:77:web\n");
        root
    }

    fn as_root(user: &str, rootfs: &Path) -> Option<(u32, u32)> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        resolve(Some(user), Some(rootfs)).ok().map(|user| (user.uid, user.gid))
    }

    #[test]
    fn names_are_looked_up_inside_the_root_file_system() {
        let root = rootfs();
        if !nix::unistd::geteuid().is_root() {
            return assert!(matches!(
                resolve(Some("web"), Some(root.path())),
                Err(UserError::NotAllowed { .. })
            ));
        }
        assert_eq!(as_root("web", root.path()), Some((1234, 55)));
        assert_eq!(as_root("web:log", root.path()), Some((1234, 77)));
        assert_eq!(as_root("1234", root.path()), Some((1234, 55)));
        assert_eq!(as_root("999", root.path()), Some((999, 999)));
        assert_eq!(as_root("999:1", root.path()), Some((999, 1)));
        let error = resolve(Some("nobody"), Some(root.path())).unwrap_err();
        assert!(error.to_string().contains("no user `nobody`"), "{error}");
    }

    #[test]
    fn a_link_out_of_the_root_file_system_leads_nowhere() {
        let root = rootfs();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "evil:x:0:0::/:/bin/sh\n").unwrap();
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink(outside.path().join("passwd"), root.path().join("etc/passwd")).unwrap();
        assert!(resolve(Some("evil"), Some(root.path())).is_err());
    }
}
