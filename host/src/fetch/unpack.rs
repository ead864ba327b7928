//! Unpacks archives that nobody trusts.
//!
//! Every member goes through the sandbox's descriptor, never through a symbolic link, and belongs to the
//! container's user. A member that wants more than files, folders and links refuses the archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::copy::{Copier, CopyError, Metered};
use super::item::Gzip;
use super::name::{Name, NameError};
use super::sandbox::{Sandbox, SandboxError};

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("it is not a whole tar archive")]
    Archive { source: io::Error },
    #[error("member `{}` cannot be unpacked", member.display())]
    Copy { member: PathBuf, source: CopyError },
    #[error("a member has a name that is refused")]
    Name(#[from] NameError),
    #[error("member `{}` is {kind}; only files, folders and links are unpacked", member.display())]
    Kind { member: PathBuf, kind: String },
    #[error("member `{}` is a link that leads nowhere", member.display())]
    NoTarget { member: PathBuf },
    #[error("it has more than {most} members")]
    TooMany { most: u64 },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// What came out of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) members: u64,
    pub(super) bytes: u64,
}

/// What a folder is given when nothing more is put into it.
struct Finish {
    name: Name,
    mode: u32,
    seconds: i64,
}

/// Unpacks a tar archive of at most `most` members into the sandbox.
pub(super) fn untar(
    archive: &File,
    gzip: Gzip,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    most: u64,
) -> Result<Unpacked, UnpackError> {
    // What is skipped costs time as well, so it is counted, though not with what is written.
    let allowance = copier.most();
    match gzip {
        Gzip::No => members(Metered::new(archive, allowance), sandbox, copier, most),
        Gzip::Yes => members(Metered::new(MultiGzDecoder::new(archive), allowance), sandbox, copier, most),
    }
}

fn members(
    mut stream: impl Read,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    most: u64,
) -> Result<Unpacked, UnpackError> {
    let damaged = |source| UnpackError::Archive { source };
    let mut unpacked = Unpacked::default();
    let mut directories = Vec::new();
    let mut archive = Archive::new(&mut stream);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        unpacked.members += 1;
        if unpacked.members > most {
            return Err(UnpackError::TooMany { most });
        }
        unpacked.bytes += member(&mut entry, sandbox, copier, &mut directories)?;
    }
    // The checksum of a compressed archive comes behind its last member.
    io::copy(&mut stream, &mut io::sink()).map_err(damaged)?;
    // Inner folders come after outer ones, and a time changes with what is done inside.
    for Finish { name, mode, seconds } in directories.into_iter().rev() {
        sandbox.finish_folder(&name, mode, seconds)?;
    }
    Ok(unpacked)
}

/// Unpacks one member; returns how many bytes that took.
fn member(
    entry: &mut Entry<'_, impl Read>,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    directories: &mut Vec<Finish>,
) -> Result<u64, UnpackError> {
    let damaged = |source| UnpackError::Archive { source };
    let kind = match entry.header().entry_type() {
        // Before there was a type for folders, they had a `/` at the end.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => EntryType::Directory,
        kind => kind,
    };
    if kind.is_pax_global_extensions() {
        // Says something about the archive and nothing about a file.
        return Ok(0);
    }
    let path = Path::new(OsStr::from_bytes(&entry.path_bytes())).to_owned();
    if kind.is_dir() && is_root(&path) {
        // The sandbox is there already, and its permissions are not the archive's to choose.
        return Ok(0);
    }
    let name = Name::parse(&path)?;
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
            sandbox.directory(name.path())?;
            // Its owner can always remove it.
            directories.push(Finish { name, mode: mode | 0o700, seconds });
        }
        EntryType::Symlink => sandbox.symbolic_link(&name, &target(entry, &path)?)?,
        EntryType::Link => sandbox.hard_link(&name, &Name::parse(&target(entry, &path)?)?)?,
        kind => return Err(UnpackError::Kind { member: path, kind: describe(kind) }),
    }
    Ok(0)
}

/// Where a link leads.
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
