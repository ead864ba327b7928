//! Opens files in directories that others write to, such as those of containers.
//!
//! A file is found with `O_PATH`, which has no effect on it, and opened for reading only after it is known to be a
//! regular file: opening a FIFO waits for a writer, and opening a device can do anything. It is opened through the
//! descriptor that was checked, so it does not matter what happens to its path meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat,
    openat2, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

/// How a path below a directory is resolved. No way leads out of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// As if the directory were `/`.
    InRoot,
    /// A symbolic link or `..` that leads out of the directory is an error.
    Beneath,
    /// A symbolic link is an error.
    WithoutLinks,
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path leads out of the directory, or through a symbolic link where none may be.
    #[error("its path leads out of the directory, or through a symbolic link")]
    Outside,
    /// It is a directory, a device, a FIFO or a socket.
    #[error("it is not a regular file")]
    NotRegular,
    /// Another directory was put in the place of one that was being created.
    #[error("it was replaced while it was created")]
    Replaced,
    /// A system call failed.
    #[error(transparent)]
    System(io::Error),
}

impl OpenError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::System(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    }
}

impl From<Errno> for OpenError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::XDEV | Errno::LOOP => Self::Outside,
            other => Self::System(other.into()),
        }
    }
}

/// Finds what is at a path below a directory, as a descriptor that can be neither read nor written.
///
/// # Errors
/// [`OpenError::Outside`], or the error of openat2(2).
pub fn find(directory: impl AsFd, path: &Path, resolve: Resolve) -> Result<OwnedFd, OpenError> {
    let resolve = match resolve {
        Resolve::InRoot => ResolveFlags::IN_ROOT,
        Resolve::Beneath => ResolveFlags::BENEATH,
        Resolve::WithoutLinks => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    };
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(open_resolved(directory, path, flags, resolve | ResolveFlags::NO_MAGICLINKS)?)
}

/// How often a resolution that races with others is tried. Each race needs a rename or mount within microseconds.
const MAX_RESOLUTIONS: usize = 10_000;

/// Opens a file by openat2(2), again if the resolution of a `..` raced with a rename or a mount anywhere on the host, which the
/// kernel cannot tell from an escape.
///
/// # Errors
/// Those of openat2(2).
pub fn open_resolved(
    directory: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 1..MAX_RESOLUTIONS {
        match openat2(directory.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    openat2(directory, path, flags, Mode::empty(), resolve)
}

/// Finds what is at a path in whose last directory only the caller and more privileged users can change names, without
/// following it if it is a link.
///
/// # Errors
/// [`OpenError::Outside`] if the path has no last component or that is a link, or the error of a system call.
pub fn find_in_own(path: &Path) -> Result<OwnedFd, OpenError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(OpenError::Outside);
    };
    find(directory(parent)?, Path::new(name), Resolve::WithoutLinks)
}

/// Opens what was found for reading, if it is a regular file.
///
/// # Errors
/// [`OpenError::NotRegular`], or the error of open(2).
pub fn open_regular(found: impl AsFd) -> Result<File, OpenError> {
    check_regular(&found)?;
    Ok(reopen(found, OFlags::RDONLY)?.into())
}

/// Finds a directory below another, without following links, and creates what is missing of it, with mode 0755. What is
/// created belongs to `owner`, a user and a group.
///
/// # Errors
/// [`OpenError::Outside`], or the error of a system call.
pub fn create_directories(
    directory: impl AsFd,
    path: &Path,
    owner: Option<(u32, u32)>,
) -> Result<OwnedFd, OpenError> {
    let mut here = find(directory, Path::new(""), Resolve::WithoutLinks)?;
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => Path::new(name),
            Component::CurDir => continue,
            _ => return Err(OpenError::Outside),
        };
        here = match find(&here, name, Resolve::WithoutLinks) {
            Err(error) if error.is_missing() => {
                let is_own = match mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => true,
                    // Somebody else has created it, whose it stays.
                    Err(Errno::EXIST) => false,
                    Err(errno) => return Err(errno.into()),
                };
                let made = find(&here, name, Resolve::WithoutLinks)?;
                check_kind(&made, FileType::Directory)?;
                if is_own && owner.is_some() {
                    check_new(&made)?;
                    change_owner(&made, owner)?;
                }
                made
            }
            other => other?,
        };
    }
    check_kind(&here, FileType::Directory)?;
    Ok(here)
}

