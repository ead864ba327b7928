//! Unpacks untrusted archives.
//!
//! Members are created through the sandbox's descriptor, never through a symbolic link, and belong to the container's
//! user. An archive with members other than files, directories and links is rejected.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use super::copy::{Allowance, Copier, CopyError, LimitExceeded, LimitedReader};
use super::item::Compression;
use super::sandbox::{Sandbox, SandboxError};
use super::sandbox_path::{InvalidPath, SandboxPath};
use crate::archive::Sparse;
use cofferdam_core::config::FetchLimits;

/// Size of a header.
const BLOCK: usize = 512;

/// Where a header has the type of the member, and its size.
const TYPE: usize = 156;
const SIZE: Range<usize> = 124..136;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("it is not a complete tar archive")]
    Archive { source: io::Error },
    #[error("member `{}` cannot be unpacked", member.display())]
    Copy { member: PathBuf, source: CopyError },
    #[error("a member has an invalid path")]
    Path(#[from] InvalidPath),
    #[error("member `{}` is {kind}; only files, directories and links are unpacked", member.display())]
    Kind { member: PathBuf, kind: String },
    #[error("member `{}` is a link without a target", member.display())]
    NoTarget { member: PathBuf },
    #[error("it has more than {limit} members; `max_files` of `[fetch]` is the limit")]
    TooManyMembers { limit: u64 },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl UnpackError {
    /// Whether the archive is at fault, and not what it is unpacked to or a limit.
    pub(super) fn is_of_content(&self) -> bool {
        match self {
            Self::Archive { source } | Self::Copy { source: CopyError::Read { source }, .. } => {
                !LimitExceeded::is_cause_of(source)
            }
            Self::Copy { .. } => false,
            Self::TooManyMembers { .. } | Self::Sandbox(_) => false,
            _ => true,
        }
    }
}

/// Number of members, and of bytes in files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) members: u64,
    pub(super) bytes: u64,
}

/// Metadata of a directory, which is set when all its entries exist.
pub(super) struct DirectoryMetadata {
    pub(super) name: SandboxPath,
    pub(super) mode: u32,
    pub(super) seconds: i64,
}

/// Unpacks a tar archive into the sandbox.
pub(super) fn untar(
    archive: &File,
    compression: Compression,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    limits: &FetchLimits,
) -> Result<Unpacked, UnpackError> {
    let size = archive.metadata().map_err(|source| UnpackError::Archive { source })?.len();
    let unpacking = Unpacking {
        sandbox,
        contents: copier.contents(size, limits.ratio),
        copier,
        max_members: limits.files,
        directories: Vec::new(),
    };
    // Reading data that is skipped takes time as well, so the limit of the contents also applies to the stream.
    let stream = unpacking.contents.clone();
    unpacking.members(LimitedReader::new(compression.decompress(BufReader::new(archive)), stream))
}

/// State of unpacking one archive.
struct Unpacking<'a> {
    sandbox: &'a mut Sandbox,
    copier: &'a mut Copier,
    /// What may be written to files.
    contents: Allowance,
    max_members: u64,
    directories: Vec<DirectoryMetadata>,
}

