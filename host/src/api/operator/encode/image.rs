//! Images.

use crate::api::operator::types as wire;
use cofferdam_core::model::{FetchProgress, PullProgress};
use cofferdam_core::provisioner::Pruned;

/// Encodes how far the pull of an image is.
/// Encodes how far a fetch is.
pub(crate) fn encode_fetch(progress: &FetchProgress) -> wire::FetchProgress {
    let FetchProgress { files, fetched_files, bytes, received } = *progress;
    wire::FetchProgress { files, fetched_files, bytes: (bytes > 0).then_some(bytes), received }
}

pub(super) fn pull(progress: &PullProgress) -> wire::PullProgress {
    let PullProgress { layers, pulled_layers, bytes, received } = *progress;
    wire::PullProgress { layers, pulled_layers, bytes, received }
}

/// Encodes what was removed of the store.
pub(in crate::api::operator) fn pruned(pruned: &Pruned) -> wire::PrunedImages {
    wire::PrunedImages { names: pruned.names.clone(), layers: pruned.layers as u64, bytes: pruned.bytes }
}

/// The image of a request. Its credentials are not shown.
pub(super) fn encode_image(name: &str, force_pull: bool) -> wire::Image {
    let docker = wire::DockerImage { name: name.to_owned(), config: None };
    wire::Image { kind: wire::ImageKind::Docker, docker: Some(docker), cached: force_pull.then_some(false) }
}
