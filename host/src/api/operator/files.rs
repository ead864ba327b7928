//! The file service: access to the sandboxes of containers, and nothing else.
//!
//! A sandbox is written by its container, so nothing in it is trusted. The kernel resolves every path beneath the
//! sandbox's own descriptor (`RESOLVE_BENEATH`), and a file is opened for reading only after it is known to be a
//! regular file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::http::StatusCode;
use cofferdam_core::model::view::{FileId, Logs};
use cofferdam_linux::foreign;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::ApiError;
use super::types::{Bytes, FileData, FileInfo, TimeInfo};
use crate::api::context::ApiContext;

/// Largest result of one call; clients continue at the next offset.
const MAX_READ: u64 = 64 << 10;

/// Largest number of entries of a directory that is listed.
const MAX_ENTRIES: usize = 1 << 16;

/// Why a file cannot be listed or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// There is no such file.
    #[error("there is no file `{path}`; paths begin with `/containers/<id>` or the path of a sandbox")]
    NotFound {
        /// The path.
        path: String,
    },
    /// The path leaves the sandbox.
    #[error("`{path}` is outside of the sandbox")]
    Outside {
        /// The path.
        path: String,
    },
    /// Not the file that the agent opened for the output of a container.
    #[error("`{path}` is not the file that the agent opened for the output; the container has put it there")]
    Replaced {
        /// The path.
        path: String,
    },
    /// A directory has more entries than are listed.
    #[error("`{path}` has more than {MAX_ENTRIES} entries, which is the limit of a list")]
    TooManyEntries {
        /// The path.
        path: String,
    },
    /// Not a regular file.
    #[error("`{path}` is not a regular file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// A system call failed.
    #[error("cannot {action} `{path}`")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        let status = match error {
            FileError::NotFound { .. } => StatusCode::NOT_FOUND,
            FileError::Outside { .. }
            | FileError::NotAFile { .. }
            | FileError::Replaced { .. }
            | FileError::TooManyEntries { .. } => StatusCode::BAD_REQUEST,
            FileError::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, &error)
    }
}

/// All sandboxes.
pub(super) struct Sandboxes {
    /// Pairs of virtual path and directory.
    directories: Vec<(PathBuf, PathBuf)>,
    /// The files that the agent opened for the output of containers, by their paths on the host.
    logs: HashMap<PathBuf, FileId>,
}

/// Runs file operations on a thread that may block, as a disk may hang.
pub(super) async fn run_blocking<T: Send + 'static>(
    context: &Arc<ApiContext>,
    operation: impl FnOnce(&Sandboxes) -> Result<T, FileError> + Send + 'static,
) -> Result<T, ApiError> {
    let shared = Arc::clone(context);
    match context.files.run(move || operation(&Sandboxes::of(&shared))).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error)),
    }
}

impl Sandboxes {
    fn of(context: &ApiContext) -> Self {
        let agent = &context.agent;
        let mut logs = HashMap::new();
        let inspections = agent.containers().into_iter().filter_map(|summary| agent.inspect(&summary.id));
        let directories = inspections.map(|inspection| {
            let Logs { stdout, stderr, stdout_file, stderr_file, .. } = inspection.logs;
            logs.extend(stdout.zip(stdout_file));
            logs.extend(stderr.zip(stderr_file));
            (inspection.summary.id.to_string(), inspection.sandbox)
        });
        let found = Self::new(directories);
        Self { logs, ..found }
    }

    /// Each sandbox is known as `/containers/<id>` and by its own path.
    fn new(sandboxes: impl Iterator<Item = (String, PathBuf)>) -> Self {
        let directories = sandboxes.flat_map(|(id, sandbox)| {
            [(Path::new("/containers").join(id), sandbox.clone()), (sandbox.clone(), sandbox)]
        });
        Self { directories: directories.collect(), logs: HashMap::new() }
    }

