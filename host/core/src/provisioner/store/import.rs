//! Additions to the store.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_linux::tree;
use nix::fcntl::FlockArg;

use super::error::{Result, StoreError};
use super::{
    Access, Guard, Image, PartialBlob, Reference, Store, check_digest, names_in, rename_new, sync_parent,
    unique, write_durably,
};
use crate::provisioner::digest::Digest;
use crate::provisioner::local::Stamp;
use crate::provisioner::name::ImageName;

/// The age of a part of a blob that nobody will continue to download.
const ABANDONED: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// An addition to the store, which nothing is removed from meanwhile.
#[derive(Debug)]
pub struct Import {
    store: Store,
    _guard: Guard,
}

/// A layer that is being unpacked. It is removed if it is dropped before it is added.
#[derive(Debug)]
pub struct StagedLayer {
    path: PathBuf,
}

impl Store {
    /// Begins an addition. Removes what others have not completed, unless somebody may still be at it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn import(&self) -> Result<Import> {
        let guard = match self.remove_abandoned()? {
            Some(guard) => guard,
            None => self.lock(Access::Shared)?,
        };
        Ok(Import { store: self.clone(), _guard: guard })
    }

    /// Removes what others have not completed, unless somebody may still be at it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sweep(&self) -> Result<()> {
        self.remove_abandoned().map(drop)
    }

    /// As [`Self::sweep`], if the store exists. Returns whether nobody else used it.
    pub(in crate::provisioner) fn sweep_existing(&self) -> Result<bool> {
        match fs::symlink_metadata(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            _ => Ok(self.remove_abandoned()?.is_some()),
        }
    }

    /// As [`Self::sweep`]. Returns a shared lock, unless somebody else uses the store.
    fn remove_abandoned(&self) -> Result<Option<Guard>> {
        let Some(guard) = self.try_lock_exclusive()? else { return Ok(None) };
        // Whatever is there now is abandoned, and others can use the store while it is removed.
        let abandoned = names_in(&self.staging(), usize::MAX)?;
        if let Err(error) = self.remove_downloads(ABANDONED) {
            tracing::warn!("an abandoned download stays: {}", crate::error_chain::describe(&error));
        }
        let shared = guard.0.relock(FlockArg::LockShared);
        shared.map_err(|errno| self.error("lock", errno.into()))?;
        for name in abandoned {
            if let Err(error) = tree::remove(&self.staging().join(name)) {
                tracing::warn!("an abandoned import stays: {}", crate::error_chain::describe(&error));
            }
        }
        Ok(Some(guard))
    }

    /// A file on the file system of the store that nobody else sees and that is gone when it is closed. It needs no lock.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn temporary_file(&self) -> Result<File> {
        self.create()?;
        let path = self.staging().join(unique("temporary"));
        let create = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            match fs::remove_file(&path) {
                // Somebody who removes what is abandoned was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(file),
                removed => removed.map(|()| file),
            }
        };
        create().map_err(|source| StoreError::Path { path: path.clone(), source })
    }
}

impl Import {
    /// Whether a layer is there already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        Ok(self.store.layer_size(diff_id)?.is_some())
    }

    /// The part of a blob that was downloaded. Waits until nobody else downloads it; `wait` is called before.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn download(&self, blob: &Digest, wait: impl FnOnce()) -> Result<PartialBlob> {
        PartialBlob::lock(self.store.downloads().join(blob.hex()), wait)
    }

    /// Removes what was downloaded of a blob whose layer is there, unless somebody is downloading it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn discard_download(&self, blob: &Digest) -> Result<()> {
        let found = PartialBlob::try_lock(self.store.downloads().join(blob.hex()))?;
        found.map_or(Ok(()), PartialBlob::remove)
    }

    /// Begins a layer.
    ///
    /// # Errors
    /// If its directory cannot be created.
    pub fn stage_layer(&self) -> Result<StagedLayer> {
        let path = self.store.staging().join(unique("layer"));
        let staged = StagedLayer { path };
        let make = |path: &Path, mode| DirBuilder::new().mode(mode).create(path);
        make(&staged.path, 0o700)
            .and_then(|()| make(&staged.root(), 0o755))
            .map_err(|source| StoreError::Path { path: staged.path.clone(), source })?;
        Ok(staged)
    }

    /// Adds a layer of which everything was verified. `size` is that of its content in bytes.
    ///
    /// # Errors
    /// [`StoreError`]; the layer is not in the store then.
    pub fn add_layer(&self, staged: StagedLayer, diff_id: &Digest, size: u64) -> Result<()> {
        let entry = self.store.layer_entry(diff_id);
        let add = || -> io::Result<()> {
            fs::write(staged.path.join("size"), format!("{size}\n"))?;
            // All of its files are on disk before it has its name.
            rustix::fs::syncfs(File::open(&staged.path)?)?;
            // Somebody else may have added it meanwhile: then this one is removed.
            rename_new(&staged.path, &entry)?;
            sync_parent(&entry)
        };
        add().map_err(|source| StoreError::Path { path: entry.clone(), source })
    }

    /// Adds a manifest or a configuration.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        write_durably(&self.store.staging(), &self.store.blobs().join(digest.hex()), bytes)?;
        Ok(digest)
    }

    /// Gives an image whose manifest was added a name, which another image may have had. `index` is that of a registry which
    /// the manifest was chosen from, and whose digest the name may have.
    ///
    /// # Errors
    /// If the name has the digest of another image, the image is not complete, or the name cannot be written.
    pub fn add_name(&self, name: &ImageName, manifest: Digest, index: Option<Digest>) -> Result<Image> {
        check_digest(name, manifest, index)?;
        self.add_reference(Reference { name: name.to_string(), manifest, index, stamp: None })
    }

    /// Gives an image whose manifest was added the path that it was imported from as its name. `stamp` is that of the file.
    ///
    /// # Errors
    /// If the image is not complete, or the name cannot be written.
    pub fn add_path(&self, path: &str, manifest: Digest, stamp: Option<Stamp>) -> Result<Image> {
        self.add_reference(Reference { name: path.to_owned(), manifest, index: None, stamp })
    }

    fn add_reference(&self, reference: Reference) -> Result<Image> {
        let image = self.store.image(reference.manifest)?;
        let name = reference.name.clone();
        let bytes = serde_json::to_vec(&reference).map_err(|error| StoreError::Path {
            path: self.store.reference_path(&name),
            source: error.into(),
        })?;
        write_durably(&self.store.staging(), &self.store.reference_path(&name), &bytes)?;
        Ok(Image { names: vec![name], ..image })
    }
}

impl StagedLayer {
    /// The directory to unpack into.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path.join("fs")
    }
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        // It is gone if it was added. If this fails, a later import removes it.
        drop(tree::remove(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::provisioner::PrunePolicy;

    #[test]
    fn downloads_that_nobody_continues_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        let import = store.import().unwrap();
        let [old, new] = [&b"old"[..], b"new"].map(Digest::of);
        for blob in [&old, &new] {
            import.download(blob, || {}).unwrap().write(b"part", 0).unwrap();
        }
        drop(import);
        let path = store.downloads().join(old.hex());
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - ABANDONED).unwrap();
        drop(store.import().unwrap());
        assert_eq!(names_in(&store.downloads(), 10).unwrap(), [new.hex()]);
        assert_eq!(store.prune(&PrunePolicy::default()).unwrap().bytes, 4);
        assert!(names_in(&store.downloads(), 10).unwrap().is_empty());
    }
}
