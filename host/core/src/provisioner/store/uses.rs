//! What containers use of the store, so that nobody removes it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::error::{Result, StoreError};
use super::{Access, Image, MAX_SMALL, Store, names_in, read_small, unique};
use crate::model::ContainerId;
use crate::provisioner::digest::Digest;
use crate::provisioner::place::Place;

/// How often a use is written whose directory is removed meanwhile.
const ATTEMPTS: usize = 100;

/// What identifies an agent in a store: its work directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey(String);

impl AgentKey {
    /// That of the agent with this work directory.
    #[must_use]
    pub fn new(work_dir: &Path) -> Self {
        Self(Digest::of(work_dir.as_os_str().as_encoded_bytes()).hex()[..16].to_owned())
    }
}

/// What a container uses for its root file system or a volume.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Use {
    /// The image.
    pub(super) manifest: Digest,
    /// The layers of the image.
    pub(super) layers: Vec<Digest>,
}

impl Store {
    /// Finds an image for a container, which nobody removes before [`Self::release`]. Can be repeated.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn acquire(
        &self,
        text: &str,
        agent: &AgentKey,
        container: &ContainerId,
        place: Place,
    ) -> Result<Image> {
        let not_found = || StoreError::NotFound { name: text.to_owned() };
        let _guard = self.lock_existing(Access::Shared)?.ok_or_else(not_found)?;
        let image = self.find_locked(text)?;
        let path = self.uses_of(agent, place).join(container.as_str());
        let written = Use { manifest: image.manifest, layers: image.layers.clone() };
        let write_once = || -> io::Result<()> {
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            // No container that it is for survives a power failure, so it need not be on disk.
            let temporary = self.staging().join(unique("use"));
            let written = fs::write(&temporary, serde_json::to_vec(&written)?);
            written.and_then(|()| fs::rename(&temporary, &path)).inspect_err(|_| {
                // If this fails, the next import removes it.
                let _ = fs::remove_file(&temporary);
            })
        };
        let mut outcome = write_once();
        for _ in 1..ATTEMPTS {
            match &outcome {
                // The last container of this agent was released, and the directory with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => outcome = write_once(),
                _ => break,
            }
        }
        outcome.map_err(|source| StoreError::Path { path: path.clone(), source })?;
        image.names.iter().for_each(|name| self.note_use(name));
        Ok(image)
    }

    /// Notes when the image of a name was used last.
    fn note_use(&self, name: &str) {
        let path = self.reference_path(name);
        let noted = File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        if let Err(error) = noted.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!("cannot note the use of `{name}`: {error}");
        }
    }

    /// A container does not use its image and those of its volumes any more. Can be repeated.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn release(&self, agent: &AgentKey, container: &ContainerId, volumes: usize) -> Result<()> {
        let of_volumes = (1..=volumes).map(|number| Place::Volume { number, read_only: false });
        let places = std::iter::once(Place::Root).chain(of_volumes);
        let release = |place| {
            let directory = self.uses_of(agent, place);
            let released = remove_use(&directory, container);
            // Fails unless that was the last one.
            drop(fs::remove_dir(&directory));
            released
        };
        // All of them, also if one fails.
        let outcomes: Vec<_> = places.map(release).collect();
        outcomes.into_iter().collect()
    }

    /// Releases what containers of an agent use that it does not know any more. Returns how many images there were.
    ///
    /// # Errors
    /// If the directory cannot be read, or the kernel refuses.
    pub fn release_unknown(
        &self,
        agent: &AgentKey,
        is_known: impl Fn(&ContainerId) -> bool,
    ) -> Result<usize> {
        let uses = self.uses();
        let mut released = 0;
        for directory in names_in(&uses, usize::MAX)? {
            if !Place::is_of(&directory, &agent.0) {
                continue;
            }
            let directory = uses.join(directory);
            for name in names_in(&directory, usize::MAX)? {
                let Ok(id) = ContainerId::parse(&name) else { continue };
                if !is_known(&id) {
                    remove_use(&directory, &id)?;
                    released += 1;
                }
            }
            drop(fs::remove_dir(&directory));
        }
        Ok(released)
    }

    /// The manifests and layers that containers use.
    pub(super) fn in_use(&self) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>)> {
        let (mut manifests, mut layers) = (BTreeSet::new(), BTreeSet::new());
        let uses = self.uses();
        for directory in names_in(&uses, usize::MAX)? {
            let directory = uses.join(directory);
            for container in names_in(&directory, usize::MAX)? {
                let Some(bytes) = read_small(&directory.join(container), MAX_SMALL)? else { continue };
                // It was complete before it had its name. So one that is not was cut off by a power failure, as it is not
                // synchronized to disk, and its container is gone.
                if let Ok(used) = serde_json::from_slice::<Use>(&bytes) {
                    manifests.insert(used.manifest);
                    layers.extend(used.layers);
                }
            }
        }
        Ok((manifests, layers))
    }

    fn uses(&self) -> PathBuf {
        self.root.join("uses")
    }

    fn uses_of(&self, agent: &AgentKey, place: Place) -> PathBuf {
        self.uses().join(place.uses(&agent.0))
    }
}

fn remove_use(directory: &Path, container: &ContainerId) -> Result<()> {
    let path = directory.join(container.as_str());
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Path { path, source }),
        _ => Ok(()),
    }
}
