//! Copies of layers, for file systems that cannot be the upper layer of an overlay.
//!
//! The layers are those of whoever made the image: no link in them is followed, and nothing in the copy is found by a path
//! through one. It is not recursive, and what it does is bounded by the size of the layer.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cofferdam_linux::{foreign, tree};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, ftruncate, getxattr, linkat, listxattr, mkdirat, mknodat, openat, openat2,
    readlinkat, seek, setxattr, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// Directories in one another. Each takes two descriptors.
const MAX_DEPTH: usize = 256;

/// Size of the names, and of a value, of extended attributes.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Bytes that are copied before it is asked again whether the launch is cancelled.
const CHUNK: u64 = 16 << 20;

/// What the kernel reads in a layer, and nobody sees in the mounted overlay.
const OVERLAY: &[u8] = b"trusted.overlay.";
const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// A single name, and nothing behind a link.
const HERE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a layer was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A system call failed.
    #[error("cannot copy `{}`", path.display())]
    System {
        /// The path in the image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too many directories in one another.
    #[error("`{}` is in more than 256 directories; the backend `overlay` has no such limit", path.display())]
    Depth {
        /// The path in the image.
        path: PathBuf,
    },
    /// What a layer replaces or removes cannot be removed.
    #[error("cannot replace what is below")]
    Remove(#[from] tree::RemoveError),
}

/// Copies a layer over those below it, unless the launch is cancelled: then it fails with `ECANCELED`.
pub(super) fn layer(source: &Path, target: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<(), CopyError> {
    let failed = |source| CopyError::System { path: target.to_owned(), source };
    let open = |path: &Path| openat(CWD, path, LIST, Mode::empty()).map_err(|errno| failed(errno.into()));
    let (source, target) = (open(source)?, open(target)?);
    let root = target.try_clone().map_err(failed)?;
    let mut copy = Copy { root, links: HashMap::new(), is_cancelled };
    copy.run(Level::new(source, target, PathBuf::new()).map_err(|errno| failed(errno.into()))?)
}

/// A directory that is being copied.
struct Level {
    source: OwnedFd,
    target: OwnedFd,
    path: PathBuf,
    entries: Dir,
}

impl Level {
    fn new(source: OwnedFd, target: OwnedFd, path: PathBuf) -> Result<Self, Errno> {
        let entries = Dir::read_from(&source)?;
        Ok(Self { source, target, path, entries })
    }
}

struct Copy<'a> {
    is_cancelled: &'a dyn Fn() -> bool,
    root: OwnedFd,
    /// Files of the layer that have several names, with the path of the copy.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn run(&mut self, top: Level) -> Result<(), CopyError> {
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                let Level { source, target, path, .. } = level;
                times(source.as_fd(), target).map_err(|errno| system(path, errno))?;
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|errno| system(&level.path, errno))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = level.path.join(OsStr::from_bytes(name.to_bytes()));
            if let Some(below) = self.entry(level, name, &path)? {
                if levels.len() == MAX_DEPTH {
                    return Err(CopyError::Depth { path });
                }
                levels.push(below);
            }
        }
        Ok(())
    }

    /// Copies an entry. Returns a directory whose entries are to be copied.
    fn entry(&mut self, level: &Level, name: &CStr, path: &Path) -> Result<Option<Level>, CopyError> {
        let failed = |errno| system(path, errno);
        check(self.is_cancelled).map_err(failed)?;
        let Level { source, target, .. } = level;
        let found = statat(source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        let existing = match statat(target, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Some(FileType::from_raw_mode(found.st_mode)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        if kind == FileType::Directory {
            let from = openat2(source, name, LIST, Mode::empty(), HERE).map_err(failed)?;
            if existing.is_some_and(|kind| kind != FileType::Directory) || is_opaque(&from).map_err(failed)? {
                remove(target, name)?;
            }
            match mkdirat(target, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let to = openat2(target, name, LIST, Mode::empty(), HERE).map_err(failed)?;
            attributes(from.as_fd(), to.as_fd(), &found).map_err(failed)?;
            return Ok(Some(Level::new(from, to, path.to_owned()).map_err(failed)?));
        }
        if existing.is_some() {
            remove(target, name)?;
        }
        if kind == FileType::CharacterDevice && found.st_rdev == 0 {
            return Ok(None);
        }
        let identity = (found.st_dev, found.st_ino);
        if found.st_nlink > 1 {
            if let Some(known) = self.links.get(&identity) {
                let first = openat2(&self.root, known, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty(), HERE);
                let first = first.map_err(failed)?;
                linkat(CWD, descriptor(&first), target, name, AtFlags::SYMLINK_FOLLOW).map_err(failed)?;
                return Ok(None);
            }
            self.links.insert(identity, path.to_owned());
        }
        copy_file(source, target, name, &found, self.is_cancelled).map_err(failed)?;
        Ok(None)
    }
}

/// Copies anything but a directory.
fn copy_file(
    source: &OwnedFd,
    target: &OwnedFd,
    name: &CStr,
    found: &Stat,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(found.st_mode);
    let at = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat2(source, name, at, Mode::empty(), HERE)?;
    match kind {
        FileType::Symlink => symlinkat(readlinkat(&from, c"", Vec::new())?, target, name)?,
        FileType::RegularFile => {
            let content = foreign::reopen(&from, OFlags::RDONLY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let copy = openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_content(&content, &copy, found.st_size.cast_unsigned(), is_cancelled)?;
        }
        _ => mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, found.st_rdev)?,
    }
    let to = openat2(target, name, at, Mode::empty(), HERE)?;
    attributes(from.as_fd(), to.as_fd(), found)?;
    times(from.as_fd(), &to)
}

/// Copies the parts of a file with data, so that holes stay holes.
fn copy_content(
    from: &OwnedFd,
    to: &OwnedFd,
    size: u64,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(), Errno> {
    ftruncate(to, size)?;
    let (mut source, mut target) = (File::from(rustix::io::dup(from)?), File::from(rustix::io::dup(to)?));
    let mut end = 0;
    while end < size {
        let start = match seek(from, SeekFrom::Data(end)) {
            // The rest is a hole.
            Err(Errno::NXIO) => break,
            start => start?,
        };
        check(is_cancelled)?;
        end = seek(from, SeekFrom::Hole(start))?.min(start + CHUNK);
        seek(from, SeekFrom::Start(start))?;
        seek(to, SeekFrom::Start(start))?;
        let mut part = io::Read::take(&mut source, end - start);
        let copied = io::copy(&mut part, &mut target);
        copied.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    Ok(())
}

fn check(is_cancelled: &dyn Fn() -> bool) -> Result<(), Errno> {
    if is_cancelled() { Err(Errno::CANCELED) } else { Ok(()) }
}

/// Copies owner, permissions and extended attributes, in this order: each step would undo parts of the ones after it.
fn attributes(from: impl AsFd, to: impl AsFd, found: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    chownat(&to, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        chmodat(CWD, descriptor(&to), Mode::from_raw_mode(found.st_mode & 0o7777), AtFlags::empty())?;
    }
    let (from, to) = (descriptor(&from), descriptor(&to));
    let mut names = vec![0_u8; MAX_ATTRIBUTE];
    let length = match listxattr(&from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(OVERLAY) {
            continue;
        }
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut value = vec![0_u8; MAX_ATTRIBUTE];
        let length = getxattr(&from, &name, &mut value[..])?;
        setxattr(&to, &name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn times(from: impl AsFd, to: &OwnedFd) -> Result<(), Errno> {
    let found = statat(from, c"", AtFlags::EMPTY_PATH)?;
    let at = |tv_sec, nanoseconds: u64| Timespec { tv_sec, tv_nsec: nanoseconds.cast_signed() };
    let times = Timestamps {
        last_access: at(found.st_atime, found.st_atime_nsec),
        last_modification: at(found.st_mtime, found.st_mtime_nsec),
    };
    utimensat(to, c"", &times, AtFlags::EMPTY_PATH)
}

fn is_opaque(directory: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0_u8; 4];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes an entry of the copy with what is in it.
fn remove(directory: &OwnedFd, name: &CStr) -> Result<(), tree::RemoveError> {
    tree::remove(&Path::new(&descriptor(directory)).join(OsStr::from_bytes(name.to_bytes())))
}

/// A path that leads to what a descriptor refers to, and no further.
fn descriptor(of: impl AsFd) -> String {
    format!("/proc/self/fd/{}", of.as_fd().as_raw_fd())
}

fn system(path: &Path, errno: Errno) -> CopyError {
    CopyError::System { path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_copy_can_be_cancelled_before_each_entry_and_each_chunk() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir(&source).unwrap();
        let large = File::create(source.join("large")).unwrap();
        for chunk in 0..3 {
            large.write_all_at(b"x", chunk * CHUNK).unwrap();
        }
        fs::write(source.join("small"), b"y").unwrap();
        // Two entries, and three chunks and one.
        for cancel_at in 1..=7 {
            let target = directory.path().join(cancel_at.to_string());
            fs::create_dir(&target).unwrap();
            let checks = Cell::new(0);
            let is_cancelled = || {
                checks.set(checks.get() + 1);
                checks.get() == cancel_at
            };
            let outcome = layer(&source, &target, &is_cancelled);
            match cancel_at {
                7 => {
                    outcome.unwrap();
                    assert_eq!(fs::metadata(target.join("large")).unwrap().len(), 2 * CHUNK + 1);
                    assert_eq!(fs::read(target.join("small")).unwrap(), b"y");
                }
                _ => {
                    let Err(CopyError::System { source, .. }) = outcome else { panic!("{outcome:?}") };
                    assert_eq!(source.raw_os_error(), Some(Errno::CANCELED.raw_os_error()));
                    assert_eq!(checks.get(), cancel_at);
                }
            }
        }
    }
}
