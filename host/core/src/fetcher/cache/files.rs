//! The directory of a cache.
//!
//! ```text
//! agent.lock            of the agent that has the cache
//! entries/HEX           an entry, by the hash of its key: a line of JSON; last changed when it was used
//! content/HEX-NUMBER    the content of an entry, which never changes
//! drafts/NUMBER         what is not complete
//! ```
//!
//! Content is on disk before an entry names it, and an entry is renamed to its name. So whoever dies leaves a cache that
//! works, and drafts or content that no entry names, which the next agent removes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::CacheError;
use crate::directory::create_searchable;
use crate::fetcher::Version;

/// Maximum size of an entry's file.
const MAX_ENTRY: u64 = 64 << 10;

/// Number of digits of a key's hash.
const KEY_DIGITS: usize = 64;

/// The directory of a cache, which this agent has for itself.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// The number of the next draft or content.
    next: AtomicU64,
}

/// An entry, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredEntry {
    /// Name of the file with its content.
    pub(super) content: String,
    pub(super) size: u64,
    /// Permissions of the file that it is a copy of.
    pub(super) mode: u32,
    pub(super) version: Version,
}

/// An entry that was found.
#[derive(Debug)]
pub(super) struct FoundEntry {
    pub(super) key: String,
    pub(super) entry: StoredEntry,
    pub(super) used: SystemTime,
}

/// A file that is not complete. Removed when dropped.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) path: PathBuf,
    pub(super) file: File,
    is_renamed: bool,
}

