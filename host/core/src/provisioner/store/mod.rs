//! The store of images: content by digest, shared by all agents and commands that use its directory.
//!
//! ```text
//! lock                         shared: who reads or adds; exclusive: who removes
//! blobs/sha256/HEX             manifests and configurations
//! layers/sha256/HEX/fs         an unpacked layer, by the digest of its archive without compression
//! layers/sha256/HEX/size       its size in bytes, as text
//! references/HEX               a name and the digest of its manifest, by the digest of the name; last changed when a container
//!                              was launched by it
//! uses/AGENT/CONTAINER         the layers of a container
//! uses/AGENT.NUMBER/CONTAINER  the layers of one of its volumes
//! downloads/HEX                a part of a blob of a registry, by its digest; locked by who downloads it
//! staging/                     what is not complete, and what is being removed
//! ```
//!
//! Everything is complete and on disk before it is renamed to its name, and a reference is written last. So whoever dies
//! leaves a store that works, and something in `staging`, which the next one that has the store for itself removes.
//!
//! Layers have set-user-ID programs and whatever else their authors put in, so no other user can enter the directory.

mod download;
mod error;
mod import;
mod prune;
mod space;
mod uses;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_plugin_model::ImageConfig;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::document::{Configuration, MAX_DOCUMENT, MAX_LAYERS, Manifest};
use super::local::{Stamp, path_of};
use super::name::{ImageName, MIN_ID};
use crate::directory::create_searchable;

pub use download::PartialBlob;
pub use error::StoreError;
pub use import::{Import, StagedLayer};
pub use prune::{PrunePolicy, Pruned};
pub use space::{FreedSpace, FreeingEnd, SpacePolicy};
pub use uses::AgentKey;

use error::Result;

/// Maximum number of names.
const MAX_REFERENCES: usize = 100_000;

/// Maximum size of a reference or a use.
const MAX_SMALL: u64 = 256 << 10;

/// A store of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its id: the digest of its configuration.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its names.
    pub names: Vec<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<Digest>,
    /// Bytes of all layers.
    pub size: u64,
    /// When it was created, as its author says, as in RFC 3339.
    pub created: Option<String>,
    /// Operating system and CPU architecture.
    pub platform: String,
    /// How a container of it is run.
    pub config: ImageConfig,
}

/// A name, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reference {
    name: String,
    manifest: Digest,
    /// The index of a registry that the manifest was chosen from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<Digest>,
    /// The version of the file that it was imported from, if the name is the path of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<Stamp>,
}

/// A lock on the store.
#[derive(Debug)]
pub(super) struct Guard(Flock<File>);

/// The kinds of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// To read, and to add: nothing is removed meanwhile.
    Shared,
    /// To remove.
    Exclusive,
}

