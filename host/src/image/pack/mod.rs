//! Packs a directory into the archive of a layer.
//!
//! No link is followed, nothing is opened but directories and regular files, and what is mounted below the directory is not
//! part of it. The holes of files are not in the archive.

mod content;

use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cofferdam_linux::foreign;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, getxattr, listxattr, major, minor, openat,
    openat2, readlinkat, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use content::Content;

/// Directories in one another. Each takes a descriptor.
const MAX_DEPTH: usize = 256;

/// Size of the names, and of a value, of extended attributes.
const MAX_ATTRIBUTE: usize = 64 << 10;

const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is not part of a directory that is on another file system.
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// A directory that is being packed.
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    names: VecDeque<CString>,
}

/// Writes a directory as an archive, in the order of the names.
pub(super) fn pack(directory: &Path, output: impl Write) -> io::Result<()> {
    let top = openat(CWD, directory, LIST, Mode::empty())?;
    let mut builder = Builder::new(output);
    let found = statat(&top, c"", AtFlags::EMPTY_PATH)?;
    append(&mut builder, &top, Path::new("./"), &found, EntryType::Directory)?;
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut levels = vec![Level::new(top, PathBuf::new())?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop_front() else {
            levels.pop();
            continue;
        };
        let path = level.path.join(OsStr::from_bytes(name.to_bytes()));
        let at = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat2(&level.directory, &name, at, Mode::empty(), RESOLVE) {
            // Something is mounted on it.
            Err(Errno::XDEV) => continue,
            // It was removed meanwhile.
            Err(Errno::NOENT) => continue,
            found => found.map_err(|errno| at_path(&path, errno.into()))?,
        };
        let stat = statat(&found, c"", AtFlags::EMPTY_PATH)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryType::Directory,
            FileType::RegularFile => EntryType::Regular,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            // A socket means nothing without who listens on it.
            _ => continue,
        };
        let identity = (stat.st_dev, stat.st_ino);
        if kind != EntryType::Directory && stat.st_nlink > 1 {
            if let Some(first) = links.get(&identity) {
                let mut header = header(&stat, EntryType::Link);
                builder.append_link(&mut header, &path, first).map_err(|error| at_path(&path, error))?;
                continue;
            }
            links.insert(identity, path.clone());
        }
        append(&mut builder, &found, &path, &stat, kind).map_err(|error| at_path(&path, error))?;
        if kind == EntryType::Directory {
            if levels.len() == MAX_DEPTH {
                let message = format!("it is in more than {MAX_DEPTH} directories");
                return Err(at_path(&path, io::Error::other(message)));
            }
            let directory = foreign::reopen(&found, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|errno| at_path(&path, errno.into()))?;
            levels.push(Level::new(directory, path)?);
        }
    }
    builder.into_inner()?.flush()
}

impl Level {
    fn new(directory: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let name = entry?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Self { directory, path, names: names.into() })
    }
}

fn append(
    builder: &mut Builder<impl Write>,
    found: &OwnedFd,
    path: &Path,
    stat: &Stat,
    kind: EntryType,
) -> io::Result<()> {
    let content = match kind {
        // What is added meanwhile is not part of it.
        EntryType::Regular => Some(Content::new(File::from(foreign::reopen(found, OFlags::RDONLY)?), stat)?),
        _ => None,
    };
    let mut records = attributes(found)?;
    records.extend(content.iter().flat_map(Content::records));
    if !records.is_empty() {
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        builder.append_pax_extensions(records)?;
    }
    let mut header = header(stat, kind);
    match (kind, content) {
        (EntryType::Symlink, _) => {
            let target = readlinkat(found, c"", Vec::new())?;
            builder.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
        }
        (EntryType::Char | EntryType::Block, _) => {
            header.set_device_major(major(stat.st_rdev))?;
            header.set_device_minor(minor(stat.st_rdev))?;
            builder.append_data(&mut header, path, io::empty())
        }
        (_, Some(content)) => {
            header.set_size(content.size());
            builder.append_data(&mut header, path, content)
        }
        (_, None) => builder.append_data(&mut header, path, io::empty()),
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(stat.st_mtime.try_into().unwrap_or(0));
    header.set_size(0);
    header
}

/// Extended attributes as pax records. Those of overlayfs are marks of a mounted layer.
fn attributes(found: &OwnedFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let mut names = vec![0_u8; MAX_ATTRIBUTE];
    let length = match listxattr(&path, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name.starts_with("trusted.overlay.") {
            continue;
        }
        let mut value = vec![0_u8; MAX_ATTRIBUTE];
        let length = getxattr(&path, name, &mut value[..])?;
        value.truncate(length);
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    Ok(found)
}

fn at_path(path: &Path, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), format!("`{}`: {source}", path.display()))
}
