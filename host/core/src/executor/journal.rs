//! The journal of an executor: everything that has happened to it and its tasks, on disk before anybody hears of it.
//!
//! ```text
//! cofferdam-executor 1
//! 5f0c9a3e [{"snapshot": {…}}]          CRC-32 of the JSON, and the entries that were written at once
//! 91b2c07d [{"update": {…}}]
//! ```
//!
//! What an agent that died has written of a line is cut off by the next one. Once the journal has become much longer than
//! its state, it is replaced by a snapshot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::state::{Entry, ExecutorState};

/// The first line, with the version of the format.
const HEADER: &str = "cofferdam-executor 1\n";

/// How long a journal is that is read at most, and so how long one may become.
const MAX_LENGTH: u64 = 256 << 20;

/// How long it may become by what adds to its executor. The rest is for what ends tasks, and for acknowledgements.
const MAX_GROWN: u64 = 128 << 20;

/// How long a journal may become before it is replaced, in bytes, and in lengths of its snapshot.
const MIN_REPLACED: u64 = 256 << 10;
const MAX_REPLACED: u64 = 64 << 20;
const GROWTH: u64 = 4;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// How much of the file is complete lines.
    length: u64,
    /// Length at which it is replaced.
    replaced_at: u64,
    /// Whether something may follow the complete lines.
    torn: bool,
}

/// Why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    #[error("cannot read or write `{path}`")]
    System { path: PathBuf, source: io::Error },
    #[error("`{path}` is not a journal of version 1")]
    Version { path: PathBuf },
    #[error("line {line} of `{path}` is damaged")]
    Damaged { path: PathBuf, line: usize },
    #[error("line {line} of `{path}` cannot be understood")]
    Content { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("`{path}` has {length} bytes; at most {MAX_LENGTH} are read")]
    TooLong { path: PathBuf, length: u64 },
    #[error(
        "`{path}` has {length} bytes, and may have {limit} with what is added; acknowledge status updates of its executor"
    )]
    Full { path: PathBuf, length: u64, limit: u64 },
    #[error("`{path}` has no complete line; its executor was never launched")]
    Empty { path: PathBuf },
}

impl JournalError {
    fn system(path: &Path, source: io::Error) -> Self {
        Self::System { path: path.to_owned(), source }
    }
}

impl Journal {
    /// Creates the journal of a new executor.
    pub(super) fn create(path: &Path, state: &ExecutorState) -> Result<Self, JournalError> {
        let created = write_snapshot(path, state).and_then(|created| sync_directory(path).map(|()| created));
        let (file, length) = created.map_err(|source| {
            // Nobody has heard of it.
            drop(fs::remove_file(path));
            JournalError::system(path, source)
        })?;
        Ok(Self { path: path.to_owned(), file, length, replaced_at: replaced_at(length), torn: false })
    }

    /// Reads the journal of an executor of an earlier agent.
    pub(super) fn open(path: &Path) -> Result<(Self, ExecutorState), JournalError> {
        let system = |source| JournalError::system(path, source);
        // Neither through a link nor waiting for the writer of a named pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = fs::OpenOptions::new();
        let mut file = options.read(true).write(true).custom_flags(flags).open(path).map_err(system)?;
        let metadata = file.metadata().map_err(system)?;
        if !metadata.is_file() {
            return Err(JournalError::Version { path: path.to_owned() });
        }
        if metadata.len() > MAX_LENGTH {
            return Err(JournalError::TooLong { path: path.to_owned(), length: metadata.len() });
        }
        let mut content = Vec::new();
        (&mut file).take(MAX_LENGTH).read_to_end(&mut content).map_err(system)?;
        let Some(lines) = content.strip_prefix(HEADER.as_bytes()) else {
            return Err(match HEADER.as_bytes().starts_with(&content) {
                true => JournalError::Empty { path: path.to_owned() },
                false => JournalError::Version { path: path.to_owned() },
            });
        };
        let (state, read) = read_lines(path, lines)?;
        let length = (HEADER.len() + read) as u64;
        let torn = length < metadata.len();
        let journal = Self { path: path.to_owned(), file, length, replaced_at: replaced_at(length), torn };
        Ok((journal, state))
    }

