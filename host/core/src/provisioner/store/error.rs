//! Errors of the store.

use std::io;
use std::path::PathBuf;

use cofferdam_linux::tree;

use crate::provisioner::digest::Digest;
use crate::provisioner::name::InvalidName;

pub(super) type Result<T> = std::result::Result<T, StoreError>;

/// What is wrong with the store, or with what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such image.
    #[error("there is no image `{}` in the store; `cofferdam image pull` or `cofferdam image import` adds one", .name.escape_debug())]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// Several images match.
    #[error("`{text}` is the beginning of the ids of {count} images; give more of it")]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// How many.
        count: usize,
    },
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A name with a digest is not one of the image that has it, or would get it.
    #[error(
        "`{name}` is not a name of the image with manifest `{manifest}`; leave the digest out, or import the image that has it"
    )]
    OtherDigest {
        /// The name.
        name: String,
        /// The image.
        manifest: Digest,
    },
    /// A layer is missing.
    #[error(
        "layer `{layer}` of the image with manifest `{manifest}` is missing; import or pull the image again"
    )]
    Incomplete {
        /// The image.
        manifest: Digest,
        /// The layer.
        layer: Digest,
    },
    /// A manifest or configuration is missing.
    #[error("`{digest}` is missing in the store; import or pull the image again")]
    MissingBlob {
        /// Its digest.
        digest: Digest,
    },
    /// A file has other content than its name says.
    #[error("`{}` is damaged: it is not `{digest}`; remove it, and import or pull the image again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should be.
        digest: Digest,
    },
    /// A document is malformed.
    #[error("`{digest}` is not a manifest or configuration of an image that this version knows")]
    Malformed {
        /// Its digest.
        digest: Digest,
        /// Why.
        source: serde_json::Error,
    },
    /// An image has more layers than the kernel can mount.
    #[error("the image with manifest `{manifest}` has more than 500 layers")]
    TooManyLayers {
        /// The image.
        manifest: Digest,
    },
    /// Other users could change the store, or enter it.
    #[error(
        "the image store `{}` must be a directory that user {user} owns and nobody else can enter (mode 0700), as images contain set-user-ID programs",
        path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// The user of this process.
        user: u32,
    },
    /// An operation on the store failed.
    #[error("cannot {action} the image store `{}`", path.display())]
    Store {
        /// Its directory.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An operation on a path in the store failed.
    #[error("cannot use `{}` of the image store", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something cannot be removed.
    #[error("cannot remove it from the image store")]
    Remove(#[from] tree::RemoveError),
}

impl StoreError {
    /// Whether the error is in what was asked for.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Ambiguous { .. } | Self::Name(_))
    }

    /// Whether the store has no image of the name that was asked for.
    pub(in crate::provisioner) fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::OtherDigest { .. })
    }

    /// Whether the image has to be added again.
    pub(in crate::provisioner) fn is_of_image(&self) -> bool {
        matches!(
            self,
            Self::Incomplete { .. }
                | Self::MissingBlob { .. }
                | Self::Damaged { .. }
                | Self::Malformed { .. }
        )
    }
}