impl Unpacking<'_> {
    fn members(mut self, mut stream: impl Read) -> Result<Unpacked, UnpackError> {
        let damaged = |source| UnpackError::Archive { source };
        let mut unpacked = Unpacked::default();
        let first = first_block(&mut stream).map_err(damaged)?;
        let mut stream = first.as_slice().chain(stream);
        let mut archive = Archive::new(&mut stream);
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            unpacked.members += 1;
            if unpacked.members > self.max_members {
                return Err(UnpackError::TooManyMembers { limit: self.max_members });
            }
            unpacked.bytes += self.member(&mut entry)?;
        }
        // Read to the end, where a compressed archive has its checksum.
        io::copy(&mut stream, &mut io::sink()).map_err(damaged)?;
        // In reverse, as a change within a directory changes its modification time.
        for DirectoryMetadata { name, mode, seconds } in self.directories.into_iter().rev() {
            self.sandbox.finish_directory(&name, mode, seconds)?;
        }
        Ok(unpacked)
    }

    /// Unpacks one member. Returns the number of bytes of a file.
    fn member(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<u64, UnpackError> {
        let damaged = |source| UnpackError::Archive { source };
        let kind = match entry.header().entry_type() {
            // Old archives have no type for directories.
            EntryType::Regular if entry.path_bytes().ends_with(b"/") => EntryType::Directory,
            // A directory of an incremental archive of GNU tar; its data is a list of names.
            kind if kind.as_byte() == b'D' => EntryType::Directory,
            kind => kind,
        };
        if kind.is_pax_global_extensions() {
            // Metadata of the archive.
            return Ok(0);
        }
        let sparse = Sparse::of(entry).map_err(damaged)?;
        let path = match sparse.as_ref().and_then(Sparse::name) {
            Some(name) => name.to_owned(),
            None => Path::new(OsStr::from_bytes(&entry.path_bytes())).to_owned(),
        };
        if kind.is_dir() && is_root(&path) {
            // The archive must not change the permissions of the sandbox.
            return Ok(0);
        }
        let name = SandboxPath::parse(&path)?;
        let mode = entry.header().mode().map_err(damaged)?;
        let seconds = entry.header().mtime().map_err(damaged)?.try_into().unwrap_or(i64::MAX);
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut draft = self.sandbox.draft(&name)?;
                let copied = match sparse {
                    Some(sparse) => {
                        let content = sparse.read(entry).map_err(damaged)?;
                        self.copier.unpack(&mut self.contents, content, &mut draft.file)
                    }
                    None => self.copier.unpack(&mut self.contents, entry, &mut draft.file),
                };
                let bytes = copied.map_err(|source| UnpackError::Copy { member: path, source })?;
                draft.place(mode, Some(seconds))?;
                return Ok(bytes);
            }
            EntryType::Directory => {
                self.sandbox.directory(name.as_path())?;
                // Its owner must be able to remove its entries.
                self.directories.push(DirectoryMetadata { name, mode: mode | 0o700, seconds });
            }
            EntryType::Symlink => self.sandbox.symbolic_link(&name, &target(entry, &path)?)?,
            EntryType::Link => {
                self.sandbox.hard_link(&name, &SandboxPath::parse(&target(entry, &path)?)?)?;
            }
            kind => return Err(UnpackError::Kind { member: path, kind: describe(kind) }),
        }
        Ok(0)
    }
}

/// The first block of an archive, unless that is the label with which GNU tar begins it. The fields of a label may be
/// empty, which the library refuses.
fn first_block(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(BLOCK);
    stream.take(BLOCK as u64).read_to_end(&mut block)?;
    let is_label = block.get(TYPE) == Some(&b'V') && block.get(SIZE).is_some_and(is_zero);
    Ok(if is_label { Vec::new() } else { block })
}

/// Whether a field of a header is empty, or the number zero.
fn is_zero(field: &[u8]) -> bool {
    field.iter().all(|byte| b"\0 0".contains(byte))
}

/// Target of a link.
fn target(entry: &Entry<'_, impl Read>, member: &Path) -> Result<PathBuf, UnpackError> {
    entry
        .link_name_bytes()
        .filter(|target| !target.is_empty())
        .map(|target| Path::new(OsStr::from_bytes(&target)).to_owned())
        .ok_or_else(|| UnpackError::NoTarget { member: member.to_owned() })
}

/// Whether a path is that of the sandbox itself.
pub(super) fn is_root(path: &Path) -> bool {
    path.components().all(|component| matches!(component, std::path::Component::CurDir))
}

fn describe(kind: EntryType) -> String {
    match kind {
        EntryType::Char | EntryType::Block => "a device".into(),
        EntryType::Fifo => "a named pipe".into(),
        kind => format!("of type `{}`", kind.as_byte().escape_ascii()),
    }
}
