//! Root file systems from images.
//!
//! ```text
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
mod name;
mod overlay;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use cofferdam_plugin_model::{ContainerId, ImageRoot};

pub use backend::{Backend, check_overlay};
pub use copy::CopyError;
pub use digest::{Digest, HashReader, InvalidDigest};
pub use name::{ImageName, InvalidName};
pub use store::{AgentKey, Image, Import, PartialBlob, PrunePolicy, Pruned, StagedLayer, Store, StoreError};

pub(crate) use overlay::View;

/// Provides containers with root file systems.
#[derive(Debug)]
pub(crate) struct Provisioner {
    store: Store,
    agent: AgentKey,
    backend: Backend,
}

/// What a container is provided with.
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
    /// The image has no layers, or too many for the backend.
    #[error("the image has {layers} layers, but the backend `bind` needs one; choose `overlay` or `copy`")]
    Bind {
        /// Number of layers.
        layers: usize,
    },
    /// Nothing to run.
    #[error("the image has no layers, so there is nothing to run in it")]
    Empty,
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
        matches!(self, Self::Store(error) if error.is_invalid())
    }
}

impl Provisioner {
    pub(crate) fn new(store: Store, work_dir: &Path, backend: Backend) -> Self {
        Self { store, agent: AgentKey::new(work_dir), backend }
    }

    /// Provides a container with the root file system of an image. Blocks; fails soon once its launch is cancelled.
    ///
    /// Its part is recorded in the store, and in its scratch directory: a teardown that calls [`Self::release`] and removes
    /// that directory leaves nothing.
    pub(crate) fn provision(
        &self,
        image: &str,
        id: &ContainerId,
        scratch: &Path,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Provisioned, ProvisionError> {
        let image = self.store.acquire(image, &self.agent, id)?;
        let root = self.backend.assemble(&self.store, &image, scratch, is_cancelled)?;
        Ok(Provisioned { image, root })
    }

    /// A container needs its image no longer. Can be repeated. If the store refuses, the container ends all the same, and
    /// [`Self::release_unknown`] of the next agent tries it again.
    pub(crate) fn release(&self, id: &ContainerId) {
        if let Err(error) = self.store.release(&self.agent, id) {
            tracing::warn!(container = %id, "its image stays in use: {}", crate::error_chain::describe(&error));
        }
    }

    /// Releases what containers used that are gone.
    pub(crate) fn release_unknown(&self, is_known: impl Fn(&ContainerId) -> bool) {
        match self.store.release_unknown(&self.agent, is_known) {
            Ok(0) => {}
            Ok(count) => tracing::info!("released the images of {count} containers that are gone"),
            Err(error) => tracing::warn!("{}", crate::error_chain::describe(&error)),
        }
    }
}
