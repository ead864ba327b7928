//! The file format of a record.
//!
//! The first line is `cofferdam-record <version> <crc32 of the rest>`; the rest is JSON. Fields may be added with
//! defaults under the same version; any other change increments it.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cofferdam_plugin_model::ContainerId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::model::Record;

/// First word of every record.
const MAGIC: &str = "cofferdam-record";

/// The version that is written, and the only one that is read. Version 1 was never released.
const VERSION: u32 = 2;

/// No record is as long. The longest have many states of plugins and a long plan.
const MAX_LENGTH: u64 = 64 << 20;

/// A record whose part is that of any containerizer, which decodes it.
pub type StoredRecord = Record<Box<RawValue>>;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error("cannot read the record of container `{id}`")]
    Read {
        /// The container.
        id: ContainerId,
        /// The error of the kernel.
        source: io::Error,
    },
    /// There is something else in its place, or it is too long.
    #[error("`{}` is not a record", path.display())]
    NotARecord {
        /// The container.
        id: ContainerId,
        /// The file.
        path: PathBuf,
    },
    /// The first line is missing or malformed.
    #[error("the record of container `{id}` is empty or truncated")]
    Truncated {
        /// The container.
        id: ContainerId,
    },
    /// The record was written by another version of the agent.
    #[error(
        "the record of container `{id}` has format version {version}, this agent reads version {VERSION}; use \
         the version of the agent that wrote it"
    )]
    Version {
        /// The container.
        id: ContainerId,
        /// Format version of the record.
        version: u32,
    },
    /// The content was changed or is incomplete.
    #[error("the record of container `{id}` does not match its checksum")]
    Checksum {
        /// The container.
        id: ContainerId,
    },
    /// The record is of a containerizer that this agent does not have.
    #[error(
        "the record of container `{id}` is of containerizer `{containerizer}`, which is not in use; add it to `containerizers` \
         in the configuration and restart the agent"
    )]
    Containerizer {
        /// The container.
        id: ContainerId,
        /// Name of the containerizer.
        containerizer: String,
    },
    /// The JSON does not have the expected structure.
    #[error("the record of container `{id}` cannot be decoded")]
    Content {
        /// The container.
        id: ContainerId,
        /// The reason.
        source: serde_json::Error,
    },
}

impl RecordError {
    /// Whether the record is damaged, as after a full disk, rather than unreadable or of another version.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            // The agent died between creating the directory and writing the record.
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Truncated { .. } | Self::Checksum { .. } => true,
            Self::Version { .. }
            | Self::Containerizer { .. }
            | Self::Content { .. }
            | Self::NotARecord { .. } => false,
        }
    }
}

impl StoredRecord {
    /// The record with the part of containerizer `name`.
    ///
    /// # Errors
    /// [`RecordError::Containerizer`] if it is of another one, [`RecordError::Content`] if its part cannot be decoded.
    pub fn of<P: DeserializeOwned>(self, name: &str) -> Result<Record<P>, RecordError> {
        let id = self.id.clone();
        if self.containerizer != name {
            return Err(RecordError::Containerizer { id, containerizer: self.containerizer });
        }
        self.try_map_part(|part| serde_json::from_str(part.get()))
            .map_err(|source| RecordError::Content { id, source })
    }
}

/// The content of a record's file.
pub(super) fn encode<P: Serialize>(record: &Record<P>) -> io::Result<Vec<u8>> {
    Ok(with_head(&serde_json::to_vec(record)?))
}

/// The content of a file with this JSON.
pub(super) fn with_head(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{MAGIC} {VERSION} {:08x}\n", crc32fast::hash(body)).into_bytes();
    bytes.extend(body);
    bytes
}

/// Reads a file, unless it is something else, such as a named pipe, which would not be opened before it has a writer.
fn read_file(path: &Path, id: &ContainerId) -> Result<Vec<u8>, RecordError> {
    let read_error = |source| RecordError::Read { id: id.clone(), source };
    let not_a_record = || RecordError::NotARecord { id: id.clone(), path: path.to_owned() };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        // A link, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(not_a_record());
        }
        opened => opened.map_err(read_error)?,
    };
    if !file.metadata().map_err(read_error)?.is_file() {
        return Err(not_a_record());
    }
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_LENGTH { Err(not_a_record()) } else { Ok(bytes) }
}

/// Reads a record from its file.
pub(super) fn read(path: &Path, id: &ContainerId) -> Result<StoredRecord, RecordError> {
    let bytes = read_file(path, id)?;
    let truncated = || RecordError::Truncated { id: id.clone() };
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(truncated)?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let mut fields = std::str::from_utf8(head).map_err(|_| truncated())?.split(' ');
    let (Some(MAGIC), Some(version), Some(checksum), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(truncated());
    };
    let version: u32 = version.parse().map_err(|_| truncated())?;
    if version != VERSION {
        return Err(RecordError::Version { id: id.clone(), version });
    }
    if u32::from_str_radix(checksum, 16).ok() != Some(crc32fast::hash(body)) {
        return Err(RecordError::Checksum { id: id.clone() });
    }
    let record: StoredRecord =
        serde_json::from_slice(body).map_err(|source| RecordError::Content { id: id.clone(), source })?;
    // A directory that was moved by hand holds the record of another container.
    if record.id != *id {
        return Err(truncated());
    }
    Ok(record)
}