/// Finds a regular file below a directory, without following links, and creates what is missing: its directories, and an
/// empty file with mode 0644. What is created belongs to `owner`, a user and a group.
///
/// # Errors
/// [`OpenError::Outside`], [`OpenError::NotRegular`], or the error of a system call.
pub fn create_file(
    directory: impl AsFd,
    path: &Path,
    owner: Option<(u32, u32)>,
) -> Result<OwnedFd, OpenError> {
    let name = path.file_name().ok_or(OpenError::Outside)?;
    let parent = create_directories(directory, path.parent().unwrap_or(Path::new("")), owner)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(made) => change_owner(&made, owner)?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let found = find(&parent, Path::new(name), Resolve::WithoutLinks)?;
    check_regular(&found)?;
    Ok(found)
}

fn change_owner(of: &OwnedFd, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    chownat(of, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
}

/// Checks that a directory can be the one that was just created: there is no way to create one and have it open at once, so
/// whoever writes to the directory above may have put another one there. An empty one that belongs to this process could
/// as well have been removed and created again.
fn check_new(made: &OwnedFd) -> Result<(), OpenError> {
    if fstat(made)?.st_uid != geteuid().as_raw() {
        return Err(OpenError::Replaced);
    }
    for entry in Dir::new(reopen(made, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Err(OpenError::Replaced);
        }
    }
    Ok(())
}

fn check_kind(found: impl AsFd, kind: FileType) -> Result<(), OpenError> {
    if FileType::from_raw_mode(fstat(&found)?.st_mode) == kind { Ok(()) } else { Err(Errno::NOTDIR.into()) }
}

/// Checks that what was found is a regular file.
///
/// # Errors
/// [`OpenError::NotRegular`], or the error of fstat(2).
pub fn check_regular(found: impl AsFd) -> Result<(), OpenError> {
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(OpenError::NotRegular),
    }
}

