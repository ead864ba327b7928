//! How the layers of an image become a root file system.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cofferdam_linux::overlay::{self, Upper};
use cofferdam_linux::tree;
use cofferdam_plugin_model::ImageRoot;

use super::{Digest, Image, Place, ProvisionError, Store, copy};

/// How the layers of an image become a root file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// [`Self::Overlay`] where the kernel can mount one, [`Self::Copy`] elsewhere.
    #[default]
    Auto,
    /// The layers are mounted together, below one that the container's changes are written to.
    Overlay,
    /// The layers are copied for each container.
    Copy,
    /// The only layer of an image is mounted read-only.
    Bind,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Overlay, Self::Copy, Self::Bind];

    /// Name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Overlay => "overlay",
            Self::Copy => "copy",
            Self::Bind => "bind",
        }
    }

    /// Assembles the root file system of a container or of a volume; what is created is in the container's scratch directory.
    /// The only layer of a volume that nobody writes to needs no backend.
    pub(super) fn assemble(
        self,
        store: &Store,
        image: &Image,
        place: Place,
        scratch: &Path,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<ImageRoot, ProvisionError> {
        let layers = visible(&image.layers);
        // The topmost first, as the kernel has them.
        let directories: Vec<PathBuf> = layers.iter().rev().map(|layer| store.layer(layer)).collect();
        let Some(topmost) = directories.first().cloned() else { return Err(ProvisionError::Empty) };
        if let (Place::Volume { read_only: true, .. }, 1) = (place, directories.len()) {
            return Ok(ImageRoot::ReadOnly { path: topmost });
        }
        match self {
            Self::Overlay => {
                check_overlay(&topmost, scratch)?;
                Ok(ImageRoot::Layers { directories })
            }
            Self::Auto => match check_overlay(&topmost, scratch) {
                Ok(()) => Ok(ImageRoot::Layers { directories }),
                Err(error) => {
                    tracing::debug!("images are copied: {}", crate::error_chain::describe(&error));
                    copy_layers(store, &layers, place.directory(scratch), is_cancelled)
                }
            },
            Self::Copy => copy_layers(store, &layers, place.directory(scratch), is_cancelled),
            Self::Bind if directories.len() == 1 => Ok(ImageRoot::ReadOnly { path: topmost }),
            Self::Bind => Err(ProvisionError::Bind { layers: directories.len() }),
        }
    }
}

/// The layers without those that are there once more above: everything of the lower one is hidden by the same in the upper
/// one, and the kernel does not mount a directory twice in an overlay.
fn visible(layers: &[Digest]) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut visible: Vec<Digest> = layers.iter().rev().copied().filter(|layer| seen.insert(*layer)).collect();
    visible.reverse();
    visible
}

/// Checks that the kernel mounts an overlay with an upper layer in a scratch directory, by mounting one that nobody sees.
///
/// # Errors
/// [`ProvisionError::Overlay`].
pub fn check_overlay(lower: &Path, scratch: &Path) -> Result<(), ProvisionError> {
    let (upper, work) = (scratch.join("probe-upper"), scratch.join("probe-work"));
    let probe = || -> io::Result<()> {
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        make(&upper)?;
        make(&work)?;
        overlay::mount(&[lower], Some(Upper { upper: &upper, work: &work })).map(drop)
    };
    let mounted = probe();
    let removed = [upper, work].iter().try_for_each(|path| tree::remove(path));
    mounted
        .and_then(|()| removed.map_err(io::Error::other))
        .map_err(|source| ProvisionError::Overlay { path: scratch.to_owned(), source })
}

/// Copies the layers into a directory of the container's own, which is created.
fn copy_layers(
    store: &Store,
    layers: &[Digest],
    path: PathBuf,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<ImageRoot, ProvisionError> {
    for layer in layers {
        let source = store.layer(layer);
        let failed = |source| ProvisionError::Copy { layer: *layer, source };
        let attributes = || -> io::Result<()> {
            let found = fs::metadata(&source)?;
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            chown(&path, Some(found.uid()), Some(found.gid()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(found.mode() & 0o7777))
        };
        attributes().map_err(|source| failed(copy::CopyError::System { path: path.clone(), source }))?;
        copy::layer(&source, &path, is_cancelled).map_err(failed)?;
    }
    Ok(ImageRoot::Directory { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_layers_only_the_topmost_is_used() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        assert_eq!(visible(&[a, b, a]), [b, a]);
        assert_eq!(visible(&[a, a]), [a]);
        assert_eq!(visible(&[a, b, c]), [a, b, c]);
        assert_eq!(visible(&[a, b, b, c, a, c]), [b, a, c]);
    }
}
