//! Root file systems from images.
//!
//! ```text
//! pull      what the store does not have is pulled by whoever embeds the agent
//!   ▼
//! store     images: content by digest, shared by agents, never changed
//!   │ acquire                                          nothing of it is removed meanwhile
//!   ▼
//! backend   overlay: the layers as they are            the container's changes go to a layer of its own
//!           copy:    a copy of them in its scratch directory
//!           bind:    the only layer, read-only
//! ```
//!
//! Nothing is mounted on the host: the layers are passed to the plugin that provides root file systems, and mounted where
//! the container alone sees them. What a container is given here ends with its scratch directory.
//!
//! Unpacking archives and talking to registries is up to a process of its own, as whoever made them is not trusted.

mod backend;
mod copy;
mod digest;
pub mod document;
mod local;
mod name;
mod place;
mod pull;
mod store;
mod sweep;
mod view;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cofferdam_plugin_model::{ContainerId, ImageRoot};

use crate::blocking::BlockingPool;

pub use backend::{Backend, check_overlay};
pub use copy::CopyError;
pub use digest::{Digest, HashReader, InvalidDigest};
pub use local::{LocalError, LocalImage, Stamp};
pub use name::{ImageName, InvalidName};
pub use place::Place;
pub use pull::{Cancelled, Pull, PullError, PullSource, Puller};
pub use store::{
    AgentKey, FreedSpace, FreeingEnd, Image, Import, PartialBlob, PrunePolicy, Pruned, SpacePolicy,
    StagedLayer, Store, StoreError,
};

pub(crate) use pull::{Pulled, WaitingForPull};
pub(crate) use view::View;

use document::Platform;
use pull::Pulls;
use sweep::Sweep;

/// Provides containers with root file systems.
pub(crate) struct Provisioner {
    store: Store,
    agent: AgentKey,
    backend: Backend,
    /// Directories of this machine that images may be read from.
    local_images: Vec<PathBuf>,
    pulls: Pulls,
    sweeping: OnceLock<Sweep>,
    pool: BlockingPool,
}

/// An image that a container requests.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// Its name or id.
    pub(crate) image: String,
    /// What it is for.
    pub(crate) place: Place,
    /// Whether the registry is asked even if the store has it.
    pub(crate) force_pull: bool,
    /// Credentials for its registry.
    pub(crate) credentials: Option<String>,
}

/// What a container or one of its volumes is provided with.
#[derive(Debug)]
pub(crate) struct Provisioned {
    pub(crate) image: Image,
    pub(crate) root: ImageRoot,
}

/// Why a container has no root file system.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be pulled.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// It is in a file or directory that it is not read from.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The image has no layers, or too many for the backend.
    #[error("the image has {layers} layers, but the backend `bind` needs one; choose `overlay` or `copy`")]
    Bind {
        /// Number of layers.
        layers: usize,
    },
    /// Nothing to run.
    #[error("the image has no layers, so there is nothing to run in it")]
    Empty,
    /// The image has a symbolic link where a file system of the kernel is mounted.
    #[error("`/{name}` of the image is a symbolic link; it must be a directory, or missing")]
    Linked {
        /// The name in the root directory.
        name: &'static str,
    },
    /// The kernel refuses an overlay.
    #[error(
        "the kernel cannot mount an overlay with its upper layer in `{}`; choose another `work_dir`, or `image_backend = \"copy\"`",
        path.display()
    )]
    Overlay {
        /// The scratch directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A layer cannot be copied.
    #[error("cannot copy layer `{layer}`")]
    Copy {
        /// The layer.
        layer: Digest,
        /// Why.
        source: CopyError,
    },
    /// The layers cannot be shown to plugins.
    #[error("cannot mount the layers of the image")]
    View {
        /// Why.
        source: io::Error,
    },
}

impl ProvisionError {
    /// Whether the error is in the request.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Store(error) => error.is_invalid(),
            Self::Local(error) => error.is_invalid(),
            Self::Pull(PullError::Failed { is_invalid, .. }) => *is_invalid,
            Self::Pull(PullError::NotConfigured) | Self::Linked { .. } => true,
            _ => false,
        }
    }
}

impl Provisioner {
    pub(crate) fn new(
        store: Store,
        work_dir: &Path,
        backend: Backend,
        local_images: Vec<PathBuf>,
        puller: Option<Arc<dyn Puller>>,
        pool: BlockingPool,
    ) -> Self {
        let (agent, pulls) = (AgentKey::new(work_dir), Pulls::new(puller));
        Self { store, agent, backend, local_images, pulls, sweeping: OnceLock::new(), pool }
    }