impl Store {
    /// The store in a directory, which is created when something is added.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All images, by name. Those without a name come last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn images(&self) -> Result<Vec<Image>> {
        let Some(_guard) = self.lock_existing(Access::Shared)? else { return Ok(Vec::new()) };
        let mut images: Vec<Image> = Vec::new();
        for Reference { name, manifest, .. } in self.references()? {
            match images.iter_mut().find(|image| image.manifest == manifest) {
                Some(known) => known.names.push(name),
                None => images.push(Image { names: vec![name], ..self.image(manifest)? }),
            }
        }
        Ok(images)
    }

    /// The image with a name, the path that it was imported from during a launch, or an id: `sha256:` and at least 12 digits
    /// of the digest of its configuration or manifest, or these digits alone.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or what is wrong with the store.
    pub fn find(&self, text: &str) -> Result<Image> {
        let not_found = || StoreError::NotFound { name: text.to_owned() };
        let _guard = self.lock_existing(Access::Shared)?.ok_or_else(not_found)?;
        self.find_locked(text)
    }

    /// As [`Self::find`], for who has a lock.
    fn find_locked(&self, text: &str) -> Result<Image> {
        let not_found = || StoreError::NotFound { name: text.to_owned() };
        if path_of(text).is_some() {
            let reference = self.reference(text)?.ok_or_else(not_found)?;
            return Ok(Image { names: vec![reference.name], ..self.image(reference.manifest)? });
        }
        if let Ok(name) = text.parse::<ImageName>()
            && let Some(reference) = self.reference(&name.to_string())?
        {
            check_digest(&name, reference.manifest, reference.index)?;
            return Ok(Image { names: vec![reference.name], ..self.image(reference.manifest)? });
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < MIN_ID || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_found());
        }
        let mut found: Vec<Image> = Vec::new();
        for Reference { name, manifest, .. } in self.references()? {
            if let Some(known) = found.iter_mut().find(|image| image.manifest == manifest) {
                known.names.push(name);
                continue;
            }
            let image = self.image(manifest)?;
            if manifest.hex().starts_with(digits) || image.id.hex().starts_with(digits) {
                found.push(Image { names: vec![name], ..image });
            }
        }
        match found.len() {
            0 => Err(not_found()),
            1 => Ok(found.remove(0)),
            _ if found.iter().all(|image| image.id == found[0].id) => Ok(found.remove(0)),
            count => Err(StoreError::Ambiguous { text: text.to_owned(), count }),
        }
    }

    /// The version of a file that the image was imported from whose name is the path of the file.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn stamp_of(&self, path: &str) -> Result<Option<Stamp>> {
        let Some(_guard) = self.lock_existing(Access::Shared)? else { return Ok(None) };
        Ok(self.reference(path)?.and_then(|reference| reference.stamp))
    }

    /// What a name stands for, if it is complete: the image, and the index of a registry that it was chosen from. An image of
    /// which something is missing or damaged is none.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn current(&self, name: &ImageName) -> Result<Option<(Image, Option<Digest>)>> {
        let Some(_guard) = self.lock_existing(Access::Shared)? else { return Ok(None) };
        let Some(reference) = self.reference(&name.to_string())? else { return Ok(None) };
        match self.image(reference.manifest) {
            Ok(image) => Ok(Some((Image { names: vec![reference.name], ..image }, reference.index))),
            Err(error) if error.is_of_image() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Directory with the content of a layer.
    #[must_use]
    pub fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layer_entry(diff_id).join("fs")
    }

    fn layer_entry(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers/sha256")
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn references_dir(&self) -> PathBuf {
        self.root.join("references")
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// The image of a manifest, all of whose layers are there.
    fn image(&self, manifest: Digest) -> Result<Image> {
        let (id, configuration) = self.documents(manifest)?;
        let platform = format!("{}/{}", configuration.os, configuration.architecture);
        let layers = configuration.rootfs.diff_ids;
        let mut size = 0;
        for layer in layers.iter().collect::<BTreeSet<_>>() {
            size += self.layer_size(layer)?.ok_or(StoreError::Incomplete { manifest, layer: *layer })?;
        }
        Ok(Image {
            id,
            manifest,
            names: Vec::new(),
            layers,
            size,
            created: configuration.created,
            platform,
            config: configuration.config.unwrap_or_default().for_plugins(),
        })
    }

    /// The id of an image and its configuration.
    fn documents(&self, manifest: Digest) -> Result<(Digest, Configuration)> {
        let malformed = |digest| move |source| StoreError::Malformed { digest, source };
        let document: Manifest =
            serde_json::from_slice(&self.blob(manifest)?).map_err(malformed(manifest))?;
        let id = document.config.digest;
        let configuration: Configuration = serde_json::from_slice(&self.blob(id)?).map_err(malformed(id))?;
        if configuration.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(StoreError::TooManyLayers { manifest });
        }
        Ok((id, configuration))
    }

    /// A manifest or a configuration, which is verified.
    fn blob(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.blobs().join(digest.hex());
        let bytes = read_small(&path, MAX_DOCUMENT)?.ok_or(StoreError::MissingBlob { digest })?;
        if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(StoreError::Damaged { path, digest }) }
    }

    /// The size of a layer; `None` if it is not there.
    fn layer_size(&self, diff_id: &Digest) -> Result<Option<u64>> {
        let path = self.layer_entry(diff_id).join("size");
        let Some(text) = read_small(&path, MAX_SMALL)? else { return Ok(None) };
        let size = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().parse().ok());
        size.map(Some).ok_or(StoreError::Damaged { path, digest: *diff_id })
    }

    fn reference_path(&self, name: &str) -> PathBuf {
        self.references_dir().join(Digest::of(name.as_bytes()).hex())
    }

    fn reference(&self, name: &str) -> Result<Option<Reference>> {
        read_json(&self.reference_path(name))
    }

    /// All names, sorted.
    fn references(&self) -> Result<Vec<Reference>> {
        let directory = self.references_dir();
        let mut references = Vec::new();
        for name in names_in(&directory, MAX_REFERENCES)? {
            references.extend(read_json::<Reference>(&directory.join(name))?);
        }
        references.sort_unstable_by(|one: &Reference, other| one.name.cmp(&other.name));
        Ok(references)
    }

    /// Locks the store if its directory exists.
    fn lock_existing(&self, access: Access) -> Result<Option<Guard>> {
        match fs::symlink_metadata(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => self.lock(access).map(Some),
        }
    }

    /// Waits for a lock. Creates the store if it does not exist.
    fn lock(&self, access: Access) -> Result<Guard> {
        let file = self.lock_file()?;
        let kind = match access {
            Access::Shared => FlockArg::LockShared,
            Access::Exclusive => FlockArg::LockExclusive,
        };
        let lock = Flock::lock(file, kind);
        lock.map(Guard).map_err(|(_, errno)| self.error("lock", errno.into()))
    }

    /// Locks the store for itself, if nobody else uses it.
    pub(super) fn try_lock_exclusive(&self) -> Result<Option<Guard>> {
        match Flock::lock(self.lock_file()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Guard(lock))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(self.error("lock", errno.into())),
        }
    }

    fn lock_file(&self) -> Result<File> {
        self.create()?;
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.root.join("lock"))
            .map_err(|source| self.error("open the lock of", source))
    }

    /// Creates the directories that are missing, and checks that nobody else can change the store.
    fn create(&self) -> Result<()> {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        if let Some(parent) = self.root.parent() {
            create_searchable(parent).map_err(|source| self.error("create the directory of", source))?;
        }
        for directory in [
            self.root.clone(),
            self.blobs(),
            self.layers(),
            self.references_dir(),
            self.downloads(),
            self.staging(),
        ] {
            private.create(&directory).map_err(|source| StoreError::Path { path: directory, source })?;
        }
        let found = fs::symlink_metadata(&self.root).map_err(|source| self.error("inspect", source))?;
        let own = rustix::process::geteuid().as_raw();
        if !found.is_dir() || found.uid() != own || found.mode() & 0o077 != 0 {
            return Err(StoreError::NotPrivate { path: self.root.clone(), user: own });
        }
        Ok(())
    }

    fn error(&self, action: &'static str, source: io::Error) -> StoreError {
        StoreError::Store { path: self.root.clone(), action, source }
    }
}

