//! What a request says about a container of an engine.

use cofferdam_plugin_model::PortMapping;
use serde::{Deserialize, Serialize};

/// Options of a container of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerOptions {
    /// Its image.
    pub image: String,
    /// Its network.
    pub network: DockerNetwork,
    /// Published ports.
    pub port_mappings: Vec<PortMapping>,
    /// Whether it has full access to the host.
    pub privileged: bool,
    /// Further options of `docker run`, without leading dashes, in order.
    pub parameters: Vec<DockerParameter>,
    /// Whether the image is pulled even if it is present.
    pub force_pull_image: bool,
    /// The driver of all its named volumes.
    pub volume_driver: Option<String>,
}

/// Network of a container of an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DockerNetwork {
    /// That of the host.
    #[default]
    Host,
    /// The bridge of the engine.
    Bridge,
    /// None.
    None,
    /// The one that the request names.
    User,
}

/// An option of `docker run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerParameter {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}
