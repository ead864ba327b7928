//! Container images.

use super::command::Secret;

message! {
    /// A container image.
    pub struct Image {
        /// Its format.
        #[serde(rename = "type")]
        required kind: ImageKind,
        /// For `DOCKER`: its name and credentials.
        optional docker: DockerImage,
        /// Whether a copy in the store may be used without asking the registry; true when absent.
        optional cached: bool,
    }
}

word! {
    /// Format of an image.
    pub enum ImageKind {
        /// Deprecated; rejected where images are used.
        Appc,
        /// An image of a docker or OCI registry.
        #[default]
        Docker,
    }
}

message! {
    /// An image in a registry.
    pub struct DockerImage {
        /// `[registry/]repository[:tag|@digest]`.
        required name: String,
        /// Credentials: the content of a docker `config.json`.
        optional config: Secret,
    }
}

message! {
    /// How far the pull of an image is. Extension.
    pub struct PullProgress {
        /// Layers of the image.
        required layers: u64,
        /// Layers that are in the store.
        required pulled_layers: u64,
        /// Bytes of the layers that were not in the store, compressed.
        required bytes: u64,
        /// Bytes of these that were received.
        required received: u64,
    }
}

message! {
    /// How far the fetch of a container's files is. Extension.
    pub struct FetchProgress {
        /// Files to fetch.
        required files: u64,
        /// Files that were fetched.
        required fetched_files: u64,
        /// Size of the file that is being received; absent if it is not known.
        optional bytes: u64,
        /// Bytes of that file that were received.
        required received: u64,
    }
}

message! {
    /// What `PRUNE_IMAGES` has removed. Extension.
    pub struct PrunedImages {
        /// Names of images.
        repeated names: String,
        /// Number of layers.
        required layers: u64,
        /// Bytes that were freed.
        required bytes: u64,
    }
}