    /// The entries of a directory, sorted by path; none for a file. Symbolic links are listed, not followed.
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
            // It may have been removed in the meantime.
            let Ok(stat) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let virtual_path = Path::new(path.trim_end_matches('/')).join(name);
            entries.push(info(&virtual_path, &stat, &mut names));
            if entries.len() > MAX_ENTRIES {
                return Err(FileError::TooManyEntries { path: path.to_owned() });
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// Pairs of virtual path and directory.
    pub(super) fn directories(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.directories.iter().map(|(path, directory)| (path.as_path(), directory.as_path()))
    }

    /// Opens a regular file.
    pub(super) fn open(&self, path: &str) -> Result<OpenedFile, FileError> {
        let found = self.find(path)?;
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NotAFile { path: path.to_owned() });
        }
        let failed = |source: Errno| system("read", path, source);
        let file = File::from(reopen(found.fd.as_fd(), OFlags::RDONLY).map_err(failed)?);
        let size = file.metadata().map_err(|source| system("read", path, source))?.len();
        Ok(OpenedFile { file, size })
    }

    /// Part of a regular file, and the size of the whole.
    pub(super) fn read(&self, path: &str, offset: u64, length: Option<u64>) -> Result<FileData, FileError> {
        let OpenedFile { file, size } = self.open(path)?;
        let wanted = length.unwrap_or(u64::MAX).min(MAX_READ).min(size.saturating_sub(offset));
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

    /// Opens a path with `O_PATH`, which has no effect on the file.
    fn find(&self, path: &str) -> Result<Found, FileError> {
        let not_found = || FileError::NotFound { path: path.to_owned() };
        let requested = Path::new(path);
        if requested.components().any(|part| part == Component::ParentDir) || path.contains('\0') {
            return Err(FileError::Outside { path: path.to_owned() });
        }
        // The longest matching prefix.
        let (rest, root) = self
            .directories
            .iter()
            .filter_map(|(prefix, root)| Some((requested.strip_prefix(prefix).ok()?, root)))
            .min_by_key(|(rest, _)| rest.components().count())
            .ok_or_else(not_found)?;

        let host_path = root.join(rest);
        let failed = |source: Errno| match source {
            // No file has a name that is too long.
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => not_found(),
            Errno::XDEV | Errno::LOOP => FileError::Outside { path: path.to_owned() },
            other => system("open", path, other),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = foreign::open_resolved(&root, rest, flags, resolve).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        match self.logs.get(&host_path) {
            Some(log) if *log != (FileId { device: stat.st_dev, inode: stat.st_ino }) => {
                Err(FileError::Replaced { path: path.to_owned() })
            }
            _ => Ok(Found { fd, stat }),
        }
    }
}

/// A file that is read.
pub(super) struct OpenedFile {
    pub(super) file: File,
    /// Its size when it was opened.
    pub(super) size: u64,
}

struct Found {
    fd: OwnedFd,
    stat: Stat,
}

/// Opens an `O_PATH` descriptor for reading. Goes through the descriptor, so it is the same file even if the path
/// has been replaced.
fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

fn system(action: &'static str, path: &str, source: impl Into<io::Error>) -> FileError {
    FileError::System { action, path: path.to_owned(), source: source.into() }
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

/// Names of users and groups. Each is looked up once, as a lookup may involve a server.
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

    /// A sandbox, a secret file next to it, and a sandbox whose name has the first one as a prefix.
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
        let created = rustix::fs::mknodat(CWD, at("web/fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        created.unwrap();
        let named = ["web", "web2"].map(|name| (name.to_owned(), at(name)));
        World { sandboxes: Sandboxes::new(named.into_iter()), directory }
    }

    #[test]
    fn a_file_is_read_in_parts() {
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
    fn no_path_leaves_a_sandbox() {
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
            &format!("/containers/web/{}", "x".repeat(300)),
            &format!("/containers/{}", "x/".repeat(5000)),
            beside.to_str().unwrap(),
        ] {
            let error = world.sandboxes.read(path, 0, None).unwrap_err();
            assert!(matches!(error, FileError::NotFound { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let world = world();
        // Opening a pipe for reading would block until it has a writer.
        for path in ["/containers/web/fifo", "/containers/web/logs", "/containers/web"] {
            let error = world.sandboxes.read(path, 0, None).unwrap_err();
            assert!(matches!(error, FileError::NotAFile { .. }), "{path}: {error}");
        }
        assert!(world.sandboxes.list("/containers/web/fifo").unwrap().is_empty());
    }

    #[test]
    fn a_directory_is_listed_by_virtual_path() {
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