/// Checks that a name with a digest is one of the image with that digest, or of one that was chosen from the index with it.
fn check_digest(name: &ImageName, manifest: Digest, index: Option<Digest>) -> Result<()> {
    match name.digest {
        Some(digest) if digest != manifest && Some(digest) != index => {
            Err(StoreError::OtherDigest { name: name.to_string(), manifest })
        }
        _ => Ok(()),
    }
}

/// The names of the files in a directory, which may be missing.
fn names_in(directory: &Path, limit: usize) -> Result<Vec<String>> {
    let failed = |source| StoreError::Path { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if names.len() == limit {
            return Err(failed(io::Error::other(format!("it has more than {limit} entries"))));
        }
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    Ok(names)
}

/// The content of a file of the store; `None` if it is missing.
fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let failed = |source| StoreError::Path { path: path.to_owned(), source };
    let open = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > limit {
        true => Err(failed(io::Error::other(format!("it has more than {limit} bytes")))),
        false => Ok(Some(bytes)),
    }
}

/// A reference or a use. One that cannot be parsed is an error: what it holds would be removed.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read_small(path, MAX_SMALL)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|source| StoreError::Path { path: path.to_owned(), source: source.into() })
}

/// Writes a file so that it is there completely or not at all, also after a power failure.
fn write_durably(staging: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| StoreError::Path { path: path.to_owned(), source };
    let temporary = staging.join(unique("file"));
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    write().map_err(failed)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// A name that nobody else uses in `staging`.
fn unique(kind: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{kind}-{}-{number}-{:08x}", std::process::id(), RandomState::new().build_hasher().finish() >> 32)
}

/// Renames a directory unless its new name is taken. Returns whether it was renamed.
fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