/// Opens what was found and checked with any flags.
///
/// # Errors
/// The error of open(2).
pub fn reopen(found: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
    openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

/// Removes a file, or a link itself, below a directory, without following links on the way. Returns false if there is none.
///
/// # Errors
/// [`OpenError::Outside`], [`OpenError::NotRegular`] if it is a directory, or the error of unlinkat(2).
pub fn remove_file(directory: impl AsFd, path: &Path) -> Result<bool, OpenError> {
    let name = path.file_name().ok_or(OpenError::Outside)?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let parent = match find(directory, parent, Resolve::WithoutLinks) {
        Err(error) if error.is_missing() => return Ok(false),
        found => found?,
    };
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        // What should be a directory on the way is a file.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(Errno::ISDIR) => Err(OpenError::NotRegular),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a directory by a path that nobody else can change.
///
/// # Errors
/// The error of open(2).
pub fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(at: &Path, path: &str, resolve: Resolve) -> Result<String, OpenError> {
        let mut text = String::new();
        open_regular(find(directory(at)?, Path::new(path), resolve)?)?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn what_is_missing_is_created_and_no_link_is_followed() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir(&root).unwrap();
        symlink(outside.path(), root.join("link")).unwrap();
        fs::write(root.join("file"), "text").unwrap();
        let at = directory(&root).unwrap();
        for _ in 0..2 {
            create_directories(&at, Path::new("a/./b"), None).unwrap();
            create_file(&at, Path::new("a/b/new"), None).unwrap();
        }
        assert!(root.join("a/b/new").is_file());
        create_file(&at, Path::new("file"), None).unwrap();
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "text");
        for path in ["link/a", "../a", "/a", "link"] {
            assert!(create_directories(&at, Path::new(path), None).is_err(), "{path}");
            assert!(create_file(&at, Path::new(path), None).is_err(), "{path}");
        }
        assert!(create_directories(&at, Path::new("file"), None).is_err());
        assert!(create_directories(&at, Path::new("file/a"), None).is_err());
        assert!(matches!(create_file(&at, Path::new("a"), None), Err(OpenError::NotRegular)));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_and_links_are_removed_and_no_link_is_followed() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        fs::write(root.join("a/file"), "").unwrap();
        symlink(outside.path(), root.join("link")).unwrap();
        symlink(outside.path().join("kept"), root.join("to-kept")).unwrap();
        let at = directory(&root).unwrap();
        assert!(remove_file(&at, Path::new("a/file")).unwrap() && !root.join("a/file").exists());
        for missing in ["a/file", "missing/file", "missing"] {
            assert!(!remove_file(&at, Path::new(missing)).unwrap(), "{missing}");
        }
        for refused in ["link/kept", "../kept", "a/..", ""] {
            assert!(matches!(remove_file(&at, Path::new(refused)), Err(OpenError::Outside)), "{refused}");
        }
        assert!(matches!(remove_file(&at, Path::new("a")), Err(OpenError::NotRegular)));
        assert!(remove_file(&at, Path::new("to-kept")).unwrap());
        assert!(outside.path().join("kept").exists() && root.join("a").is_dir());
    }

    #[test]
    fn only_regular_files_are_opened_and_no_link_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = outside.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "text").unwrap();
        symlink("file", root.join("inside")).unwrap();
        symlink("/file", root.join("absolute")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        symlink("/proc/self/fd/0", root.join("magic")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        for resolve in [Resolve::InRoot, Resolve::Beneath, Resolve::WithoutLinks] {
            assert_eq!(open(&root, "file", resolve).unwrap(), "text");
            assert!(matches!(open(&root, "fifo", resolve), Err(OpenError::NotRegular)), "{resolve:?}");
            assert!(matches!(open(&root, "", resolve), Err(OpenError::NotRegular)), "{resolve:?}");
            assert!(open(&root, "missing", resolve).unwrap_err().is_missing(), "{resolve:?}");
            assert!(open(&root, "file/x", resolve).unwrap_err().is_missing(), "{resolve:?}");
            for path in ["outside", "../secret", "magic", "loop"] {
                assert!(open(&root, path, resolve).is_err(), "{path}, {resolve:?}");
            }
        }
        assert_eq!(open(&root, "inside", Resolve::Beneath).unwrap(), "text");
        assert_eq!(open(&root, "absolute", Resolve::InRoot).unwrap(), "text");
        assert!(matches!(open(&root, "absolute", Resolve::Beneath), Err(OpenError::Outside)));
        assert!(matches!(open(&root, "inside", Resolve::WithoutLinks), Err(OpenError::Outside)));
    }

    fn is_root() -> bool {
        let is_root = geteuid().is_root();
        if !is_root {
            eprintln!("SKIPPED: changing owners needs root");
        }
        is_root
    }

    #[test]
    fn a_directory_with_entries_or_of_another_user_is_not_new() {
        let base = tempfile::tempdir().unwrap();
        let made = || directory(base.path()).unwrap();
        assert!(check_new(&made()).is_ok());
        if is_root() {
            std::os::unix::fs::chown(base.path(), Some(1234), None).unwrap();
            assert!(matches!(check_new(&made()), Err(OpenError::Replaced)));
            std::os::unix::fs::chown(base.path(), Some(0), None).unwrap();
        }
        fs::write(base.path().join("file"), "").unwrap();
        assert!(matches!(check_new(&made()), Err(OpenError::Replaced)));
    }

    /// Somebody moves a directory of root to the name all the time, and exchanges it with what is created there.
    #[test]
    fn only_a_directory_that_was_created_changes_its_owner() {
        use std::os::unix::fs::MetadataExt;
        use std::sync::atomic::{AtomicBool, Ordering};

        use rustix::fs::{RenameFlags, renameat_with};

        if !is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let [victim, name] = ["victim", "new"].map(|name| base.path().join(name));
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "").unwrap();
        let directory = directory(base.path()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for (from, to, flags) in [
                        (&victim, &name, RenameFlags::EXCHANGE),
                        (&name, &victim, RenameFlags::NOREPLACE),
                        (&victim, &name, RenameFlags::NOREPLACE),
                        (&name, &victim, RenameFlags::NOREPLACE),
                    ] {
                        // Fails if one of them is missing, or not.
                        let _ = renameat_with(CWD, from, CWD, to, flags);
                    }
                }
            });
            for _ in 0..3000 {
                drop(create_directories(&directory, Path::new("new"), Some((1234, 1234))));
                // Fails for the one with a file.
                for path in [&name, &victim] {
                    drop(fs::remove_dir(path));
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let found = [&victim, &name].into_iter().find(|path| path.join("file").exists()).unwrap();
        assert_eq!(fs::metadata(found).unwrap().uid(), 0);
    }
}
