//! Removal of what is not used.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use cofferdam_linux::tree;
use nix::fcntl::FlockArg;

use super::error::{Result, StoreError};
use super::{Access, MAX_REFERENCES, Reference, Store, names_in, rename_new, sync_parent, unique};
use crate::provisioner::digest::Digest;
use crate::provisioner::name::ImageName;

/// What is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Also images that have a name and that no container uses.
    pub named: bool,
    /// Images that stay nevertheless.
    pub excluded: Vec<ImageName>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of images.
    pub names: Vec<String>,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of their content, and of what was downloaded of blobs that are not complete.
    pub bytes: u64,
}

impl Store {
    /// Takes a name away from an image, and removes what nothing refers to any more. What containers use stays until they
    /// have ended, and then until the next removal.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or what is wrong with the store.
    pub fn remove(&self, text: &str) -> Result<Pruned> {
        let not_found = || StoreError::NotFound { name: text.to_owned() };
        let guard = self.lock_existing(Access::Exclusive)?.ok_or_else(not_found)?;
        let name = text.parse::<ImageName>().ok().map(|name| name.to_string());
        let names = match name.filter(|name| self.reference_path(name).exists()) {
            Some(name) => vec![name],
            None => self.find_locked(text)?.names,
        };
        for name in &names {
            self.remove_reference(name)?;
        }
        let pruned = self.collect()?;
        self.empty_staging(guard)?;
        Ok(Pruned { names, ..pruned })
    }

    /// Removes what nothing refers to, and what else the policy says.
    ///
    /// # Errors
    /// What is wrong with the store.
    pub fn prune(&self, policy: &PrunePolicy) -> Result<Pruned> {
        match self.lock_existing(Access::Exclusive)? {
            Some(guard) => self.prune_locked(policy, guard),
            None => Ok(Pruned::default()),
        }
    }

    /// As [`Self::prune`], unless somebody else uses the store.
    ///
    /// # Errors
    /// What is wrong with the store.
    pub fn try_prune(&self, policy: &PrunePolicy) -> Result<Option<Pruned>> {
        match self.try_lock_exclusive()? {
            Some(guard) => self.prune_locked(policy, guard).map(Some),
            None => Ok(None),
        }
    }

    fn prune_locked(&self, policy: &PrunePolicy, guard: super::Guard) -> Result<Pruned> {
        let mut names = Vec::new();
        if policy.named {
            let (used, _) = self.in_use()?;
            let excluded: BTreeSet<String> = policy.excluded.iter().map(ToString::to_string).collect();
            for Reference { name, manifest, .. } in self.references()? {
                if !used.contains(&manifest) && !excluded.contains(&name) {
                    self.remove_reference(&name)?;
                    names.push(name);
                }
            }
        }
        let downloaded = self.remove_downloads(Duration::ZERO)?;
        let pruned = self.collect()?;
        self.empty_staging(guard)?;
        Ok(Pruned { names, bytes: pruned.bytes + downloaded, ..pruned })
    }

    /// Removes what was downloaded of blobs that are not complete, and that nobody has continued for a time. Returns how many
    /// bytes. For who has the lock exclusively: nobody downloads meanwhile.
    pub(super) fn remove_downloads(&self, age: Duration) -> Result<u64> {
        let mut bytes = 0;
        for name in names_in(&self.downloads(), usize::MAX)? {
            let path = self.downloads().join(name);
            let remove = || {
                let metadata = fs::symlink_metadata(&path)?;
                // One of the future is as new as any.
                if metadata.modified()?.elapsed().unwrap_or_default() < age {
                    return Ok(0);
                }
                fs::remove_file(&path).map(|()| metadata.len())
            };
            bytes += remove().map_err(|source| StoreError::Path { path: path.clone(), source })?;
        }
        Ok(bytes)
    }

    pub(super) fn remove_reference(&self, name: &str) -> Result<()> {
        let path = self.reference_path(name);
        let remove = || fs::remove_file(&path).and_then(|()| sync_parent(&path));
        remove().map_err(|source| StoreError::Path { path: path.clone(), source })
    }

    /// Moves layers that nothing refers to out of the way, and removes blobs.
    pub(super) fn collect(&self) -> Result<Pruned> {
        let (mut manifests, mut layers) = self.in_use()?;
        manifests.extend(self.references()?.into_iter().map(|reference| reference.manifest));
        let mut blobs = manifests.clone();
        for manifest in manifests {
            match self.documents(manifest) {
                Ok((id, configuration)) => {
                    blobs.insert(id);
                    layers.extend(configuration.rootfs.diff_ids);
                }
                // It cannot be launched from; its name stays, to be imported again.
                Err(error) if error.is_of_image() => {}
                Err(error) => return Err(error),
            }
        }
        let mut pruned = Pruned::default();
        for name in names_in(&self.layers(), usize::MAX)? {
            let digest = Digest::from_hex(&name).ok();
            if digest.is_some_and(|digest| layers.contains(&digest)) {
                continue;
            }
            pruned.layers += 1;
            if let Some(digest) = &digest {
                // A layer whose size cannot be read is removed as well.
                pruned.bytes += self.layer_size(digest).ok().flatten().unwrap_or(0);
            }
            let path = self.layers().join(&name);
            rename_new(&path, &self.staging().join(unique("removed")))
                .map_err(|source| StoreError::Path { path: path.clone(), source })?;
        }
        for name in names_in(&self.blobs(), usize::MAX)? {
            if Digest::from_hex(&name).is_ok_and(|digest| blobs.contains(&digest)) {
                continue;
            }
            let path = self.blobs().join(&name);
            fs::remove_file(&path).map_err(|source| StoreError::Path { path: path.clone(), source })?;
        }
        Ok(pruned)
    }

    /// Removes what is in `staging`: nobody was adding anything when this lock was taken. Others can use the store meanwhile.
    pub(super) fn empty_staging(&self, guard: super::Guard) -> Result<()> {
        let names = names_in(&self.staging(), MAX_REFERENCES)?;
        guard.0.relock(FlockArg::LockShared).map_err(|errno| self.error("lock", errno.into()))?;
        for name in names {
            tree::remove(&self.staging().join(name))?;
        }
        Ok(())
    }
}
