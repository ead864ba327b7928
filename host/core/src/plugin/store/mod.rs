//! Private copies of plugin files, by hash, and the index of known files.
//!
//! A plugin is never loaded from the file that the operator installed: overwriting a loaded library in place kills the
//! process that has it mapped, and loading a path again returns the library that is already loaded, even if the file
//! was replaced. Copies that are named by their hash do not have these problems, and older ones remain available for a
//! rollback, up to the bounds of [`retention`].
//!
//! ```text
//! <store>/<sha256>.so   mode 0500
//! <store>/index         facts about files that were read before
//! <store>/lock          has locks of those who use a copy
//! ```
//!
//! Reading, hashing and comparing takes milliseconds for each plugin. So a file that is [known](index) to be unchanged
//! is not read again, and neither is its copy. A file that was changed too recently to detect further changes (see
//! [`stamp`]) is read every time.
//!
//! The store is in the work directory: `/run` is commonly mounted `noexec`, and a rollback must be possible after a
//! reboot.

mod index;
mod lease;
mod retention;
mod stamp;
mod write;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cofferdam_plugin_model::Manifest;
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::preflight::{Facts, Found, PluginFile, PreflightError, find_by};
use index::{Index, Known};
use retention::{InUse, remove_unused};
use stamp::{Stamp, Time};
use write::replace;

/// Private copies and the index, in one directory. May be shared by several agents at a time.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    index: Mutex<Index>,
    /// The program of this process; `None` if a later change of its file might not be noticed.
    program: Option<Stamp>,
    /// Opened when the first copy is kept.
    in_use: OnceLock<InUse>,
    /// Whether a copy was written since old ones were removed.
    grew: AtomicBool,
}

/// Why a private copy could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep a private copy of plugin `{name}` at `{path}`")]
pub struct StoreError {
    /// The plugin.
    pub name: String,
    /// The copy.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A plugin file that has passed preflight.
#[derive(Debug)]
pub struct Candidate {
    /// Its manifest.
    pub manifest: Manifest,
    file: PluginFile,
    content: Content,
}

/// The content of a file.
#[derive(Debug)]
struct Content {
    known: Known,
    /// `None` if it was not read, because the index knows it.
    bytes: Option<Vec<u8>>,
    /// Whether it can be added to the index, because every later change of the file is detectable.
    reliable: bool,
}

/// Whether a file must be read even if the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// A file that is in the index is not read.
    Index,
    /// The file and its copy are read, as required for a pinned hash.
    Content,
}

