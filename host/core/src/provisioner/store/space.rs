//! Automatic removal of images, as long as the file system of the store is too full.

use std::fs;
use std::time::{Duration, SystemTime};

use super::error::{Result, StoreError};
use super::{Pruned, Reference, Store};
use crate::provisioner::name::ImageName;

/// How much of the file system has to be available, and what stays nevertheless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpacePolicy {
    /// Percent of the file system that have to be available.
    pub headroom_percent: u64,
    /// Images that stay.
    pub excluded: Vec<ImageName>,
}

/// What was removed, and whether it was enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreedSpace {
    /// What was removed.
    pub pruned: Pruned,
    /// Why no more was removed.
    pub end: FreeingEnd,
}

/// Why no more was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeingEnd {
    /// There is enough space.
    Enough,
    /// Somebody is adding something, or reading: it has to be tried again.
    Busy,
    /// Containers use what is left, or it is excluded.
    NothingLeft,
}

impl Store {
    /// Removes what nothing refers to, and then the images that were not used for the longest time, until there is enough
    /// space. What containers use stays. Waits for nobody.
    ///
    /// # Errors
    /// What is wrong with the store.
    pub fn free_space(&self, policy: &SpacePolicy) -> Result<FreedSpace> {
        let mut pruned = Pruned::default();
        let mut is_first = true;
        loop {
            if !self.root.exists() || self.has_space(policy.headroom_percent)? {
                return Ok(FreedSpace { pruned, end: FreeingEnd::Enough });
            }
            let Some(guard) = self.try_lock_exclusive()? else {
                return Ok(FreedSpace { pruned, end: FreeingEnd::Busy });
            };
            if is_first {
                pruned.bytes += self.remove_downloads(Duration::ZERO)?;
            } else {
                let Some(name) = self.least_recently_used(policy)? else {
                    return Ok(FreedSpace { pruned, end: FreeingEnd::NothingLeft });
                };
                self.remove_reference(&name)?;
                pruned.names.push(name);
            }
            is_first = false;
            let Pruned { layers, bytes, .. } = self.collect()?;
            pruned.layers += layers;
            pruned.bytes += bytes;
            self.empty_staging(guard)?;
        }
    }

    /// Whether so many percent of the file system are available to users, as `df` shows it.
    fn has_space(&self, percent: u64) -> Result<bool> {
        let found = rustix::fs::statvfs(&self.root).map_err(|errno| self.error("inspect", errno.into()))?;
        let available = u128::from(found.f_bavail);
        let usable = u128::from(found.f_blocks.saturating_sub(found.f_bfree)) + available;
        Ok(available * 100 >= usable * u128::from(percent))
    }

    /// The name of an image that no container uses, and whose last container is the longest ago, or its pull if there was none.
    fn least_recently_used(&self, policy: &SpacePolicy) -> Result<Option<String>> {
        let (used, _) = self.in_use()?;
        let mut oldest: Option<(SystemTime, String)> = None;
        for Reference { name, manifest, .. } in self.references()? {
            let is_excluded = policy.excluded.iter().any(|excluded| excluded.to_string() == name);
            if is_excluded || used.contains(&manifest) {
                continue;
            }
            let path = self.reference_path(&name);
            let modified = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
            let modified = modified.map_err(|source| StoreError::Path { path, source })?;
            if oldest.as_ref().is_none_or(|(time, _)| modified < *time) {
                oldest = Some((modified, name));
            }
        }
        Ok(oldest.map(|(_, name)| name))
    }
}