impl Files {
    /// Creates what is missing of the directory, and removes what was not completed. The directory is locked.
    pub(super) fn open(root: &Path) -> Result<Self, CacheError> {
        let failed = |path: &Path, source| CacheError::Directory { path: path.to_owned(), source };
        for name in ["entries", "content", "drafts"] {
            let path = root.join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(&path, error));
                }
                _ => check_private(&path)?,
            }
        }
        let files = Self { root: root.to_owned(), next: AtomicU64::new(0) };
        let drafts = files.root.join("drafts");
        for name in names(&drafts).map_err(|source| failed(&drafts, source))? {
            remove(&drafts.join(name));
        }
        let content = files.root.join("content");
        let numbers = names(&content).map_err(|source| failed(&content, source))?;
        let highest = numbers.filter_map(|name| name.rsplit_once('-')?.1.parse::<u64>().ok()).max();
        files.next.store(highest.map_or(0, |highest| highest.saturating_add(1)), Ordering::Relaxed);
        Ok(files)
    }

    /// Creates the directory of a cache, which others must not be able to change.
    pub(super) fn create(root: &Path) -> Result<(), CacheError> {
        let failed = |source| CacheError::Directory { path: root.to_owned(), source };
        if let Some(parent) = root.parent() {
            create_searchable(parent).map_err(failed)?;
        }
        match DirBuilder::new().mode(0o700).create(root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => check_private(root),
        }
    }

    /// The entries that are intact. Others are removed, as is content that has none. At most `limit` are kept.
    pub(super) fn entries(&self, limit: usize) -> Result<Vec<FoundEntry>, CacheError> {
        let directory = self.root.join("entries");
        let failed = |source| CacheError::Directory { path: directory.clone(), source };
        let mut found = Vec::new();
        for key in names(&directory).map_err(failed)? {
            let path = directory.join(&key);
            match self.read(&key, &path).filter(|_| found.len() < limit) {
                Some(entry) => found.push(entry),
                None => {
                    tracing::warn!("removing the damaged entry `{}` of the fetcher's cache", path.display());
                    remove(&path);
                }
            }
        }
        let mut named: Vec<&str> = found.iter().map(|found| found.entry.content.as_str()).collect();
        named.sort_unstable();
        let content = self.root.join("content");
        let failed = |source| CacheError::Directory { path: content.clone(), source };
        for name in names(&content).map_err(failed)? {
            if named.binary_search(&name.as_str()).is_err() {
                remove(&content.join(name));
            }
        }
        Ok(found)
    }

    /// An entry whose content is there.
    fn read(&self, key: &str, path: &Path) -> Option<FoundEntry> {
        let is_key = key.len() == KEY_DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        let file = options().read(true).open(path).ok().filter(|_| is_key)?;
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
        let mut bytes = Vec::new();
        file.take(MAX_ENTRY).read_to_end(&mut bytes).ok()?;
        let entry: StoredEntry = serde_json::from_slice(&bytes).ok()?;
        let number = entry.content.strip_prefix(key)?.strip_prefix('-')?;
        number.parse::<u64>().ok()?;
        let size = size(&self.content(&entry.content)).ok()?;
        let used = metadata.modified().ok()?;
        (size == entry.size).then(|| FoundEntry { key: key.to_owned(), entry, used })
    }

    /// A new file.
    pub(super) fn draft(&self) -> io::Result<Draft> {
        loop {
            let path = self.root.join("drafts").join(self.number().to_string());
            match options().write(true).create_new(true).mode(0o600).open(&path) {
                // What could not be removed at the start.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(Draft { path, file: file?, is_renamed: false }),
            }
        }
    }

    /// Makes a draft the content of a key. Returns its name. It is on disk then.
    pub(super) fn keep(&self, mut draft: Draft, key: &str) -> io::Result<String> {
        let name = format!("{key}-{}", self.number());
        draft.file.sync_all()?;
        let path = self.content(&name);
        fs::rename(&draft.path, &path)?;
        draft.is_renamed = true;
        let synced = File::open(self.root.join("content")).and_then(|directory| directory.sync_all());
        // Nobody would know of it.
        synced.inspect_err(|_| remove(&path))?;
        Ok(name)
    }

    /// Writes the entry of a key, in place of an earlier one.
    pub(super) fn write(&self, key: &str, entry: &StoredEntry) -> io::Result<()> {
        let mut draft = self.draft()?;
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if line.len() as u64 > MAX_ENTRY {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        draft.file.write_all(&line)?;
        draft.file.sync_all()?;
        fs::rename(&draft.path, self.entry(key))?;
        draft.is_renamed = true;
        File::open(self.root.join("entries"))?.sync_all()
    }

    /// Notes that an entry was used.
    pub(super) fn touch(&self, key: &str) {
        let opened = options().write(true).open(self.entry(key));
        if let Err(error) = opened.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, "cannot note the use of an entry of the fetcher's cache");
        }
    }

    /// Removes the entry of a key, before its content.
    pub(super) fn remove_entry(&self, key: &str) {
        remove(&self.entry(key));
    }

    /// Path of content.
    pub(super) fn content(&self, name: &str) -> PathBuf {
        self.root.join("content").join(name)
    }

    fn entry(&self, key: &str) -> PathBuf {
        self.root.join("entries").join(key)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_renamed {
            remove(&self.path);
        }
    }
}

/// Size of a regular file.
pub(super) fn size(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Removes a file. What cannot be removed is left to the next agent.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove `{}` of the fetcher's cache: {error}", path.display());
        }
        _ => {}
    }
}

/// Names in a directory. Those that are not UTF-8 are none of a cache.
fn names(directory: &Path) -> io::Result<impl Iterator<Item = String> + use<>> {
    Ok(fs::read_dir(directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()))
}

/// Checks that a directory belongs to this agent's user, and that nobody else can change it.
fn check_private(path: &Path) -> Result<(), CacheError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|source| CacheError::Directory { path: path.to_owned(), source })?;
    let own = nix::unistd::geteuid().as_raw();
    let is_private = metadata.is_dir() && metadata.uid() == own && metadata.mode() & 0o077 == 0;
    is_private.then_some(()).ok_or_else(|| CacheError::NotPrivate { path: path.to_owned(), uid: own })
}

fn options() -> fs::OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}
