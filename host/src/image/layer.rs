//! Unpacks the archive of a layer.
//!
//! Whoever made it is not trusted. Every member is created in a directory that was opened below the root of the layer, in
//! whose path the kernel follows no absolute link and none that leads out; the member itself is never followed. What the
//! archive says of removed files is stored in the marks of overlayfs.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use cofferdam_linux::tree;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, ftruncate, linkat, makedev, mkdirat, mknodat, openat, openat2, setxattr, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::Limits;
use crate::archive::{Member, Members, Segment};

/// Maximum length of a path and of a name in it.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// Maximum length of the paths of all directories, which are kept until their times are set.
const MAX_DIRECTORY_BYTES: usize = 256 << 20;

/// Largest numbers of a device. mknod(2) takes some bits of larger ones.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

const BUFFER: usize = 256 << 10;

/// Prefix of the names of removed files, and the mark of a directory of which nothing below is seen.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Prefix of what only overlayfs itself may set.
const OVERLAY: &[u8] = b"trusted.overlay.";

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("it is not a complete tar archive")]
    Archive { source: io::Error },
    #[error("member `{}` {reason}", member.escape_ascii())]
    Member { member: Vec<u8>, reason: &'static str },
    #[error("member `{}` cannot be unpacked", member.escape_ascii())]
    System { member: Vec<u8>, source: io::Error },
    #[error("member `{}` cannot replace an earlier one", member.escape_ascii())]
    Replace { member: Vec<u8>, source: tree::RemoveError },
    #[error("it has more than {limit} bytes; `--max-size` is the limit")]
    TooLarge { limit: u64 },
    #[error(
        "its archive has more than {limit} bytes without compression; `--max-size` and `--max-files` limit that"
    )]
    TooLong { limit: u64 },
    #[error("it has more than {limit} files; `--max-files` is the limit")]
    TooMany { limit: u64 },
    #[error("the directory to unpack it into cannot be used")]
    Root { source: io::Error },
}

impl LayerError {
    /// Whether it is this machine that fails, not the archive. An archive can make many calls fail, but not for these reasons.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Root { .. } => true,
            Self::System { source, .. } | Self::Archive { source } => {
                use io::ErrorKind::{OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
                let is_known =
                    [OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull].contains(&source.kind());
                is_known || [libc::EIO, libc::EMFILE, libc::ENFILE].map(Some).contains(&source.raw_os_error())
            }
            _ => false,
        }
    }
}

/// Number of members, and of bytes in files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) members: u64,
    pub(crate) bytes: u64,
}

/// Unpacks the archive of a layer into an empty directory.
pub(crate) fn unpack(stream: impl Read, root: &Path, limits: &Limits) -> Result<Unpacked, LayerError> {
    let root = openat(CWD, root, DIRECTORY, Mode::empty())
        .map_err(|errno| LayerError::Root { source: errno.into() })?;
    let mut unpacking = Unpacking {
        root,
        parent: None,
        unpacked: Unpacked::default(),
        limits: limits.clone(),
        implied: 0,
        directories: Vec::new(),
        directory_bytes: 0,
        buffer: vec![0; BUFFER],
    };
    let mut members = Members::new(stream);
    let damaged = |source| LayerError::Archive { source };
    while let Some(member) = members.next().map_err(damaged)? {
        unpacking.unpacked.members += 1;
        unpacking.check_files()?;
        unpacking.member(member, &mut members)?;
        // It may have created directories that the archive has no member for.
        unpacking.check_files()?;
    }
    members.finish().map_err(damaged)?;
    unpacking.set_times()?;
    Ok(unpacking.unpacked)
}

/// A path of the layer, relative to its root.
struct Place {
    parent: PathBuf,
    /// `None` for the root itself.
    name: Option<OsString>,
}

struct Unpacking {
    root: OwnedFd,
    /// The directory of the last member: most members are in the same as the one before.
    parent: Option<(PathBuf, OwnedFd)>,
    unpacked: Unpacked,
    limits: Limits,
    /// Directories that were created although the archive has no member for them.
    implied: u64,
    /// Modification times of directories, which are set when all their entries exist.
    directories: Vec<(PathBuf, (i64, u32))>,
    /// Bytes of their paths.
    directory_bytes: usize,
    buffer: Vec<u8>,
}