    /// Writes entries: all of them or none. If it fails, nothing has happened.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let line = encode(entries).map_err(|source| JournalError::system(&self.path, source))?;
        let limit = if entries.iter().any(Entry::is_growth) { MAX_GROWN } else { MAX_LENGTH };
        if self.length + line.len() as u64 > limit {
            return Err(JournalError::Full { path: self.path.clone(), length: self.length, limit });
        }
        self.write(&line).map_err(|source| {
            // Whatever the kernel still writes of it must not be read by the next agent.
            self.torn = self.file.set_len(self.length).is_err();
            JournalError::system(&self.path, source)
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(line)?;
        // An update that its sender was told to be on disk is not sent again.
        self.file.sync_data()?;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Replaces it by a snapshot if it is much longer than that.
    pub(super) fn shorten(&mut self, state: &ExecutorState) -> Result<(), JournalError> {
        if self.length < self.replaced_at {
            return Ok(());
        }
        match write_snapshot(&self.path, state) {
            Ok((file, length)) => {
                (self.file, self.length, self.replaced_at) = (file, length, replaced_at(length));
                self.torn = false;
                sync_directory(&self.path).map_err(|source| JournalError::system(&self.path, source))
            }
            Err(source) => {
                // Not at every entry again.
                self.replaced_at = self.length + self.length.min(MAX_REPLACED / 8);
                Err(JournalError::system(&self.path, source))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn replaced_at(length: u64) -> u64 {
    // A long one is replaced earlier, so that it does not become too long to be read.
    length.saturating_mul(GROWTH).clamp(MIN_REPLACED, MAX_REPLACED).max(length + length / 8)
}

/// The state after all complete lines, and their length.
fn read_lines(path: &Path, lines: &[u8]) -> Result<(ExecutorState, usize), JournalError> {
    let mut state: Option<ExecutorState> = None;
    let mut read = 0;
    for (index, line) in lines.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let is_last = read + line.len() == lines.len();
        let number = index + 2;
        let damaged = || JournalError::Damaged { path: path.to_owned(), line: number };
        let Some(json) = checked(line) else {
            // The agent died while it was written.
            if is_last {
                break;
            }
            return Err(damaged());
        };
        let entries: Vec<Entry> = serde_json::from_slice(json).map_err(|source| JournalError::Content {
            path: path.to_owned(),
            line: number,
            source,
        })?;
        for entry in entries {
            match (&mut state, entry) {
                (None, Entry::Snapshot(first)) => state = Some(first.counted()),
                (None, _) => return Err(damaged()),
                (Some(state), entry) => state.apply(entry),
            }
        }
        read += line.len();
    }
    state.map(|state| (state, read)).ok_or_else(|| JournalError::Empty { path: path.to_owned() })
}

/// The JSON of a complete line.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = (line.get(..8)?, line.get(9..)?);
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (line.get(8) == Some(&b' ') && crc32fast::hash(json) == sum).then_some(json)
}

fn encode(entries: &[impl Serialize]) -> io::Result<Vec<u8>> {
    // Without line feeds.
    let json = serde_json::to_vec(entries)?;
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

/// Replaces a journal by one that has only a state.
fn write_snapshot(path: &Path, state: &ExecutorState) -> io::Result<(File, u64)> {
    // `Entry::Snapshot`, without a copy of the state.
    let line = encode(&[BTreeMap::from([("snapshot", state)])])?;
    if line.len() as u64 > MAX_LENGTH {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let temporary = temporary(path);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&temporary)?;
    let written = file
        .write_all(HEADER.as_bytes())
        .and_then(|()| file.write_all(&line))
        .and_then(|()| file.sync_data())
        .and_then(|()| fs::rename(&temporary, path));
    match written {
        Ok(()) => Ok((file, (HEADER.len() + line.len()) as u64)),
        Err(error) => {
            // Best effort: the first error is more informative.
            drop(fs::remove_file(&temporary));
            Err(error)
        }
    }
}

/// Where the next version of a journal is written. No container has an id with a dot at its end.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.into()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// The journals in a directory, which is created if it is missing. Removes what agents that died have not finished.
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut journals = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.as_os_str().as_encoded_bytes().ends_with(b".") {
            fs::remove_file(&path)?;
        } else {
            journals.push(path);
        }
    }
    journals.sort();
    Ok(journals)
}

#[cfg(test)]
mod tests;
