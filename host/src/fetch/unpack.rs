//! Unpacks untrusted archives.
//!
//! Members are created through the sandbox's descriptor, never through a symbolic link, and belong to the container's
//! user. An archive with members other than files, directories and links is rejected.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::copy::{Copier, CopyError, LimitedReader};
use super::item::Gzip;
use super::sandbox::{Sandbox, SandboxError};
use super::sandbox_path::{InvalidPath, SandboxPath};

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
    #[error("it has more than {limit} members")]
    TooManyMembers { limit: u64 },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Number of members, and of bytes in files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) members: u64,
    pub(super) bytes: u64,
}

/// Metadata of a directory, which is set when all its entries exist.
struct DirectoryMetadata {
    name: SandboxPath,
    mode: u32,
    seconds: i64,
}

/// Unpacks a tar archive of at most `max_members` members into the sandbox.
pub(super) fn untar(
    archive: &File,
    gzip: Gzip,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    max_members: u64,
) -> Result<Unpacked, UnpackError> {
    // Reading data that is skipped takes time as well, so the limit of the files also applies to the stream.
    let limit = copier.limit();
    match gzip {
        Gzip::No => members(LimitedReader::new(archive, limit), sandbox, copier, max_members),
        Gzip::Yes => {
            members(LimitedReader::new(MultiGzDecoder::new(archive), limit), sandbox, copier, max_members)
        }
    }
}

fn members(
    mut stream: impl Read,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    max_members: u64,
) -> Result<Unpacked, UnpackError> {
    let damaged = |source| UnpackError::Archive { source };
    let mut unpacked = Unpacked::default();
    let mut directories = Vec::new();
    let mut archive = Archive::new(&mut stream);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        unpacked.members += 1;
        if unpacked.members > max_members {
            return Err(UnpackError::TooManyMembers { limit: max_members });
        }
        unpacked.bytes += member(&mut entry, sandbox, copier, &mut directories)?;
    }
    // Read to the end, where a compressed archive has its checksum.
    io::copy(&mut stream, &mut io::sink()).map_err(damaged)?;
    // In reverse, as a change within a directory changes its modification time.
    for DirectoryMetadata { name, mode, seconds } in directories.into_iter().rev() {
        sandbox.finish_directory(&name, mode, seconds)?;
    }
    Ok(unpacked)
}

/// Unpacks one member. Returns the number of bytes of a file.
fn member(
    entry: &mut Entry<'_, impl Read>,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    directories: &mut Vec<DirectoryMetadata>,
) -> Result<u64, UnpackError> {
    let damaged = |source| UnpackError::Archive { source };
    let kind = match entry.header().entry_type() {
        // Old archives have no type for directories.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => EntryType::Directory,
        kind => kind,
    };
    if kind.is_pax_global_extensions() {
        // Metadata of the archive.
        return Ok(0);
    }
    let path = Path::new(OsStr::from_bytes(&entry.path_bytes())).to_owned();
    if kind.is_dir() && is_root(&path) {
        // The archive must not change the permissions of the sandbox.
        return Ok(0);
    }
    let name = SandboxPath::parse(&path)?;
    let mode = entry.header().mode().map_err(damaged)?;
    let seconds = entry.header().mtime().map_err(damaged)?.try_into().unwrap_or(i64::MAX);
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut draft = sandbox.draft(&name)?;
            let bytes = copier
                .copy(entry, &mut draft.file, |_| {})
                .map_err(|source| UnpackError::Copy { member: path, source })?;
            draft.place(mode, Some(seconds))?;
            return Ok(bytes);
        }
        EntryType::Directory => {
            sandbox.directory(name.as_path())?;
            // Its owner must be able to remove its entries.
            directories.push(DirectoryMetadata { name, mode: mode | 0o700, seconds });
        }
        EntryType::Symlink => sandbox.symbolic_link(&name, &target(entry, &path)?)?,
        EntryType::Link => sandbox.hard_link(&name, &SandboxPath::parse(&target(entry, &path)?)?)?,
        kind => return Err(UnpackError::Kind { member: path, kind: describe(kind) }),
    }
    Ok(0)
}

/// Target of a link.
fn target(entry: &Entry<'_, impl Read>, member: &Path) -> Result<PathBuf, UnpackError> {
    entry
        .link_name_bytes()
        .filter(|target| !target.is_empty())
        .map(|target| Path::new(OsStr::from_bytes(&target)).to_owned())
        .ok_or_else(|| UnpackError::NoTarget { member: member.to_owned() })
}

fn is_root(path: &Path) -> bool {
    path.components().all(|component| matches!(component, std::path::Component::CurDir))
}

fn describe(kind: EntryType) -> String {
    match kind {
        EntryType::Char | EntryType::Block => "a device".into(),
        EntryType::Fifo => "a named pipe".into(),
        kind => format!("of type `{}`", kind.as_byte().escape_ascii()),
    }
}