impl Unpacking {
    fn member<R: Read>(&mut self, member: Member, members: &mut Members<R>) -> Result<(), LayerError> {
        let name = member.path.as_os_str().as_bytes().to_vec();
        let refused = |reason| LayerError::Member { member: name.clone(), reason };
        let system = |source: io::Error| LayerError::System { member: name.clone(), source };
        let failed = |errno: Errno| system(errno.into());
        let place = place(&member.path).map_err(refused)?;
        let Some(last) = &place.name else {
            // The root: nothing else than a directory.
            if member.kind == EntryType::Directory {
                self.attributes(&self.root, &member, FileType::Directory).map_err(system)?;
                self.directories.push((PathBuf::new(), member.modified));
            }
            return Ok(());
        };
        let parent = self.open_parent(&place.parent).map_err(|errno| match errno {
            Errno::XDEV | Errno::LOOP => refused("leads out of the layer, or through an absolute link"),
            Errno::NOTDIR => refused("is below something that is not a directory"),
            errno => failed(errno),
        })?;
        if last.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&parent, last, &name);
        }
        let kind = match member.kind {
            EntryType::Directory => {
                self.directory(&parent, last, &member, &name)?;
                let path = place.parent.join(last);
                self.directory_bytes += path.as_os_str().len();
                if self.directory_bytes > MAX_DIRECTORY_BYTES {
                    return Err(refused(
                        "is a directory, and the paths of all directories have more than 256 MiB",
                    ));
                }
                self.directories.push((path, member.modified));
                return Ok(());
            }
            EntryType::Link => {
                let original = self.find_original(&member.link).map_err(|reason| match reason {
                    Original::Refused(reason) => refused(reason),
                    Original::System(errno) => failed(errno),
                })?;
                // A link to itself must not remove it.
                if is_same(&original, &parent, last).map_err(failed)? {
                    return Ok(());
                }
                self.make_space(&parent, last, &name)?;
                let path = descriptor(&original);
                return linkat(CWD, path, &parent, last, AtFlags::SYMLINK_FOLLOW).map_err(failed);
            }
            EntryType::Regular => FileType::RegularFile,
            EntryType::Symlink => FileType::Symlink,
            EntryType::Char if member.device == (0, 0) => {
                return Err(refused("is the device 0:0, which marks what is removed in a mounted layer"));
            }
            EntryType::Char | EntryType::Block
                if member.device.0 > MAX_MAJOR || member.device.1 > MAX_MINOR =>
            {
                return Err(refused("is a device with larger numbers than the kernel has"));
            }
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            EntryType::Fifo => FileType::Fifo,
            _ => return Err(refused("is neither a file, a directory, a link nor a device")),
        };
        self.make_space(&parent, last, &name)?;
        match kind {
            FileType::RegularFile => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&parent, last, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                let mut file = File::from(file);
                self.content(&member, members, &mut file, &name)?;
                self.attributes(&file, &member, kind).map_err(system)?;
                return set_times(&file, member.modified).map_err(failed);
            }
            FileType::Symlink if member.link.as_os_str().is_empty() => {
                return Err(refused("is a link without a target"));
            }
            FileType::Symlink => symlinkat(&member.link, &parent, last).map_err(failed)?,
            kind => {
                let device = match kind {
                    FileType::Fifo => 0,
                    _ => makedev(member.device.0, member.device.1),
                };
                mknodat(&parent, last, kind, Mode::RUSR | Mode::WUSR, device).map_err(failed)?;
            }
        }
        let made = find(&parent, last).map_err(failed)?;
        self.attributes(&made, &member, kind).map_err(system)?;
        set_times(&made, member.modified).map_err(failed)
    }

    /// Writes the content of a file; the holes of a sparse one stay holes.
    fn content<R: Read>(
        &mut self,
        member: &Member,
        members: &mut Members<R>,
        file: &mut File,
        name: &[u8],
    ) -> Result<(), LayerError> {
        let damaged = |source| LayerError::Archive { source };
        let system = |source: io::Error| LayerError::System { member: name.to_vec(), source };
        let mut content = members.content(member);
        let Some(sparse) = member.sparse.clone() else {
            let Self { buffer, unpacked, limits, .. } = self;
            return copy(&mut content, buffer, unpacked, limits, |bytes| file.write_all(bytes), system);
        };
        let size = sparse.size();
        let segments = sparse.segments(&mut content).map_err(damaged)?;
        ftruncate(&*file, size).map_err(|errno| system(errno.into()))?;
        for Segment { offset, length } in segments {
            let mut position = offset;
            let Self { buffer, unpacked, limits, .. } = self;
            let write = |bytes: &[u8]| {
                file.write_all_at(bytes, position)?;
                position += bytes.len() as u64;
                Ok(())
            };
            let part = (&mut content).take(length);
            copy(part, buffer, unpacked, limits, write, system)?;
            if position != offset + length {
                return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
            }
            let padding = length.next_multiple_of(512) - length;
            io::copy(&mut (&mut content).take(padding), &mut io::sink()).map_err(damaged)?;
        }
        Ok(())
    }

    /// Creates a directory, or takes over one that an earlier member has created.
    fn directory(
        &mut self,
        parent: &OwnedFd,
        last: &OsStr,
        member: &Member,
        name: &[u8],
    ) -> Result<(), LayerError> {
        let system = |source: io::Error| LayerError::System { member: name.to_vec(), source };
        let failed = |errno: Errno| system(errno.into());
        let mut hides = false;
        match kind_of(parent, last).map_err(failed)? {
            Some(Kind::Directory) => {}
            found => {
                // Of a directory that was removed and is there again, nothing below is seen.
                hides = found == Some(Kind::Whiteout);
                if found.is_some() {
                    self.make_space(parent, last, name)?;
                }
                mkdirat(parent, last, Mode::RWXU).map_err(failed)?;
            }
        }
        let made =
            openat2(parent, last, DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
        if hides {
            make_opaque(&made).map_err(failed)?;
        }
        self.attributes(&made, member, FileType::Directory).map_err(system)
    }

    /// Stores that something of the layers below is removed.
    fn whiteout(&mut self, parent: &OwnedFd, last: &OsStr, name: &[u8]) -> Result<(), LayerError> {
        let failed = |errno: Errno| LayerError::System { member: name.to_vec(), source: errno.into() };
        if last.as_bytes() == OPAQUE {
            return make_opaque(parent).map_err(failed);
        }
        let removed = &last.as_bytes()[WHITEOUT.len()..];
        if removed.starts_with(WHITEOUT) {
            // Metadata of the file system that Docker used first.
            return Ok(());
        }
        if [&b""[..], b".", b".."].contains(&removed) {
            return Err(LayerError::Member { member: name.to_vec(), reason: "removes no file" });
        }
        let removed = OsStr::from_bytes(removed);
        match kind_of(parent, removed).map_err(failed)? {
            // What the same layer has is not removed, only what is below.
            Some(Kind::Directory) => {
                let directory = openat2(parent, removed, DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS)
                    .map_err(failed)?;
                make_opaque(&directory).map_err(failed)
            }
            Some(_) => Ok(()),
            None => mknodat(parent, removed, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed),
        }
    }

    /// Removes what an earlier member of this name has created.
    fn make_space(&mut self, parent: &OwnedFd, last: &OsStr, name: &[u8]) -> Result<(), LayerError> {
        match unlinkat(parent, last, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => {
                // The directory of the last member may have been reached through it.
                self.parent = None;
                match removed {
                    Ok(()) => Ok(()),
                    Err(Errno::ISDIR) => {
                        let path = Path::new(&descriptor(parent)).join(last);
                        tree::remove(&path)
                            .map_err(|source| LayerError::Replace { member: name.to_vec(), source })
                    }
                    Err(errno) => Err(LayerError::System { member: name.to_vec(), source: errno.into() }),
                }
            }
        }
    }

    /// Opens the directory of a member. What is missing of it is created, as most tools add no member for it.
    fn open_parent(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        if let Some((known, directory)) = &self.parent
            && known == path
        {
            return rustix::io::fcntl_dupfd_cloexec(directory, 0);
        }
        let opened = match open_below(&self.root, path) {
            Err(Errno::NOENT) => self.create_parents(path)?,
            opened => opened?,
        };
        self.parent = Some((path.to_owned(), rustix::io::fcntl_dupfd_cloexec(&opened, 0)?));
        Ok(opened)
    }

    fn check_files(&self) -> Result<(), LayerError> {
        match self.unpacked.members + self.implied > self.limits.files {
            true => Err(LayerError::TooMany { limit: self.limits.files }),
            false => Ok(()),
        }
    }

    fn create_parents(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut here = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
        let mut reached = PathBuf::new();
        for component in path.components() {
            reached.push(component);
            here = match open_below(&self.root, &reached) {
                Err(Errno::NOENT) => {
                    let name = component.as_os_str();
                    let hides = kind_of(&here, name)? == Some(Kind::Whiteout);
                    if hides {
                        unlinkat(&here, name, AtFlags::empty())?;
                    }
                    mkdirat(&here, name, Mode::from_raw_mode(0o755))?;
                    self.implied += 1;
                    let made = openat2(&here, name, DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
                    if hides {
                        make_opaque(&made)?;
                    }
                    made
                }
                opened => opened?,
            };
        }
        Ok(here)
    }

    /// Finds the file that a hard link is another name of.
    fn find_original(&self, target: &Path) -> Result<OwnedFd, Original> {
        let Place { parent, name: Some(name) } = place(target).map_err(Original::Refused)? else {
            return Err(Original::Refused("is a hard link without a target"));
        };
        let missing = Original::Refused("is a hard link to a file that the layer does not have");
        let found = open_below(&self.root, &parent).and_then(|parent| find(&parent, &name));
        let found = match found {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing),
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(Original::Refused("is a hard link that leads out of the layer"));
            }
            found => found.map_err(Original::System)?,
        };
        let stat = statat(&found, c"", AtFlags::EMPTY_PATH).map_err(Original::System)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Err(Original::Refused("is a hard link to a directory")),
            FileType::CharacterDevice if stat.st_rdev == 0 => Err(missing),
            _ => Ok(found),
        }
    }

    /// Sets owner, permissions and extended attributes, in this order: each step would undo parts of the ones after it.
    fn attributes(&self, of: impl AsFd, member: &Member, kind: FileType) -> io::Result<()> {
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(member.uid), id(member.gid)) else {
            return Err(io::Error::other(
                "its owner is not a user and a group; the largest number is 4294967294",
            ));
        };
        chownat(&of, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
        if kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(member.mode & 0o7777);
            chmodat(CWD, descriptor(&of), mode, AtFlags::empty())?;
        }
        for (name, value) in &member.attributes {
            if name.starts_with(OVERLAY) {
                let name = name.escape_ascii();
                return Err(io::Error::other(format!("it sets `{name}`, which is up to the kernel")));
            }
            let name = CString::new(name.as_slice())?;
            match setxattr(descriptor(&of), &name, value, XattrFlags::empty()) {
                // Labels of another system, or lists that this file system does not have.
                Err(Errno::NOTSUP) if name.as_bytes() != b"security.capability" => {}
                set => set?,
            }
        }
        Ok(())
    }

    /// Sets the times of directories. One that was replaced meanwhile has no time to set.
    fn set_times(&self) -> Result<(), LayerError> {
        for (path, modified) in self.directories.iter().rev() {
            let opened = match open_below(&self.root, path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => continue,
                opened => opened,
            };
            opened.and_then(|directory| set_times(&directory, *modified)).map_err(|errno| {
                LayerError::System { member: path.as_os_str().as_bytes().to_vec(), source: errno.into() }
            })?;
        }
        Ok(())
    }
}