impl Store {
    /// The store in a directory, which is created when something is written to it.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            index: Mutex::new(Index::read(directory)),
            program: running_program().unwrap_or_default(),
            in_use: OnceLock::new(),
            grew: AtomicBool::new(false),
        }
    }

    /// Inspects a plugin file without running any of its code. Does not read it if it is known and `trust` permits.
    ///
    /// # Errors
    /// [`PreflightError`].
    pub fn examine(&self, path: &Path, trust: Trust) -> Result<Candidate, PreflightError> {
        let file = PluginFile::open(path)?;
        let content = self.content(&file, trust)?;
        let manifest = content.known.facts.usable_manifest(file.path())?;
        Ok(Candidate { manifest, file, content })
    }

    /// The manifests of the plugin files in a directory; see [`find`](super::find).
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn find(&self, directory: &Path) -> io::Result<Found> {
        find_by(directory, |path| self.examine(path, Trust::Index).map(|candidate| candidate.manifest))
    }

    /// Returns the private copy of a plugin file. Writes it if it is missing or damaged. It is not removed while this
    /// store is open.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep(&self, candidate: &Candidate) -> Result<PathBuf, StoreError> {
        let name = format!("{}.so", candidate.sha256());
        let path = self.directory.join(&name);
        self.keep_at(candidate, &name, &path).map_err(|source| StoreError {
            name: candidate.manifest.name.clone(),
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Whether this program has found the layout of the file's ABI compatible before. Both are the same bytes as then, so
    /// the comparison would have the same result.
    #[must_use]
    pub fn is_compatible(&self, candidate: &Candidate) -> bool {
        self.program.is_some() && self.program == candidate.content.known.compatible_with
    }

    /// Records that the layout of the file's ABI is compatible.
    pub fn learn_compatible(&self, candidate: &Candidate) {
        if candidate.content.reliable
            && let Some(program) = &self.program
        {
            let change = |known: &mut Known| known.compatible_with = Some(program.clone());
            self.index.lock().update(candidate.path(), &candidate.content.known.stamp, change);
        }
    }

    /// Writes new entries to the index, and removes old copies if there are new ones. If that fails, the next start takes
    /// longer, or the store has more than it needs.
    pub fn save(&self) {
        if self.grew.swap(false, Ordering::Relaxed) {
            self.remove_old();
        }
        if let Err(error) = self.index.lock().save(&self.directory) {
            tracing::debug!(store = %self.directory.display(), "cannot write the plugin index: {error}");
        }
    }

    fn remove_old(&self) {
        let store = self.directory.display();
        match remove_unused(&self.directory, retention::DEFAULT) {
            Ok(0) => {}
            Ok(count) => tracing::info!(%store, "removed {count} old copies of plugin files"),
            Err(error) => tracing::warn!(%store, "cannot remove old copies of plugin files: {error}"),
        }
    }

    fn content(&self, file: &PluginFile, trust: Trust) -> Result<Content, PreflightError> {
        let (stamp, read_at) = (Stamp::of(file.metadata()), Time::now());
        if trust == Trust::Index
            && let Some(known) = self.index.lock().get(file.path(), &stamp, read_at)
        {
            return Ok(Content { known: known.clone(), bytes: None, reliable: true });
        }
        let bytes = file.read()?;
        let facts = Facts::of(file.path(), &*bytes)?;
        let unchanged = file.file().metadata().is_ok_and(|metadata| Stamp::of(&metadata) == stamp);
        let reliable =
            trust == Trust::Index && unchanged && stamp.is_reliable(file.file(), read_at).unwrap_or(false);
        let known = Known { stamp, read_at, sha256: hash(&bytes), facts, copy: None, compatible_with: None };
        if reliable {
            self.index.lock().learn(file.path(), known.clone());
        }
        Ok(Content { known, bytes: Some(bytes), reliable })
    }

    fn keep_at(&self, candidate: &Candidate, name: &str, path: &Path) -> io::Result<()> {
        let Content { known, bytes, reliable } = &candidate.content;
        self.in_use()?.add(candidate.sha256())?;
        if let Some(copy) = &known.copy
            && fs::symlink_metadata(path).is_ok_and(|metadata| Stamp::of(&metadata) == *copy)
        {
            return Ok(());
        }
        match verify(path, known) {
            // It is recorded when its stamp has become reliable; until then it is verified every time.
            Ok(copy) if copy.is_some() && *reliable => {
                self.index.lock().update(candidate.path(), &known.stamp, |known| known.copy = copy);
                return Ok(());
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!("replacing the private copy `{}` of a plugin: {error}", path.display())
            }
        }
        let reread;
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                reread = candidate.file.read().map_err(io::Error::other)?;
                if hash(&reread) != known.sha256 {
                    return Err(io::Error::other("the plugin file has just changed; try again"));
                }
                &reread
            }
        };
        self.grew.store(true, Ordering::Relaxed);
        replace(&self.directory, name, bytes, 0o500)
    }

    fn in_use(&self) -> io::Result<&InUse> {
        if let Some(in_use) = self.in_use.get() {
            return Ok(in_use);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let opened = InUse::open(&self.directory)?;
        // If another thread was faster, its one counts.
        Ok(self.in_use.get_or_init(|| opened))
    }
}

impl Candidate {
    /// The file, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// SHA-256 of its content, in lower-case hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.content.known.sha256
    }

    /// Whether the file is in the index, so that it was not read.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.content.bytes.is_none()
    }

    /// Whether its private copy is in the index as well.
    #[must_use]
    pub fn has_known_copy(&self) -> bool {
        self.content.known.copy.is_some()
    }
}

/// Verifies owner, mode and content of a private copy. Returns its stamp if it is reliable.
fn verify(path: &Path, known: &Known) -> io::Result<Option<Stamp>> {
    let read_at = Time::now();
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let stamp = Stamp::of(&metadata);
    if !metadata.is_file() || metadata.mode() & 0o022 != 0 || !is_ours(&metadata) {
        return Err(io::Error::other("it can be changed by others"));
    }
    let mut bytes = Vec::new();
    (&mut file).take(known.stamp.size + 1).read_to_end(&mut bytes)?;
    if hash(&bytes) != known.sha256 {
        return Err(io::Error::other("its content does not have the hash in its name"));
    }
    let unchanged = Stamp::of(&file.metadata()?) == stamp;
    let reliable = unchanged && stamp.is_reliable(&file, read_at).unwrap_or(false);
    Ok(reliable.then_some(stamp))
}

/// The stamp of this process's program, if that is reliable. The kernel refuses writes to it while it is executed.
fn running_program() -> io::Result<Option<Stamp>> {
    let now = Time::now();
    let file = File::open("/proc/self/exe")?;
    let stamp = Stamp::of(&file.metadata()?);
    Ok(stamp.is_reliable(&file, now)?.then_some(stamp))
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid())
}

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}
