//! Unpacks untrusted zip archives, as `unpack` does with tar archives.
//!
//! What an archive says of its members at its end is what counts. Their data may not overlap: otherwise a small archive could
//! have the same compressed data in many members.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::bufread::DeflateDecoder;
use rawzip::time::{UtcDateTime, ZipDateTimeKind};
use rawzip::{
    CompressionMethod, FileReader, MAX_CENTRAL_DIRECTORY_RECORD_SIZE, ZipArchive, ZipEntry,
    ZipFileHeaderRecord,
};

use super::copy::{Allowance, Copier, CopyError};
use super::item::Compression;
use super::sandbox::{Sandbox, SandboxError};
use super::sandbox_path::{InvalidPath, SandboxPath};
use super::unpack::{DirectoryMetadata, Unpacked, is_root};
use cofferdam_core::config::FetchLimits;

/// Maximum length of the target of a symbolic link.
const MAX_TARGET: u64 = 4096;

/// Type of a file, in its mode.
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// Why a zip archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnzipError {
    #[error("cannot read it")]
    Read { source: io::Error },
    #[error("it is not a complete zip archive")]
    Archive { source: rawzip::Error },
    #[error("it has {actual} members, but says that it has {expected}")]
    Count { expected: u64, actual: u64 },
    #[error("member `{}` cannot be unpacked", member.display())]
    Copy { member: PathBuf, source: CopyError },
    #[error("member `{}` cannot be read", member.display())]
    Member { member: PathBuf, source: rawzip::Error },
    #[error("a member has an invalid path")]
    Path(#[from] InvalidPath),
    #[error("member `{}` is encrypted; unpack the archive with its password, and fetch the result", member.display())]
    Encrypted { member: PathBuf },
    #[error(
        "member `{}` is compressed with `{method}`; only stored members and deflate, bzip2, xz and zstd are supported",
        member.display()
    )]
    Method { member: PathBuf, method: CompressionMethod },
    #[error("the data of member `{}` overlaps with that of another member", member.display())]
    Overlap { member: PathBuf },
    #[error("member `{}` is {kind}; only files, directories and symbolic links are unpacked", member.display())]
    Kind { member: PathBuf, kind: &'static str },
    #[error("member `{}` is a symbolic link with a target that is empty or too long", member.display())]
    Target { member: PathBuf },
    #[error("it has more than {limit} members; `max_files` of `[fetch]` is the limit")]
    TooManyMembers { limit: u64 },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl UnzipError {
    /// Whether the archive is at fault, and not what it is unpacked to or a limit.
    pub(super) fn is_of_content(&self) -> bool {
        match self {
            Self::Copy { source, .. } => matches!(source, CopyError::Read { .. }),
            Self::TooManyMembers { .. } | Self::Sandbox(_) => false,
            _ => true,
        }
    }
}

/// Unpacks a zip archive into the sandbox.
pub(super) fn unzip(
    archive: &File,
    sandbox: &mut Sandbox,
    copier: &mut Copier,
    limits: &FetchLimits,
) -> Result<Unpacked, UnzipError> {
    let size = archive.metadata().map_err(|source| UnzipError::Read { source })?.len();
    let file = archive.try_clone().map_err(|source| UnzipError::Read { source })?;
    let damaged = |source| UnzipError::Archive { source };
    let mut buffer = vec![0; MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
    let archive = ZipArchive::from_file(file, &mut buffer).map_err(damaged)?;
    let expected = archive.entries_hint();
    if expected > limits.files {
        return Err(UnzipError::TooManyMembers { limit: limits.files });
    }
    let contents = copier.contents(size, limits.ratio);
    let ranges = Ranges { end: archive.directory_offset(), taken: BTreeMap::new() };
    let mut unpacking =
        Unpacking { archive: &archive, sandbox, copier, contents, ranges, directories: Vec::new() };
    let mut unpacked = Unpacked::default();
    let mut entries = archive.entries(&mut buffer);
    while let Some(header) = entries.next_entry().map_err(damaged)? {
        unpacked.members += 1;
        if unpacked.members > expected {
            break;
        }
        unpacked.bytes += unpacking.member(&header)?;
    }
    if unpacked.members != expected {
        return Err(UnzipError::Count { expected, actual: unpacked.members });
    }
    // In reverse, as a change within a directory changes its modification time.
    for DirectoryMetadata { name, mode, seconds } in unpacking.directories.into_iter().rev() {
        unpacking.sandbox.finish_directory(&name, mode, seconds)?;
    }
    Ok(unpacked)
}

/// State of unpacking one archive.
struct Unpacking<'a> {
    archive: &'a ZipArchive<FileReader>,
    sandbox: &'a mut Sandbox,
    copier: &'a mut Copier,
    /// What may be written to files.
    contents: Allowance,
    ranges: Ranges,
    directories: Vec<DirectoryMetadata>,
}

/// The parts of an archive that its members take, by their beginning.
struct Ranges {
    /// Where the list of members begins.
    end: u64,
    taken: BTreeMap<u64, u64>,
}

impl<'a> Unpacking<'a> {
    /// Unpacks one member. Returns the number of bytes of a file.
    fn member(&mut self, header: &ZipFileHeaderRecord<'_>) -> Result<u64, UnzipError> {
        let member = Path::new(OsStr::from_bytes(header.file_path().as_bytes())).to_owned();
        let mode = header.mode();
        let seconds = modified(&header.last_modified());
        if header.is_dir() && is_root(&member) {
            // The archive must not change the permissions of the sandbox.
            return Ok(0);
        }
        let name = SandboxPath::parse(&member)?;
        match mode.value() & TYPE {
            DIRECTORY => {
                self.sandbox.directory(name.as_path())?;
                let mode = permissions(mode.permissions(), 0o755);
                // Its owner must be able to remove its entries.
                self.directories.push(DirectoryMetadata { name, mode: mode | 0o700, seconds });
                Ok(0)
            }
            SYMLINK => {
                let target = self.target(header, &member)?;
                self.sandbox.symbolic_link(&name, &target)?;
                Ok(0)
            }
            0 | REGULAR => {
                let content = self.content(header, &member)?;
                let mut draft = self.sandbox.draft(&name)?;
                let copied = self.copier.unpack(&mut self.contents, content, &mut draft.file);
                let bytes = copied.map_err(|source| UnzipError::Copy { member, source })?;
                draft.place(permissions(mode.permissions(), 0o644), Some(seconds))?;
                Ok(bytes)
            }
            0o060_000 | 0o020_000 => Err(UnzipError::Kind { member, kind: "a device" }),
            0o010_000 => Err(UnzipError::Kind { member, kind: "a named pipe" }),
            0o140_000 => Err(UnzipError::Kind { member, kind: "a socket" }),
            _ => Err(UnzipError::Kind { member, kind: "of an unknown type" }),
        }
    }

    /// Target of a symbolic link, which is its content.
    fn target(&mut self, header: &ZipFileHeaderRecord<'_>, member: &Path) -> Result<PathBuf, UnzipError> {
        let content = self.content(header, member)?.take(MAX_TARGET + 1);
        let mut target = Vec::new();
        let copied = self.copier.unpack(&mut self.contents, content, &mut target);
        copied.map_err(|source| UnzipError::Copy { member: member.to_owned(), source })?;
        if target.is_empty() || target.len() as u64 > MAX_TARGET {
            return Err(UnzipError::Target { member: member.to_owned() });
        }
        Ok(Path::new(OsStr::from_bytes(&target)).to_owned())
    }

    /// The content of a member, whose size and checksum are verified at its end.
    fn content(
        &mut self,
        header: &ZipFileHeaderRecord<'_>,
        member: &Path,
    ) -> Result<Box<dyn Read + 'a>, UnzipError> {
        let member = || member.to_owned();
        if header.flags().is_encrypted() {
            return Err(UnzipError::Encrypted { member: member() });
        }
        let entry = self.archive.get_entry(header.wayfinder());
        let entry = entry.map_err(|source| UnzipError::Member { member: member(), source })?;
        let (_, end) = entry.compressed_data_range();
        if !self.ranges.take(header.local_header_offset(), end) {
            return Err(UnzipError::Overlap { member: member() });
        }
        let method = header.compression_method();
        decompress(&entry, method).ok_or_else(|| UnzipError::Method { member: member(), method })
    }
}

