//! Errors of images.

use std::io;
use std::path::{Path, PathBuf};

use cofferdam_core::provisioner::document::{MAX_LAYERS, Platform};
use cofferdam_core::provisioner::{Digest, InvalidName, LocalError, StoreError};

use super::layer::LayerError;

/// Indexes in one another.
pub(super) const MAX_INDEXES: usize = 4;

/// Bytes of the manifests and configurations of all images of a source.
pub(super) const MAX_DOCUMENTS: usize = 64 << 20;

/// Platforms, and characters of a text of an image, that an error shows.
const MAX_PLATFORMS: usize = 20;
const MAX_TEXT: usize = 100;

/// Why an image was not added to the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("cannot read `{}`", source_name(.path.as_deref()))]
    Source { path: Option<PathBuf>, source: io::Error },
    #[error("`{}` is no OCI image layout: it has no `index.json`", source_name(.path.as_deref()))]
    NoIndex { path: Option<PathBuf> },
    #[error("`{}` is no archive of `docker save`: it has no `manifest.json`", source_name(.path.as_deref()))]
    NoManifest { path: Option<PathBuf> },
    #[error("cannot read `{file}` of the image")]
    File { file: String, source: io::Error },
    #[error("`{file}` of the image is malformed")]
    Malformed { file: String, source: serde_json::Error },
    #[error(
        "`{file}` of the image has {actual} bytes and the digest `{digest}`; expected {size} bytes and `{expected}`"
    )]
    Mismatch { file: String, actual: u64, digest: Digest, size: u64, expected: Digest },
    #[error("layer {number} has the digest `{actual}` when it is unpacked; expected `{expected}`")]
    DiffId { number: usize, actual: Digest, expected: Digest },
    #[error("the image has {layers} layers, but its configuration has digests of {digests}")]
    Layers { layers: usize, digests: usize },
    #[error("the image has more than {MAX_LAYERS} layers, which the kernel cannot mount")]
    TooManyLayers,
    #[error("the image is for `{}`; expected `linux`", foreign(.os))]
    OperatingSystem { os: String },
    #[error("there is no image for {wanted}; there are: {found}. Choose one with `--platform`")]
    Platform { wanted: Platform, found: String },
    #[error("the index of the image refers to more than {MAX_INDEXES} others in one another")]
    Indexes,
    #[error("it has more than {limit} bytes without compression; `--max-size` is the limit")]
    TooLarge { limit: u64 },
    #[error(
        "the manifests and configurations of its images have more than {} MiB; import them separately",
        MAX_DOCUMENTS >> 20
    )]
    Documents,
    #[error("there is no image in it")]
    Empty,
    #[error("the image has no name; give it one with `--name`")]
    Unnamed,
    #[error("it contains {count} images, so `--name` cannot be the name of one of them")]
    Several { count: usize },
    #[error(
        "it contains {count} images; import them with `cofferdam image import`, and launch one of them by its name"
    )]
    SeveralLocal { count: usize },
    #[error("cannot use the image `{}`", path.display())]
    At { path: PathBuf, source: Box<ImageError> },
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("a name of the image is invalid")]
    Name(#[from] InvalidName),
    #[error("cannot unpack layer {number}")]
    Layer { number: usize, source: LayerError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start a thread")]
    Thread { source: io::Error },
}

fn source_name(path: Option<&Path>) -> String {
    path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
}

pub(super) type Result<T> = std::result::Result<T, ImageError>;

/// A text of whoever made the image, for a terminal.
pub(super) fn foreign(text: &str) -> String {
    text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect()
}

impl ImageError {
    /// An index has no image for a platform, or an image is for another one.
    pub(super) fn platform<'p>(wanted: &Platform, found: impl IntoIterator<Item = &'p Platform>) -> Self {
        let mut found = found.into_iter();
        let mut shown: Vec<String> =
            found.by_ref().take(MAX_PLATFORMS).map(|platform| foreign(&platform.to_string())).collect();
        shown.extend(found.next().map(|_| "…".to_owned()));
        Self::Platform { wanted: wanted.clone(), found: shown.join(", ") }
    }

    /// Whether the request for an image in a file or directory is wrong, or what is there.
    pub(super) fn is_of_request(&self) -> bool {
        match self {
            Self::At { source, .. } => source.is_of_request(),
            Self::Local(error) => error.is_invalid(),
            Self::Source { .. } | Self::TooLarge { .. } => false,
            other => !other.is_local(),
        }
    }

    /// Whether it is this machine that fails, and would with the same image from elsewhere.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Store(_) | Self::Thread { .. } => true,
            Self::Layer { source, .. } => source.is_local(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_of_its_platform_is_escaped_and_short() {
        let platform = |os: &str| Platform { os: os.to_owned(), ..Platform::host() };
        let found = vec![platform(&"\u{1b}[2J\u{202e}".repeat(1000)); 1000];
        let wanted = platform("linux");
        for error in
            [ImageError::platform(&wanted, &found), ImageError::OperatingSystem { os: found[0].os.clone() }]
        {
            let shown = error.to_string();
            assert!(shown.contains("\\u{1b}[2J\\u{202e}"), "{shown}");
            assert!(shown.len() < 20_000 && !shown.contains(['\u{1b}', '\u{202e}']), "{shown}");
        }
        let few = ImageError::platform(&wanted, &[platform("a"), platform("b")]);
        let Platform { architecture, .. } = wanted;
        assert!(
            few.to_string().contains(&format!("there are: a/{architecture}, b/{architecture}.")),
            "{few}"
        );
    }
}