    /// What has to be pulled before a container can be provided with an image. `None` if nothing can or has to be: then it is
    /// in use by the container if the store has it, and nobody removes it. Blocks.
    pub(crate) fn missing(&self, wanted: &Wanted, id: &ContainerId) -> Result<Option<Pull>, ProvisionError> {
        let Wanted { image, place, force_pull, credentials } = wanted;
        if !self.pulls.can_pull() {
            return if *force_pull { Err(PullError::NotConfigured.into()) } else { Ok(None) };
        }
        if let Some(path) = local::path_of(image) {
            return self.missing_local(path, wanted, id);
        }
        // An id names no registry.
        let Ok(name) = image.parse::<ImageName>() else { return Ok(None) };
        let is_missing = *force_pull
            || match self.store.acquire(image, &self.agent, id, *place) {
                Ok(found) => !Platform::host().runs(&found.platform),
                Err(error) if error.is_absence() || error.is_of_image() => true,
                Err(error) => return Err(error.into()),
            };
        let (store, credentials) = (self.store.root().to_owned(), credentials.clone());
        let source = PullSource::Registry(name);
        Ok(is_missing.then_some(Pull { source, store, credentials }))
    }

    /// As [`Self::missing`], for an image in a file or directory: it has to be imported unless the store has it from this
    /// version of the file. Whether a directory has changed is told by its import.
    fn missing_local(
        &self,
        path: &Path,
        wanted: &Wanted,
        id: &ContainerId,
    ) -> Result<Option<Pull>, ProvisionError> {
        let found = LocalImage::open(path, Some(&self.local_images))?;
        let is_current = !wanted.force_pull
            && found.stamp().is_some()
            && self.store.stamp_of(&wanted.image)?.as_ref() == found.stamp();
        if is_current {
            match self.store.acquire(&wanted.image, &self.agent, id, wanted.place) {
                Ok(image) if Platform::host().runs(&image.platform) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.is_absence() || error.is_of_image() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (path, permitted) = (path.to_owned(), self.local_images.clone());
        let source = PullSource::Local { path, permitted };
        Ok(Some(Pull { source, store: self.store.root().to_owned(), credentials: None }))
    }

    /// Removes what pulls and imports have left in the store that were killed, once nobody can still be at it. Whoever uses the
    /// store can go on meanwhile. Must be called in a tokio runtime.
    pub(crate) fn sweep(&self) {
        let removals = self.pool.removals().clone();
        self.sweeping.get_or_init(|| Sweep::start(self.store.clone(), removals));
    }

    /// Begins a pull, or waits for one that is in progress. Must be called in a tokio runtime.
    pub(crate) fn wait_for(&self, pull: Pull) -> Result<WaitingForPull, ProvisionError> {
        Ok(self.pulls.wait(pull, &self.pool)?)
    }

    /// Provides a container or one of its volumes with the root file system of an image. Blocks; fails soon once its launch
    /// is cancelled.
    ///
    /// Its part is recorded in the store, and in its scratch directory: a teardown that calls [`Self::release`] and removes
    /// that directory leaves nothing.
    pub(crate) fn provision(
        &self,
        wanted: &Wanted,
        id: &ContainerId,
        scratch: &Path,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Provisioned, ProvisionError> {
        let Wanted { image, place, .. } = wanted;
        let image = self.store.acquire(image, &self.agent, id, *place)?;
        let root = self.backend.assemble(&self.store, &image, *place, scratch, is_cancelled)?;
        Ok(Provisioned { image, root })
    }

    /// A container needs its image and those of its volumes no longer. Can be repeated. If the store refuses, the container
    /// ends all the same, and [`Self::release_unknown`] of the next agent tries it again.
    pub(crate) fn release(&self, id: &ContainerId, volumes: usize) {
        if let Err(error) = self.store.release(&self.agent, id, volumes) {
            tracing::warn!(container = %id, "its images stay in use: {}", crate::error_chain::describe(&error));
        }
    }

    /// Releases what containers used that are gone.
    pub(crate) fn release_unknown(&self, is_known: impl Fn(&ContainerId) -> bool) {
        match self.store.release_unknown(&self.agent, is_known) {
            Ok(0) => {}
            Ok(count) => tracing::info!("released {count} images of containers that are gone"),
            Err(error) => tracing::warn!("{}", crate::error_chain::describe(&error)),
        }
    }
}
