//! The file service: what lies in the sandboxes of containers, and nothing else.
//!
//! A sandbox is written by its container, so nothing in it is trusted. Every path is resolved by the kernel
//! below the sandbox's own descriptor (`RESOLVE_BENEATH`), files are looked at before they are opened for
//! reading, and only plain files are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::Api;
use super::error::ApiError;
use super::types::{Bytes, FileData, FileInfo, TimeInfo};

/// At most this much of a file is read by one call; clients ask again.
const PIECE: u64 = 16 * 4096;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// No container has such a file.
    #[error("there is no file `{path}`; paths begin with `/containers/<id>`, or with a sandbox")]
    NotFound {
        /// The path.
        path: String,
    },
    /// It leads out of the sandbox.
    #[error("`{path}` leads out of its sandbox")]
    Outside {
        /// The path.
        path: String,
    },
    /// It has no content.
    #[error("`{path}` is not a plain file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// The kernel refuses.
    #[error("cannot {what} `{path}`")]
    System {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// The sandboxes there are, by the paths under which clients know them.
pub(super) struct Sandboxes(Vec<(PathBuf, PathBuf)>);

/// Files may be on a disk that hangs, so they are read on a thread that may.
pub(super) async fn on_a_thread<T: Send + 'static>(
    api: &Arc<Api>,
    work: impl FnOnce(&Sandboxes) -> Result<T, FileError> + Send + 'static,
) -> Result<T, ApiError> {
    let api = Arc::clone(api);
    let worked = tokio::task::spawn_blocking(move || work(&Sandboxes::of(&api))).await;
    match worked {
        Ok(result) => result.map_err(ApiError::from),
        Err(error) => Err(ApiError::of(axum::http::StatusCode::INTERNAL_SERVER_ERROR, &error)),
    }
}

impl Sandboxes {
    fn of(api: &Api) -> Self {
        let inspections =
            api.agent.containers().into_iter().filter_map(|summary| api.agent.inspect(&summary.id));
        Self::at(inspections.map(|inspection| (inspection.summary.id.to_string(), inspection.sandbox)))
    }

    /// Each under `/containers/<id>` and under its own path.
    fn at(sandboxes: impl Iterator<Item = (String, PathBuf)>) -> Self {
        Self(
            sandboxes
                .flat_map(|(id, sandbox)| {
                    [(Path::new("/containers").join(id), sandbox.clone()), (sandbox.clone(), sandbox)]
                })
                .collect(),
        )
    }

    /// The entries of a folder, sorted by path; none for a plain file. Symbolic links are shown, not followed.
    pub(super) fn list(&self, path: &str) -> Result<Vec<FileInfo>, FileError> {
        let found = self.find(path)?;
        match FileType::from_raw_mode(found.stat.st_mode) {
            FileType::Directory => {}
            _ => return Ok(Vec::new()),
        }
        let failed = |source: Errno| system("list", path, source);
        let directory = reopen(found.fd.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        let mut names = Names::default();
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            // What has gone since is not there.
            let Ok(stat) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let virtual_path = Path::new(path.trim_end_matches('/')).join(name);
            entries.push(info(&virtual_path, &stat, &mut names));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// A piece of a plain file, and how large the whole is.
    pub(super) fn read(&self, path: &str, offset: u64, length: Option<u64>) -> Result<FileData, FileError> {
        let found = self.find(path)?;
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NotAFile { path: path.to_owned() });
        }
        let failed = |source: Errno| system("read", path, source);
        let file = File::from(reopen(found.fd.as_fd(), OFlags::RDONLY).map_err(failed)?);
        let size = file.metadata().map_err(|source| system("read", path, source))?.len();
        let wanted = length.unwrap_or(u64::MAX).min(PIECE).min(size.saturating_sub(offset));
        let mut data = vec![0; usize::try_from(wanted).unwrap_or_default()];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(system("read", path, source)),
            }
        }
        data.truncate(filled);
        Ok(FileData { size, data: Bytes(data) })
    }

    /// What is at a path, opened without touching it.
    fn find(&self, path: &str) -> Result<Found, FileError> {
        let not_found = || FileError::NotFound { path: path.to_owned() };
        let asked = Path::new(path);
        if asked.components().any(|part| part == Component::ParentDir) || path.contains('\0') {
            return Err(FileError::Outside { path: path.to_owned() });
        }
        // The longest prefix, by whole components.
        let (rest, root) = self
            .0
            .iter()
            .filter_map(|(prefix, root)| Some((asked.strip_prefix(prefix).ok()?, root)))
            .min_by_key(|(rest, _)| rest.components().count())
            .ok_or_else(not_found)?;

        let failed = |source: Errno| match source {
            Errno::NOENT | Errno::NOTDIR => not_found(),
            Errno::XDEV | Errno::LOOP => FileError::Outside { path: path.to_owned() },
            other => system("open", path, other),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&root, rest, flags, Mode::empty(), resolve).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        Ok(Found { fd, stat })
    }
}

struct Found {
    fd: OwnedFd,
    stat: Stat,
}

/// Opens for reading what was only looked at. It is the very same file, whatever the path means by now.
fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