/// Why a hard link has no file.
enum Original {
    Refused(&'static str),
    System(Errno),
}

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Whiteout,
    Other,
}

fn kind_of(directory: &OwnedFd, name: &OsStr) -> Result<Option<Kind>, Errno> {
    let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        found => found?,
    };
    Ok(Some(match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::CharacterDevice if found.st_rdev == 0 => Kind::Whiteout,
        _ => Kind::Other,
    }))
}

/// The place of a member. Paths are relative to the root of the layer, whatever they begin with.
fn place(path: &Path) -> Result<Place, &'static str> {
    if path.as_os_str().len() > MAX_PATH {
        return Err("has a path of more than 4095 bytes");
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME => {
                return Err("has a name of more than 255 bytes");
            }
            Component::Normal(name) if name.as_bytes().contains(&0) => return Err("has a NUL in its path"),
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err("has `..` in its path"),
        }
    }
    let name = clean.file_name().map(OsStr::to_owned);
    clean.pop();
    Ok(Place { parent: clean, name })
}

/// Opens a directory below the root of the layer.
fn open_below(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn find(directory: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

fn is_same(original: &OwnedFd, directory: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    let original = statat(original, c"", AtFlags::EMPTY_PATH)?;
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(false),
        found => found.map(|found| (found.st_dev, found.st_ino) == (original.st_dev, original.st_ino)),
    }
}

fn make_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(directory, c"trusted.overlay.opaque", b"y", XattrFlags::empty())
}

fn set_times(of: impl AsFd, (seconds, nanoseconds): (i64, u32)) -> Result<(), Errno> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(of, c"", &times, AtFlags::EMPTY_PATH)
}

/// A path that leads to what a descriptor refers to, and no further.
fn descriptor(of: impl AsFd) -> String {
    format!("/proc/self/fd/{}", of.as_fd().as_raw_fd())
}

/// Copies content within the limits.
fn copy(
    mut from: impl Read,
    buffer: &mut [u8],
    unpacked: &mut Unpacked,
    limits: &Limits,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
    failed: impl Fn(io::Error) -> LayerError,
) -> Result<(), LayerError> {
    loop {
        let count = match from.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(LayerError::Archive { source }),
        };
        unpacked.bytes += count as u64;
        if unpacked.bytes > limits.bytes {
            return Err(LayerError::TooLarge { limit: limits.bytes });
        }
        write(&buffer[..count]).map_err(&failed)?;
    }
}