/// The content of a member, unless its compression is not supported.
fn decompress<'a>(entry: &ZipEntry<'a, FileReader>, method: CompressionMethod) -> Option<Box<dyn Read + 'a>> {
    let stored = BufReader::new(entry.reader());
    let content: Box<dyn Read + 'a> = match method {
        CompressionMethod::DEFLATE => Box::new(DeflateDecoder::new(stored)),
        CompressionMethod::STORE => Compression::None.decompress(stored),
        CompressionMethod::BZIP2 => Compression::Bzip2.decompress(stored),
        CompressionMethod::XZ => Compression::Xz.decompress(stored),
        CompressionMethod::ZSTD => Compression::Zstd.decompress(stored),
        _ => return None,
    };
    Some(Box::new(entry.verifying_reader(content)))
}

impl Ranges {
    /// Takes a part, unless another member has some of it.
    fn take(&mut self, begin: u64, end: u64) -> bool {
        let before = self.taken.range(..=begin).next_back();
        let after = self.taken.range(begin..).next();
        let is_free = begin < end
            && end <= self.end
            && before.is_none_or(|(_, before_end)| *before_end <= begin)
            && after.is_none_or(|(after_begin, _)| end <= *after_begin);
        if is_free {
            self.taken.insert(begin, end);
        }
        is_free
    }
}

/// Permission bits. Archives of other systems have none.
fn permissions(mode: u32, default: u32) -> u32 {
    if mode & 0o777 == 0 { default } else { mode }
}

/// When a member was modified. A time without a time zone is taken for UTC.
fn modified(time: &ZipDateTimeKind) -> i64 {
    match time {
        ZipDateTimeKind::Utc(time) => time.to_unix(),
        ZipDateTimeKind::Local(time) => {
            let (year, month, day) = (time.year(), time.month(), time.day());
            let (hour, minute, second) = (time.hour(), time.minute(), time.second());
            UtcDateTime::from_components(year, month, day, hour, minute, second, 0)
                .map_or(0, |time| time.to_unix())
        }
    }
}
