//! The files of an OCI layout or of an archive of `docker save`: in a directory, or in a tar archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use cofferdam_linux::foreign::{self, Resolve};
use tar::EntryType;

use crate::archive::Members;

/// An archive with more members contains no images but a root file system.
const MAX_MEMBERS: usize = 10_000;

/// Links that are followed from a name to a file.
const MAX_LINKS: usize = 8;

/// Files by name.
pub(super) enum Layout {
    Directory(OwnedFd),
    Archive { file: File, members: HashMap<PathBuf, Entry> },
}

/// A member of an archive.
pub(super) enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    /// Old versions of Docker link layers that several images have.
    Link(PathBuf),
}

impl Layout {
    /// The layout in a directory.
    pub(super) fn directory(path: &Path) -> io::Result<Self> {
        Ok(Self::Directory(foreign::directory(path)?))
    }

    /// The layout in an archive without compression. `None` if it has more members than one.
    pub(super) fn archive(file: File) -> io::Result<Option<Self>> {
        let mut found = HashMap::new();
        let mut members = Members::new(&file);
        while let Some(member) = members.next()? {
            if found.len() == MAX_MEMBERS {
                return Ok(None);
            }
            let offset = members.position();
            let entry = match member.kind {
                EntryType::Regular => Some(Entry::File { offset, size: member.size }),
                EntryType::Symlink => {
                    let directory = member.path.parent().unwrap_or(Path::new(""));
                    Some(Entry::Link(clean(&directory.join(&member.link))))
                }
                EntryType::Link => Some(Entry::Link(clean(&member.link))),
                _ => None,
            };
            found.extend(entry.map(|entry| (clean(&member.path), entry)));
            members.skip_with(|file, count| {
                let count = i64::try_from(count).map_err(io::Error::other)?;
                file.seek(SeekFrom::Current(count)).map(drop)
            })?;
        }
        Ok(Some(Self::Archive { file, members: found }))
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// Opens a file. Returns its size as well.
    pub(super) fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send + '_>, u64)> {
        match self {
            Self::Directory(directory) => {
                let found = foreign::find(directory, Path::new(name), Resolve::Beneath);
                let file = found.and_then(foreign::open_regular).map_err(|error| match error {
                    foreign::OpenError::System(source) => source,
                    other => io::Error::other(other),
                })?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Archive { file, members } => {
                let mut path = clean(Path::new(name));
                for _ in 0..MAX_LINKS {
                    match members.get(&path) {
                        Some(Entry::File { offset, size }) => {
                            return Ok((Box::new(Part { file, offset: *offset, left: *size }), *size));
                        }
                        Some(Entry::Link(target)) => path = target.clone(),
                        None => break,
                    }
                }
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    /// Reads a file of limited size.
    pub(super) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.0.take(limit + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > limit {
            true => Err(io::Error::other(format!("it has more than {limit} bytes"))),
            false => Ok(bytes),
        }
    }
}

/// A part of a file, which others can read as well.
struct Part<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..limit], self.offset)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is not complete"));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A path without `.` and `..`, relative to the top of the archive.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if !name.as_bytes().is_empty() => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}
