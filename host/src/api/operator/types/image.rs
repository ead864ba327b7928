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