fn system(what: &'static str, path: &str, source: impl Into<io::Error>) -> FileError {
    FileError::System { what, path: path.to_owned(), source: source.into() }
}

fn info(path: &Path, stat: &Stat, names: &mut Names) -> FileInfo {
    let nanoseconds = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    FileInfo {
        path: path.to_string_lossy().into_owned(),
        nlink: i32::try_from(stat.st_nlink).ok(),
        size: u64::try_from(stat.st_size).ok(),
        mtime: i64::try_from(nanoseconds).ok().map(|nanoseconds| TimeInfo { nanoseconds }),
        mode: Some(stat.st_mode),
        uid: Some(names.user(stat.st_uid)),
        gid: Some(names.group(stat.st_gid)),
    }
}

/// Names of users and groups, each looked up once: that may ask a server.
#[derive(Default)]
struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    fn user(&mut self, uid: u32) -> String {
        let look_up = || nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
        self.users.entry(uid).or_insert_with(|| look_up().unwrap_or_else(|| uid.to_string())).clone()
    }

    fn group(&mut self, gid: u32) -> String {
        let look_up = || nix::unistd::Group::from_gid(gid.into()).ok().flatten().map(|group| group.name);
        self.groups.entry(gid).or_insert_with(|| look_up().unwrap_or_else(|| gid.to_string())).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct World {
        directory: tempfile::TempDir,
        sandboxes: Sandboxes,
    }

    /// A sandbox, something secret beside it, and a second sandbox whose name begins like the first.
    fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("web/logs")).unwrap();
        fs::create_dir(at("web2")).unwrap();
        fs::write(at("secret"), "secret").unwrap();
        fs::write(at("web/stdout"), "x".repeat(100_000)).unwrap();
        fs::write(at("web/logs/a"), "abc").unwrap();
        symlink("logs/a", at("web/inside")).unwrap();
        symlink("../secret", at("web/outside")).unwrap();
        symlink(at("secret"), at("web/absolute")).unwrap();
        symlink("/proc/self/root", at("web/magic")).unwrap();
        symlink("loop", at("web/loop")).unwrap();
        let made = rustix::fs::mknodat(CWD, at("web/fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        made.unwrap();
        let named = ["web", "web2"].map(|name| (name.to_owned(), at(name)));
        World { sandboxes: Sandboxes::at(named.into_iter()), directory }
    }

    #[test]
    fn a_file_is_read_piece_by_piece() {
        let world = world();
        let read = |offset, length| world.sandboxes.read("/containers/web/stdout", offset, length).unwrap();
        assert_eq!(read(0, None).data.0.len(), 65536);
        assert_eq!(read(65536, None).data.0.len(), 100_000 - 65536);
        assert_eq!((read(0, Some(0)).size, read(0, Some(0)).data.0.len()), (100_000, 0));
        assert_eq!(read(99_999, Some(5)).data.0, b"x");
        assert_eq!(read(u64::MAX, Some(u64::MAX)).data.0, b"");
        let own = world.directory.path().join("web/inside");
        assert_eq!(world.sandboxes.read(own.to_str().unwrap(), 1, None).unwrap().data.0, b"bc");
    }

    #[test]
    fn nothing_leads_out_of_a_sandbox() {
        let world = world();
        for path in
            ["outside", "absolute", "magic/etc/passwd", "loop", "../secret", "../web2", "logs/../../secret"]
        {
            let path = format!("/containers/web/{path}");
            let error = world.sandboxes.read(&path, 0, None).unwrap_err();
            assert!(matches!(error, FileError::Outside { .. }), "{path}: {error}");
            assert!(world.sandboxes.list(&path).is_err(), "{path}");
        }
        let beside = world.directory.path().join("secret");
        for path in [
            "/etc/passwd",
            "",
            "/",
            "/containers",
            "/containers/we",
            "/containers/webb",
            beside.to_str().unwrap(),
        ] {
            let error = world.sandboxes.read(path, 0, None).unwrap_err();
            assert!(matches!(error, FileError::NotFound { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn only_plain_files_are_opened() {
        let world = world();
        // Opening a pipe for reading would hang until somebody writes to it.
        for path in ["/containers/web/fifo", "/containers/web/logs", "/containers/web"] {
            let error = world.sandboxes.read(path, 0, None).unwrap_err();
            assert!(matches!(error, FileError::NotAFile { .. }), "{path}: {error}");
        }
        assert!(world.sandboxes.list("/containers/web/fifo").unwrap().is_empty());
    }

    #[test]
    fn a_folder_lists_what_is_in_it_by_virtual_path() {
        let world = world();
        let list = world.sandboxes.list("/containers/web/").unwrap();
        let paths: Vec<&str> = list.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths[0], "/containers/web/absolute");
        assert_eq!(paths.len(), 8);
        let stdout = list.iter().find(|entry| entry.path.ends_with("/stdout")).unwrap();
        assert_eq!(stdout.size, Some(100_000));
        assert_eq!(world.sandboxes.list(&paths[0].replace("absolute", "logs")).unwrap().len(), 1);
        assert!(world.sandboxes.list("/containers/web/stdout").unwrap().is_empty());
    }
}
